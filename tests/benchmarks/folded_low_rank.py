"""Low-rank networks of half of the multiplications: how much of that shows in time, on every interpreter.

Whole networks beside the dense ones, and each layer that changed beside the one that it was.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.low_rank.factorize import Factorized, Rank, factorize
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.manifest import RuntimeName
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.pruned_layers import PLACES, place_of
from tests.zoo import low_rank_nets, models

FORM = "lowrank-50flops"
_SHOWN = 0.7
_ROUNDS = 40
_TOGETHER = 8
_STEPS = (12, 16, 17, 24, 32)
Factory = Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]
NETWORKS: dict[str, Factory] = {
    "VGG-like": low_rank_nets.vgg,
    "ResNet-20": models.resnet20,
    "transformer encoder": low_rank_nets.encoder,
}
WHOLE = {
    (network, name): Goal(f"{network}, {FORM}, speed-up over the ideal one on {name}", ">=", _SHOWN)
    for network in NETWORKS
    for name in PLACES
}
LAYERS = {
    (network, name): Goal(
        f"{network}, {FORM}, the least of its layers, speed-up over the ideal one on {name}", ">=", _SHOWN
    )
    for network in NETWORKS
    for name in PLACES
}


def _lower(module: nn.Module, inputs: tuple[torch.Tensor, ...], runtime: RuntimeName) -> bytes:
    with quiet():
        return BACKENDS[runtime].lower(capture(make_source(module.eval(), inputs))).data


def _beside(artifacts: Sequence[bytes], inputs: Sequence[torch.Tensor], name: str, *, bare: bool) -> np.ndarray:
    """Seconds [artifact, round] on an interpreter, in turn."""
    suffix = BACKENDS[PLACES[name]].suffix
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}{suffix}" for number in range(len(artifacts))]
        for path, data in zip(paths, artifacts, strict=True):
            path.write_bytes(data)
        given = [[one.numpy()] for one in inputs]
        return np.array(time_beside(paths, name, given, rounds=_ROUNDS, bare=bare, python=place_of(name).python))


def measure(network: str) -> Iterator[Bar | Figure]:
    """A network dense and low-rank, and its layers alone."""
    module, inputs = NETWORKS[network]()
    inputs = tuple(one[:1] for one in inputs)
    progress(f"{network}: {FORM}")
    made = factorize(module, FORM, example=inputs, progress=progress)
    ideal = made.before.macs / made.after.macs
    yield figure(f"  {network}: multiplications, dense over low-rank", [ideal])
    yield figure(f"  {network}: bytes, low-rank over dense", [made.after.nbytes / made.before.nbytes])
    pairs = list(_layer_pairs(module, made, inputs))
    artifacts: dict[RuntimeName, list[bytes]] = {}
    layers: dict[RuntimeName, list[bytes]] = {}
    for name, runtime in PLACES.items():
        try:
            place_of(name)
        except CannotRun as error:
            yield WHOLE[network, name].not_run(str(error))
            yield LAYERS[network, name].not_run(str(error))
            continue
        if runtime not in artifacts:
            progress(f"{network}: lower for {runtime}")
            artifacts[runtime] = [_lower(one, inputs, runtime) for one in (module, made.model)]
            layers[runtime] = [_lower(one, (x,), runtime) for _, x, *both in pairs for one in both]
        progress(f"{network} on {name}")
        dense, thin = _beside(artifacts[runtime], [inputs[0]] * 2, name, bare=False)
        yield WHOLE[network, name].measured(dense / thin / ideal)
        yield figure(f"  {network} on {name}: dense", dense * 1e6, "us")
        yield figure(f"  {network} on {name}: times as fast", dense / thin)
        yield from _measure_layers(network, name, pairs, layers[runtime])


def _layer_pairs(
    module: nn.Module, made: Factorized, inputs: tuple[torch.Tensor, ...]
) -> Iterator[tuple[Rank, torch.Tensor, nn.Module, nn.Module]]:
    """Layers that changed: its row, an input, the layer and its chain; of those alike the first."""
    seen: dict[str, torch.Tensor] = {}
    rows = [row for row in made.decisions if row.way is not None]
    hooks = [
        made.model.get_submodule(row.path).register_forward_pre_hook(
            lambda _, given, path=row.path: seen.setdefault(path, given[0].contiguous()) is None or None
        )
        for row in rows
    ]
    with torch.no_grad():
        made.model(*inputs)
    for hook in hooks:
        hook.remove()
    done = set()
    for row in rows:
        chain, x = made.model.get_submodule(row.path), seen[row.path]
        key = (tuple(x.shape), row.way, row.ranks, row.before)
        if key not in done:
            done.add(key)
            yield row, x, nn.Sequential(_dense_like(chain, x)), chain


def _dense_like(chain: nn.Module, x: torch.Tensor) -> nn.Module:
    """One layer that reads and gives what a chain does."""
    assert isinstance(chain, nn.Sequential)
    first, last = chain[0], chain[-1]
    if isinstance(first, nn.Linear):
        return nn.Linear(first.in_features, last.out_features, bias=last.bias is not None)
    kernel, stride, padding = (
        tuple(
            math.prod(getattr(one, name)[dim] for one in chain)
            if name != "padding"
            else sum(one.padding[dim] for one in chain)
            for dim in range(2)
        )
        for name in ("kernel_size", "stride", "padding")
    )
    return nn.Conv2d(x.shape[1], last.out_channels, kernel, stride, padding, bias=last.bias is not None)


def _measure_layers(
    network: str, name: str, pairs: Sequence[tuple[Rank, torch.Tensor, nn.Module, nn.Module]], artifacts: list[bytes]
) -> Iterator[Bar | Figure]:
    """Each changed layer alone, in turn with its dense one; together, and the worst."""
    shown = []
    for at in range(0, len(pairs), _TOGETHER // 2):
        several = pairs[at : at + _TOGETHER // 2]
        inputs = [x for _, x, *_ in several for _ in range(2)]
        times = _beside(artifacts[2 * at : 2 * at + len(inputs)], inputs, name, bare=True)
        for (row, *_), dense, thin in zip(several, times[::2], times[1::2], strict=True):
            shown.append((row, dense, thin, row.before.macs / row.after.macs))
    for row, dense, thin, ideal in shown:
        ranks = " and ".join(map(str, row.ranks))
        what = f"  {network} on {name}: {row.path}, {row.way} {ranks}, times as fast, ideal {ideal:.2f}"
        yield figure(what, dense / thin)
    # Layers take microseconds: of the fastest rounds, which other work on the machine disturbs least.
    each = {row.path: float(dense.min() / thin.min()) / ideal for row, dense, thin, ideal in shown}
    yield LAYERS[network, name].measured([min(each.values())])
    yield figure(f"  {network} on {name}: changed layers, speed-up over the ideal one", list(each.values()))


def measure_steps() -> Iterator[Figure]:
    """What a rank takes that is no multiple of what kernels work on, over the next that is one."""
    x = torch.randn(1, 64, 16, 16)
    for name in PLACES:
        progress(f"ranks of a convolution of 64 channels on {name}")
        try:
            place_of(name)
        except CannotRun as error:
            progress(str(error))
            continue
        chains = [nn.Sequential(nn.Conv2d(64, rank, 3, 1, 1), nn.Conv2d(rank, 64, 1)) for rank in _STEPS]
        artifacts = [_lower(one, (x,), PLACES[name]) for one in chains]
        times = dict(zip(_STEPS, _beside(artifacts, [x] * len(chains), name, bare=True), strict=True))
        for rank, over in ((12, 16), (17, 16), (17, 32), (24, 32)):
            yield figure(
                f"  svd of 64 channels on {name}: time of rank {rank} over {over}'s", times[rank] / times[over]
            )


PARTS = (
    *(
        Part(
            tuple(goal for goals in (WHOLE, LAYERS) for (one, _), goal in goals.items() if one == network),
            partial(measure, network),
        )
        for network in NETWORKS
    ),
    Part((), measure_steps),
)
