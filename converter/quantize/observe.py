"""How far activations range: what is seen over a calibration set, and the scale each observer makes of it.

minmax takes all that was seen; percentile leaves out the farthest 0.01 % at each end; entropy loses least information
(Kullback-Leibler divergence to what int8 keeps, as TensorRT does it; Migacz 2017); mse loses least in the square, which
is also what PyTorch's histogram observer looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Interpreter, Node

from ferryman.converter.layer_calls import path_of
from ferryman.converter.quantize.recipe import Observer
from ferryman.runtime.contracts.errors import ModelError

Floats = NDArray[np.float64]
_BINS = 2048
_LEVELS = 256
_OUTSIDE = 1e-4
_LEAST_SPAN = 1e-12
_STEPS = 100
_KEPT_MIN = 0.2
"""Narrower ranges are not tried."""


@dataclass(frozen=True)
class Scale:
    """An int8 q stands for scale * (q - zero)."""

    scale: float
    zero: int


@dataclass
class Seen:
    """One value over the calibration set."""

    low: float = np.inf
    high: float = -np.inf
    counts: Floats | None = None
    """Of _BINS equal bins from low to high, without zeros."""
    mean: torch.Tensor | None = None
    """float32[channels]: over all but the channel dimension."""
    rows: int = 0
    """How many there are in the mean."""

    @property
    def edges(self) -> Floats:
        """Of the bins."""
        return np.linspace(self.low, self.high, _BINS + 1)


def observe(
    module: GraphModule, batches: Iterable[Sequence[torch.Tensor]], wanted: dict[Node, int]
) -> dict[Node, Seen]:
    """Run a program over a calibration set, twice: once for the ends, once for what lies between.

    Args:
        module: the program.
        batches: flat inputs; iterated over twice.
        wanted: node -> its channel dimension.

    Raises:
        ModelError: a value is never finite.
    """
    seen = {node: Seen() for node in wanted}

    def ends(node: Node, value: torch.Tensor) -> None:
        one = seen[node]
        value = value[torch.isfinite(value)]
        if value.numel():
            one.low, one.high = min(one.low, float(value.min())), max(one.high, float(value.max()))

    def between(node: Node, value: torch.Tensor) -> None:
        one = seen[node]
        other = value[value != 0]  # zeros are exact whatever the scale, and often more than all else
        counts, _ = np.histogram(other.double().numpy(), _BINS, (one.low, max(one.high, one.low + _LEAST_SPAN)))
        one.counts = counts if one.counts is None else one.counts + counts
        axis = wanted[node]
        rows = value.movedim(axis, -1).flatten(0, -2) if value.dim() > 1 else value.reshape(-1, 1)
        rows = rows[rows.isfinite().all(1)]
        total = one.rows + len(rows)
        before = torch.zeros(rows.shape[1]) if one.mean is None else one.mean
        one.mean = before + (rows.mean(0) - before) * (len(rows) / total) if len(rows) else before
        one.rows = total

    for look in (ends, between):
        watch(module, batches, wanted, look)
        if blind := [node for node, one in seen.items() if not np.isfinite(one.low)]:
            raise ModelError(f"{path_of(blind[0])}: there is no finite number over calibration")
    return seen


def watch(
    module: GraphModule,
    batches: Iterable[Sequence[torch.Tensor]],
    wanted: Collection[Node],
    look: Callable[[Node, torch.Tensor], None],
) -> None:
    """Run a program over inputs, and show the values of some nodes as they come."""
    runner = _Watcher(module, set(wanted), look)
    with torch.no_grad():
        for inputs in batches:
            runner.run(*inputs, enable_io_processing=False)


class _Watcher(Interpreter):
    def __init__(self, module: GraphModule, wanted: set[Node], look: Callable[[Node, torch.Tensor], None]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self._look = look

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n in self._wanted:
            self._look(n, value)
        return value


def find_scale(seen: Seen, observer: Observer) -> Scale:
    """The scale that an observer makes of what was seen; 0 is always exact."""
    if seen.counts is None or not seen.counts.sum():
        return Scale(1.0, 0)
    if observer == "minmax":
        return _between(seen.low, seen.high)
    if observer == "percentile":
        share = np.cumsum(seen.counts) / seen.counts.sum()
        return _between(
            float(seen.edges[np.searchsorted(share, _OUTSIDE)]),
            float(seen.edges[1 + np.searchsorted(share, 1 - _OUTSIDE)]),
        )
    lost = _divergence if observer == "entropy" else _square_error
    kept = np.linspace(_KEPT_MIN, 1, _STEPS)
    candidates = [_between(float(seen.low * share), float(seen.high * share)) for share in kept]
    # Of equal ones the widest: it is right about what calibration has not seen.
    losses = [lost(seen, candidate) for candidate in candidates]
    return candidates[max(i for i, loss in enumerate(losses) if loss <= min(losses))]


def _between(low: float, high: float) -> Scale:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / (_LEVELS - 1), _LEAST_SPAN)))
    zero = int(np.clip(np.rint(-128 - low / scale), -128, 127))
    return Scale(scale, zero)


def _kept(values: Floats, scale: Scale) -> Floats:
    kept: Floats = np.clip(np.rint(values / scale.scale) + scale.zero, -128, 127)
    return kept


def _square_error(seen: Seen, scale: Scale) -> float:
    middles = (seen.edges[:-1] + seen.edges[1:]) / 2
    error = middles - scale.scale * (_kept(middles, scale) - scale.zero)
    assert seen.counts is not None  # noqa: S101  # find_scale looked
    return float((seen.counts * error**2).sum())


def _divergence(seen: Seen, scale: Scale) -> float:
    assert seen.counts is not None  # noqa: S101  # find_scale looked
    middles = (seen.edges[:-1] + seen.edges[1:]) / 2
    whole = np.rint(middles / scale.scale) + scale.zero
    inside = (whole >= -128) & (whole <= 127)  # noqa: PLR2004  # int8
    if not seen.counts[inside].sum():
        return float("inf")
    # What lies outside belongs to the outermost bins, but what int8 keeps knows nothing of it.
    first, last = np.flatnonzero(inside)[[0, -1]]
    share = seen.counts.astype(np.float64)
    share[first] += share[:first].sum()
    share[last] += share[last + 1 :].sum()
    share = share[inside] / share[inside].sum()
    counts, level = seen.counts[inside], (whole[inside] + 128).astype(int)
    filled = counts > 0
    held = np.bincount(level, counts, _LEVELS)
    bins = np.bincount(level, filled, _LEVELS)
    spread = np.where(filled, held[level] / np.maximum(bins[level], 1), 0) / counts.sum()
    both = (share > 0) & (spread > 0)
    missed = share[(share > 0) & (spread == 0)].sum()
    return float((share[both] * np.log(share[both] / spread[both])).sum() - missed * np.log(_LEAST_SPAN))
