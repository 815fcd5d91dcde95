"""Whether a chain is faster than the layer that it stands for: measured, each beside the other, on an interpreter."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ferryman.converter.capture import capture
from ferryman.converter.low_rank.layers import Layer
from ferryman.converter.low_rank.shapes import Ranks, Way, chain
from ferryman.converter.prune.latency import find_interpreter
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.beside import time_beside

Timer = Callable[[Sequence[nn.Module], torch.Tensor], Sequence[float]]
"""Seconds of one call of each module in eval mode with the same input, in turn."""
INTERPRETER = "executorch"
"""Where layers are timed unless a timer is given."""
_ROUNDS = 21
_TOGETHER = 8
"""Artifacts in one process: so many are timed within its budget."""


@functools.cache
def interpreter_timer(interpreter: str = INTERPRETER) -> Timer:
    """Time fp32 artifacts on an interpreter of this machine, one thread: the fastest round of each.

    Layers that differ only in their weights are lowered once in a process.

    Args:
        interpreter: one of `ferryman.runtime.session.INTERPRETERS`' names.

    Raises:
        CallerError: no interpreter is named so, or it is not installed here.
    """
    place, backend = find_interpreter(interpreter)

    lowered: dict[tuple[str, torch.Size], bytes] = {}

    def artifact(module: nn.Module, x: torch.Tensor) -> bytes:
        key = repr(module), x.shape
        if key not in lowered:
            with quiet():
                lowered[key] = backend.lower(capture(make_source(module.eval(), (x,)))).data
        return lowered[key]

    def measure(modules: Sequence[nn.Module], x: torch.Tensor) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}{backend.suffix}" for number in range(len(modules))]
            for path, module in zip(paths, modules, strict=True):
                path.write_bytes(artifact(module, x))
            inputs = [[x.numpy()]] * len(paths)
            times = time_beside(paths, place.name, inputs, rounds=_ROUNDS, bare=True, python=place.python)
        return [min(one) for one in times]

    return measure


class Stopwatch:
    """Times of layers and of chains in their places; what was measured once is not measured again."""

    def __init__(self, timer: Timer | None) -> None:
        """Take a timer.

        Args:
            timer: None: `interpreter_timer`, made when it is first needed.
        """
        self._timer = timer
        self._known: dict[tuple[object, ...], tuple[float, float]] = {}

    def compare(self, layer: Layer, chains: Sequence[tuple[Way, Ranks]]) -> list[tuple[float, float]]:
        """Seconds of the layer and of each chain, measured in turn with it; all its calls together.

        Raises:
            ModelError: one cannot be lowered.
            RuntimeCrash: the interpreter fell.
        """
        new = [one for one in dict.fromkeys(chains) if (layer.key, *one) not in self._known]
        for at in range(0, len(new), _TOGETHER - 1):
            for one, times in zip(
                new[at : at + _TOGETHER - 1], self._measure(layer, new[at : at + _TOGETHER - 1]), strict=True
            ):
                self._known[layer.key, *one] = times
        return [self._known[layer.key, *one] for one in chains]

    def _measure(self, layer: Layer, chains: Sequence[tuple[Way, Ranks]]) -> list[tuple[float, float]]:
        if self._timer is None:
            self._timer = interpreter_timer()
        modules: list[nn.Module] = [nn.Sequential(layer.module)]
        modules += [chain(layer, way, ranks, bias=layer.module.bias is not None) for way, ranks in chains]
        modules = [_as_float(one) for one in modules]
        found = [(0.0, 0.0)] * len(chains)
        for call in layer.calls:
            x = torch.randn(call, generator=torch.Generator().manual_seed(0))
            dense, *thin = self._timer(modules, x)
            found = [(old[0] + dense, old[1] + one) for old, one in zip(found, thin, strict=True)]
        return found


def _as_float(module: nn.Module) -> nn.Module:
    """A copy in float32, which artifacts compute in."""
    return copy.deepcopy(module).float().eval()
