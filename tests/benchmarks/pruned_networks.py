"""Whole networks: without their zeros, with fewer channels, and both with fewer bits, on every interpreter."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import Captured, capture
from ferryman.converter.forms import find_form
from ferryman.converter.functional import functional_module
from ferryman.converter.prune.recipe import parse_pruning
from ferryman.converter.prune.structured import prune
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.sparse.layers import PrunedLayer, find_pruned
from ferryman.converter.verify import interpreters
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.session import INTERPRETERS
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.pruned_layers import PLACES, place_of, pruned_mobilenet
from tests.zoo import models

_ROUNDS = 40
_STRUCTURED = "pruned-50flops"
_FASTER = 1.35
_MINUTES = 5.0
_SMALL = 0.2
NETWORKS = ("ResNet-20", "MobileNetV2")
BYTES = {
    runtime: Goal(f"MobileNetV2, 90 % zeros, pruned layers in {runtime}, bytes over their dense ones", "<=", _SMALL)
    for runtime in INTERPRETERS
}
STRUCTURED = {
    (network, name): Goal(f"{network}, {_STRUCTURED}, times as fast as dense on {name}", ">=", _FASTER)
    for network in NETWORKS
    for name in PLACES
}
QUICK = Goal(f"MobileNetV2, {_STRUCTURED}, pruning", "<=", _MINUTES, "min")


def networks() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Random weights."""
    module, (x,) = models.resnet20()
    yield "ResNet-20", module, x[:1]
    module, (x,) = models.mobilenet_v2_full()
    yield "MobileNetV2", module, x


def _beside(artifacts: dict[str, bytes], x: torch.Tensor, name: str) -> dict[str, np.ndarray]:
    """Seconds a call of each in each round, on an interpreter."""
    runtime = PLACES[name]
    place = place_of(name)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, data in enumerate(artifacts.values()):
            paths.append(Path(folder) / f"{number}{BACKENDS[runtime].suffix}")
            paths[-1].write_bytes(data)
        inputs = [[x.numpy()]] * len(paths)
        times = time_beside(paths, name, inputs, rounds=_ROUNDS, python=place.python)
    return dict(zip(artifacts, map(np.array, times), strict=True))


def _lower(captured: Captured, form: str, runtime: RuntimeName) -> bytes:
    found = find_form(form)
    program, _ = found.rewrite(captured, [captured.example])
    lowered = BACKENDS[runtime].lower(program)
    if found.fit:
        return found.fit(program, runtime, interpreters(runtime), lowered, lambda _: None).lowered.data
    return lowered.data


def _capture(module: nn.Module, x: torch.Tensor) -> Captured:
    return capture(make_source(module, (x,)))


def measure_sparse() -> Iterator[Bar | Figure]:
    """MobileNetV2 with zeros in its 1x1 convolutions: floats, and 4 bits."""
    for zeros, forms in (("90 %", ("sparse", "4bit", "4bit-sparse", "int8", "int8-sparse")), ("2:4", ("sparse",))):
        module, x = pruned_mobilenet(zeros)
        artifacts: dict[str, dict[str, bytes]] = {}
        with quiet():
            captured = _capture(module, x)
            found = find_pruned("MobileNetV2", functional_module(captured.program)).values()
        dense_bytes = sum(one.layer.weight.nbytes for one in found if isinstance(one, PrunedLayer) and one.eligible)
        for runtime in INTERPRETERS:
            artifacts[runtime] = {}
            for form in ("fp32", *forms):
                progress(f"MobileNetV2, {zeros} zeros: {form} for {runtime}")
                try:
                    with quiet():
                        artifacts[runtime][form] = _lower(captured, form, runtime)
                except ModelError as error:  # slower as a whole: nothing is made
                    progress(str(error))
        for runtime, made in artifacts.items():
            sizes = {form: len(data) for form, data in made.items()}
            rest = sizes["fp32"] - dense_bytes
            if zeros == "90 %":
                yield BYTES[runtime].measured([(sizes["sparse"] - rest) / dense_bytes])
            for form in list(made)[1:]:
                yield figure(f"  {zeros} zeros in {runtime}: {form}, bytes over fp32's", [sizes[form] / sizes["fp32"]])
        yield from _times(artifacts, x, f"MobileNetV2, {zeros} zeros")


def _times(artifacts: dict[str, dict[str, bytes]], x: torch.Tensor, what: str) -> Iterator[Figure]:
    for name, runtime in PLACES.items():
        progress(f"{what} on {name}")
        try:
            times = _beside(artifacts[runtime], x, name)
        except CannotRun as error:
            progress(str(error))
            continue
        (_, base), *others = times.items()
        for form, seconds in others:
            yield figure(f"  {what}, {form} over fp32, times as fast on {name}", base / seconds)


def measure_structured() -> Iterator[Bar | Figure]:
    """Half of the multiplications gone, in floats and in int8."""
    for network, module, x in networks():
        progress(f"{network}: {_STRUCTURED}")
        start = time.perf_counter()
        pruned = prune(module, parse_pruning(_STRUCTURED), example=(x,))
        minutes = (time.perf_counter() - start) / 60
        if network == "MobileNetV2":
            yield QUICK.measured([minutes])
        artifacts: dict[str, dict[str, bytes]] = {}
        for runtime in INTERPRETERS:
            progress(f"{network}: lowering for {runtime}")
            with quiet():
                dense, small = _capture(module, x), _capture(pruned.model, x)
                artifacts[runtime] = {
                    "dense": _lower(dense, "fp32", runtime),
                    "pruned": _lower(small, "fp32", runtime),
                    "pruned int8": _lower(small, "int8", runtime),
                    "pruned 4bit": _lower(small, "4bit", runtime),
                }
            sizes = {form: len(data) for form, data in artifacts[runtime].items()}
            for form in ("pruned", "pruned int8", "pruned 4bit"):
                yield figure(
                    f"  {network} in {runtime}: {form}, bytes over dense fp32's", [sizes[form] / sizes["dense"]]
                )
        yield from _structured_times(network, artifacts, x)


def _structured_times(network: str, artifacts: dict[str, dict[str, bytes]], x: torch.Tensor) -> Iterator[Bar | Figure]:
    for name, runtime in PLACES.items():
        progress(f"{network} on {name}")
        try:
            times = _beside(artifacts[runtime], x, name)
        except CannotRun as error:
            yield STRUCTURED[network, name].not_run(str(error))
            continue
        yield STRUCTURED[network, name].measured(times["dense"] / times["pruned"])
        for form in ("pruned int8", "pruned 4bit"):
            yield figure(f"  {network}, {form} over dense fp32, times as fast on {name}", times["dense"] / times[form])


PARTS = (
    Part(tuple(BYTES.values()), measure_sparse),
    Part((QUICK, *STRUCTURED.values()), measure_structured),
)
