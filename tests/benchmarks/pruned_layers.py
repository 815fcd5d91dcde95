"""MobileNetV2's 1x1 convolutions without their zeros beside the same ones dense on XNNPACK, on every interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.functional import functional_module
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.sparse.layers import PrunedLayer, find_pruned
from ferryman.converter.sparse.measure import time_rounds
from ferryman.converter.verify import Interpreter, interpreters
from ferryman.runtime.session import INTERPRETERS
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.zoo import models

TARGETS = {"90 %": 2.5, "80 %": 1.5, "2:4": 1.0}
PLACES = {name: runtime for runtime, names in INTERPRETERS.items() for name in names}
"""Interpreter -> its runtime."""
_PERCENT = {"90 %": 0.9, "80 %": 0.8}


def goal(zeros: str, place: str) -> Goal:
    return Goal(
        f"1x1 convolutions of MobileNetV2, {zeros} zeros, times as fast as dense on {place}", ">=", TARGETS[zeros]
    )


FASTER = {(zeros, place): goal(zeros, place) for zeros in TARGETS for place in PLACES}


def pruned_mobilenet(zeros: str) -> tuple[nn.Module, torch.Tensor]:
    """As published, random weights, the smallest of each 1x1 convolution set to zero."""
    module, (image,) = models.mobilenet_v2_full()
    for one in module.modules():
        if isinstance(one, nn.Conv2d) and one.kernel_size == (1, 1):
            _prune(one.weight.data, zeros)
    return module, image


def _prune(weight: torch.Tensor, zeros: str) -> None:
    if zeros in _PERCENT:
        weight[weight.abs() <= weight.abs().flatten().quantile(_PERCENT[zeros])] = 0
        return
    fours = weight.flatten(1).reshape(len(weight), -1, 4)
    fours.scatter_(2, fours.abs().argsort(2)[..., :2], 0.0)


def place_of(name: str) -> Interpreter:
    """Where an interpreter is.

    Raises:
        CannotRun: nowhere.
    """
    for place in interpreters(PLACES[name]):  # type: ignore[arg-type]  # a runtime
        if place.name == name:
            return place
    raise CannotRun(f"{name} is not installed here")


def measure() -> Iterator[Bar | Figure]:
    """Each kind of layer alone, in turn with its dense one, one thread."""
    for zeros in TARGETS:
        module, image = pruned_mobilenet(zeros)
        with quiet():
            captured = capture(make_source(module, (image,)))
            found = find_pruned("MobileNetV2", functional_module(captured.program))
        layers = [one for one in found.values() if isinstance(one, PrunedLayer) and one.eligible]
        for name, runtime in PLACES.items():
            progress(f"{len(layers)} layers with {zeros} zeros on {name}")
            try:
                with quiet():
                    times = time_rounds(layers, BACKENDS[runtime], place_of(name))
            except CannotRun as error:
                yield FASTER[zeros, name].not_run(str(error))
                continue
            dense, sparse = (np.sum([pair[way] for pair in times.values()], axis=0) for way in (0, 1))
            yield FASTER[zeros, name].measured(dense / sparse)
            yield figure(f"  {zeros} on {name}: dense", dense * 1e6, "us")
            yield figure(f"  {zeros} on {name}: sparse", sparse * 1e6, "us")
            ratios = {one.path: pair[0] / pair[1] for one, pair in times.items()}
            worst = min(ratios, key=lambda path: float(np.median(ratios[path])))
            yield figure(f"  {zeros} on {name}: the slowest, {worst}, times as fast", ratios[worst])


PARTS = (Part(tuple(FASTER.values()), measure),)
