"""Make good what pruning and rounding take, in the weights of the layer that reads what is left; without data.

Bai et al. 2023, "Unified Data-Free Compression": a damaged channel is taken to be a linear combination of others, and
what is lost of it has a closed form. Here the combination is the best of what the channels are behind their activation:
batch norms and layer norms tell how each is spread, weights how they go together (see `moments`), and what no
combination gives is kept at its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ferryman.converter.prune.chains import Chain, find_chains, spread_before
from ferryman.converter.prune.criteria import norm_factor, norms_behind
from ferryman.converter.prune.moments import Series, covariance, expand
from ferryman.converter.prune.units import CONVS, Group, Removed, Slot
from ferryman.converter.quantize.weights import Grid

_RIDGE = 0.1
"""Of a channel's variance: how little the weights alone are trusted to tell how channels go together."""
_LINEAR_GROUP = 32


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    example: tuple[Any, ...],
    *,
    bits: int | None = None,
) -> int:
    """Have readers make good what goes, in place, before it is taken out.

    Args:
        model: in eval mode, with all its units.
        groups: of it.
        removed: units that will go.
        example: positional inputs of one call.
        bits: of weights to which what is left will be rounded, as `convert` does: that is made good too, also in layers
            that lose nothing. None: it is not rounded.

    Returns:
        How many layers were changed.
    """
    norms = norms_behind(model, example)
    where = {
        (slot.path, other.path): (slot, other, number)
        for number, group in enumerate(groups)
        for slot in group.slots
        for other in group.slots
        if slot.side == "out" and other.side == "in"
    }
    changed = 0
    for chain in find_chains(model, example):
        slots = where.get((chain.first, chain.second))
        lost = (
            set() if slots is None else {index for unit in removed.get(slots[2], ()) for index in slots[0].rows[unit]}
        )
        whole = slots is not None and len(removed.get(slots[2], ())) == groups[slots[2]].count
        if whole or (not lost and bits is None):
            continue
        combination = _combine(model, chain, lost, bits)
        if combination is not None and _fold(model, chain, combination, slots, norms.get(chain.second)):
            changed += 1
    return changed


