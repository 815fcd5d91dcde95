"""What a layer can become, at which price, and what the model's outputs lose by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ferryman.converter.low_rank.decompose import Decomposer, Factors
from ferryman.converter.low_rank.layers import Layer
from ferryman.converter.low_rank.learned import Ordered
from ferryman.converter.low_rank.moments import Moments
from ferryman.converter.low_rank.shapes import Price, Ranks, Way, price, rank_grid, rank_max, step_of, ways
from ferryman.converter.prune.graph import run

_RANKS = 12
_SLOW_RANKS = {"tucker": 5, "cp": 3}
"""Of decompositions that are found anew for each rank."""
T = TypeVar("T")
_PROBE = 0.02
"""The loss of a layer's output at which it is measured what the model's outputs make of it."""


@dataclass(frozen=True)
class Option:
    """One way for a layer to be."""

    way: Way | None
    """None: as it is."""
    ranks: Ranks
    price: Price
    error: float
    """What the layer's output loses in the square, relative to its own."""
    loss: float = 0.0
    """What the model's outputs lose by it alone, in the square, relative to their own."""
    factors: Factors | None = None
    """Where they are not found again at once."""

    @property
    def key(self) -> tuple[Way, Ranks]:
        """Of a chain."""
        if self.way is None:
            raise TypeError("a layer as it is has no ranks")
        return self.way, self.ranks


@dataclass
class Choices:
    """All options of one layer; the first is the layer as it is."""

    layer: Layer
    decomposer: Decomposer
    options: list[Option]
    unfit: str | None = None
    """Why there is but the one, where that is no matter of cost."""

    def factors(self, option: Option) -> Factors:
        """Those of an option that is a chain."""
        return option.factors or self.decomposer.factors(*option.key)


def find_choices(layer: Layer, moments: Moments, only: Sequence[Way] | None = None) -> Choices:
    """Find what a layer can become that costs fewer multiplications, or fewer bytes.

    Args:
        layer: with finite weights.
        moments: of what it reads.
        only: the ways that are looked at; None: all.
    """
    work = Decomposer(layer, moments)
    dense = price(layer)
    bias = layer.module.bias is not None or moments.mean is not None

    def of(way: Way, ranks: Ranks) -> Price:
        return price(layer, way, ranks, bias=bias)

    def cheaper(way: Way, ranks: Ranks) -> bool:
        return _cheaper(of(way, ranks), dense)

    options = [Option(None, (), dense, 0.0)]
    unfit = work.unfit()
    for way in ways(layer) if unfit is None else ():
        if only is not None and way not in only:
            continue
        for ranks in _ranks(work, way, cheaper):
            try:
                factors = work.factors(way, ranks)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of this rank; others may be found
                continue
            held = factors if way in ("cp", "tucker") else None
            error = work.error(factors)
            if math.isfinite(error):
                options.append(Option(way, ranks, of(way, ranks), error, factors=held))
    return Choices(layer, work, options, unfit)


def learned_choices(layer: Layer, moments: Moments, ordered: Ordered) -> Choices:
    """What a layer can become whose inner channels are in an order: the first few of them."""
    work = Decomposer(layer, moments)
    dense = price(layer)
    bias = layer.module.bias is not None or moments.mean is not None
    options = [Option(None, (), dense, 0.0)]
    grid = rank_grid(layer, "svd", _RANKS, lambda ranks: _cheaper(price(layer, "svd", ranks, bias=bias), dense))
    unfit = work.unfit()
    for rank in _below(grid, ordered.rank) if unfit is None else ():
        factors = ordered.factors(rank)
        options.append(
            Option("svd", (rank,), price(layer, "svd", (rank,), bias=bias), work.error(factors), factors=factors)
        )
    return Choices(layer, work, options, unfit)


def _below(ranks: Iterable[int], most: int) -> list[int]:
    """Those up to the first that is not less."""
    found: list[int] = []
    for rank in ranks:
        found.append(rank)
        if rank >= most:
            break
    return found


def _cheaper(one: Price, dense: Price) -> bool:
    return one.macs < dense.macs and one.nbytes < dense.nbytes


def _ranks(work: Decomposer, way: Way, cheaper: Callable[[Way, Ranks], bool]) -> list[Ranks]:
    layer = work.layer
    if way == "tucker":
        step = step_of(layer)
        most = rank_max(layer, way)[1]
        several = [work.tucker_ranks(outputs, step) for outputs in range(step, most + 1, step)]
        several = [one for one in several if cheaper(way, one)]
        return thinned(several, _SLOW_RANKS[way])
    count = _SLOW_RANKS.get(way, _RANKS)
    found = [(rank,) for rank in rank_grid(layer, way, count, lambda ranks: cheaper(way, ranks))]
    return [one for one in found if way != "cp" or work.can_cp(one[0])]


def thinned(several: Sequence[T], count: int) -> list[T]:
    """So many of several at most, evenly spread, the last among them."""
    if len(several) <= count:
        return list(several)
    return [several[(at + 1) * len(several) // count - 1] for at in range(count)]


@torch.no_grad()
def weigh(model: nn.Module, choices: Sequence[Choices], batches: Sequence[tuple[Any, ...]]) -> None:
    """Measure what the model's outputs lose by each layer's loss, and note it in the options.

    Each layer is given the weights of one of its options; what the outputs lose is taken to grow with what the layer's
    own output does.

    Args:
        model: in eval mode; as it was afterwards.
        choices: of its layers.
        batches: positional inputs of several calls.
    """
    wanted = [model_outputs(model, one) for one in batches]
    whole = sum(float(one.square().sum()) for one in wanted) or 1e-300
    for each in choices:
        lossy = [one for one in each.options if one.error > 0]
        gain = 1.0
        if lossy:
            probe = min(lossy, key=lambda one: abs(math.log(one.error / _PROBE)))
            weight = each.layer.module.weight
            kept = weight.detach().clone()
            weight.copy_(each.factors(probe).dense().reshape(weight.shape))
            bias = _shifted(each, probe)
            lost = sum(
                float((model_outputs(model, one) - right).square().sum())
                for one, right in zip(batches, wanted, strict=True)
            )
            weight.copy_(kept)
            if bias is not None:
                each.layer.module.bias.copy_(bias)  # type: ignore[union-attr]  # there is one
            gain = lost / whole / probe.error
        each.options = [replace(one, loss=gain * one.error) for one in each.options]


def _shifted(each: Choices, probe: Option) -> torch.Tensor | None:
    """Put what a bias makes good in the layer's own, if it has one; what that was."""
    bias = each.layer.module.bias
    shift = each.decomposer.shift(each.factors(probe))
    if bias is None or shift is None:
        return None
    old = bias.detach().clone()
    bias.copy_(bias.double() + shift)
    return old


def model_outputs(model: nn.Module, batch: tuple[Any, ...]) -> torch.Tensor:
    """float64[n]: all that a model gives in one call, zeros where that is no number.

    Raises:
        CallerError: it fails with the batch.
    """
    return torch.cat([one.flatten().double().nan_to_num(0.0, 0.0, 0.0) for one in run(model, batch)])