def _combine(
    model: nn.Module, chain: Chain, lost: set[int], bits: int | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What each channel is of those that are left: float64[channels, channels], and what is added to that."""
    first = model.get_submodule(chain.first)
    if getattr(first, "groups", 1) > 1 or getattr(first, "transposed", False):
        return None
    rows, around = _rows(model, chain, None)
    rounded, _ = (rows, around) if bits is None else _rows(model, chain, bits)
    lengths, short = rows.norm(dim=1), rounded.norm(dim=1)
    mean, spread = _gaussian(model, chain, first, rows, around)
    exact = expand(mean, spread, chain.curve)
    left = exact if bits is None else expand(mean, spread * short / lengths.clamp(min=1e-12), chain.curve)
    cross = _alike(rows, rounded)
    inner = _alike(rounded, rounded)
    kept = torch.tensor([index for index in range(len(rows)) if index not in lost])
    own = covariance(left, left, inner)[kept][:, kept]
    own.diagonal().copy_(left.variance[kept])
    shared = covariance(exact, left, cross)[:, kept]
    if bits is None:
        shared[kept, torch.arange(len(kept))] = exact.variance[kept]
    return _solve(exact, left, own, shared, kept)


def _solve(
    exact: Series, left: Series, own: torch.Tensor, shared: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least squares, drawn to every channel that is left being itself."""
    prior = torch.zeros_like(shared)
    prior[kept, torch.arange(len(kept))] = 1
    ridge = torch.diag(_RIDGE * own.diagonal() + 1e-9 * own.diagonal().mean() + 1e-30)
    found = prior + torch.linalg.solve(own + ridge, (shared - prior @ own).T).T
    whole = torch.zeros(len(shared), len(shared), dtype=found.dtype)
    whole[:, kept] = found
    return whole, exact.mean - whole @ left.mean


def _rows(model: nn.Module, chain: Chain, bits: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float64[channels, ...]: weights of each channel by the spread of what they read; and the mean of that."""
    first = model.get_submodule(chain.first)
    weight = _weight(first, bits)
    before = spread_before(model, chain)
    if before is not None and len(before[1]) == weight.shape[1]:
        rows = (weight * before[1].sqrt().reshape(1, -1, *[1] * (weight.dim() - 2))).flatten(1)
    else:
        rows, before = weight.flatten(1), None
    for path in chain.depthwise:
        taps = _weight(model.get_submodule(path), bits).flatten(1)
        rows = (rows[:, :, None] * taps[:, None, :]).flatten(1)
    return rows, None if before is None else before[0]


def _weight(layer: nn.Module, bits: int | None) -> torch.Tensor:
    """float64: a layer's weights, or what they become at so many bits."""
    weight: torch.Tensor = layer.weight.detach()  # type: ignore[operator,union-attr]  # a parameter
    if bits is not None:
        image = isinstance(layer, CONVS)
        grid = Grid(bits=bits, group=0 if image else _LINEAR_GROUP, asymmetric=False, half=not image)
        weight = grid.round(weight.flatten(1)).values().reshape(weight.shape)
    return weight.double()


def _gaussian(
    model: nn.Module, chain: Chain, first: nn.Module, rows: torch.Tensor, around: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of each channel in front of the activation; a negative spread: the channel is turned around."""
    if chain.norm is not None:
        norm = model.get_submodule(chain.norm)
        if norm.weight is not None and norm.bias is not None:
            return norm.bias.detach().double(), norm.weight.detach().double()  # type: ignore[operator,union-attr]
        return torch.zeros(len(rows), dtype=torch.float64), norm_factor(norm).sign().double()
    last = model.get_submodule(chain.depthwise[0]) if chain.depthwise else first
    bias = torch.zeros(len(rows), dtype=torch.float64) if last.bias is None else last.bias.detach().double()  # type: ignore[operator,union-attr]
    if around is not None and not chain.depthwise:
        weight = first.weight.detach().double().flatten(2).sum(2) if first.weight.dim() > 2 else first.weight.double()  # type: ignore[operator,union-attr]  # noqa: PLR2004
        bias = bias + weight @ around
    return bias, rows.norm(dim=1)


def _alike(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlations of rows."""
    return nn.functional.normalize(a, dim=1) @ nn.functional.normalize(b, dim=1).T


def _fold(
    model: nn.Module,
    chain: Chain,
    combination: tuple[torch.Tensor, torch.Tensor],
    slots: tuple[Slot, Slot, int] | None,
    norm: str | None,
) -> bool:
    """Put what channels are of others into the weights that read them, and the rest into what follows."""
    mix, rest = combination
    layer: Any = model.get_submodule(chain.second)
    channels = len(rest)
    weight = layer.weight
    if getattr(layer, "groups", 1) > 1 or getattr(layer, "transposed", False) or weight.shape[1] % channels:
        return False
    if slots is not None and not _in_order(slots[0], slots[1], weight.shape[1] // channels):
        return False
    # [out, channels, what belongs to one of them]
    taps = weight.double().reshape(len(weight), channels, -1)
    weight.copy_(torch.einsum("oct,cd->odt", taps, mix).reshape(weight.shape))
    offset = torch.einsum("oct,c->o", taps, rest).float()
    if layer.bias is not None:
        layer.bias += offset
    elif norm is not None and model.get_submodule(norm).running_mean is not None:
        held: Any = model.get_submodule(norm)
        held.running_mean -= offset
    else:
        layer.bias = nn.Parameter(offset)
    return True


def _in_order(made: Slot, read: Slot, each: int) -> bool:
    """Whether the second reads the first's channels in order, so many of its inputs from each."""
    return all(
        len(a) == 1 and list(b) == list(range(a[0] * each, (a[0] + 1) * each))
        for a, b in zip(made.rows, read.rows, strict=True)
    )
