"""Which weights of which layers become zero.

Weights of different layers are compared by LAMP's score (Lee et al., Layer-Adaptive Sparsity for the Magnitude-based
Pruning, ICLR 2021): a weight's square over the sum of all squares of its layer that are no smaller. It does not depend
on how large a layer's weights are as a whole, which batch norms make arbitrary. The largest weight of each layer has
the highest score there is, so that no layer loses all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ferryman.converter.compress.binary_policy import Example, call_order
from ferryman.converter.prune.unstructured.recipe import Pattern, Sparsity
from ferryman.runtime.contracts.errors import CallerError

_CONVOLUTIONS = nn.modules.conv._ConvNd  # noqa: SLF001  # the base of all convolutions
_LISTED = (_CONVOLUTIONS, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention)
_PRUNED = (nn.Conv1d, nn.Conv2d, nn.Linear, NonDynamicallyQuantizableLinear, nn.MultiheadAttention)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_WHOLE = 100


@dataclass(frozen=True, eq=False)
class Target:
    """A weight tensor that gets zeros."""

    paths: tuple[str, ...]
    """Of the layers that read it."""
    parameter: nn.Parameter
    """[out, inputs, *taps]."""
    share: float | None
    """Of zeros, which `layers` of the recipe gives it; None: as all others."""


@dataclass(frozen=True)
class Layers:
    """What the layers of a model are to become."""

    targets: tuple[Target, ...]
    dense: dict[str, str]
    """Path -> why it stays dense."""
    kinds: dict[str, str]
    """Path -> class; of all layers, in the order of calls."""


def find_targets(model: nn.Module, sparsity: Sparsity, example: Example | None = None) -> Layers:
    """Decide on every layer with weights.

    Pruned are nn.Conv1d, nn.Conv2d, nn.Linear and the projections of nn.MultiheadAttention; not, by default, the first
    convolution (few weights, which all else depends on) and depthwise ones (so few weights that nothing is gained).

    Args:
        model: not changed.
        sparsity: its `layers` say otherwise.
        example: inputs of one call, to see which layers are called, and in which order; else the order of registration
            counts.

    Raises:
        CallerError: a pattern matches no layer, the model fails with the example, weights are not finite, or nothing
            is left to prune.
    """
    layers: dict[str, nn.Module] = {path: part for path, part in model.named_modules() if isinstance(part, _LISTED)}
    for pattern in sparsity.layers:
        if not any(fnmatchcase(path, pattern) for path in layers):
            raise CallerError(f"no layer is named {pattern!r}; there are: {', '.join(layers) or 'none'}")
    called = list(layers) if example is None else call_order(model, layers, example)
    # An attention module calls its last layer by its weights alone.
    inside = [f"{path}.out_proj" for path in called if isinstance(layers[path], nn.MultiheadAttention)]
    called += [path for path in inside if path not in called]
    order = [*called, *(path for path in layers if path not in called)]
    first = next((path for path in called if isinstance(layers[path], _CONVOLUTIONS)), None)
    holders = _holders(model)
    found: dict[nn.Parameter, tuple[list[str], float | None]] = {}
    dense: dict[str, str] = {}
    for path in order:
        layer = layers[path]
        share = next((own / _WHOLE for key, own in sparsity.layers.items() if fnmatchcase(path, key)), None)
        reason = _unfit(layer, holders) or ("as the recipe says" if share == 0 else None)
        if reason is None and share is None:
            reason = _spared(layer, first=path == first, called=path in called)
        if reason is not None:
            dense[path] = reason
            continue
        for parameter in _weights_of(layer):
            found.setdefault(parameter, ([], share))[0].append(path)
    targets = tuple(Target(tuple(paths), parameter, share) for parameter, (paths, share) in found.items())
    if not targets:
        why = (
            "; ".join(f"{path}: {reason}" for path, reason in dense.items())
            or "it has no convolutions or linear layers"
        )
        raise CallerError(f"nothing of the model can be pruned: {why}")
    for target in targets:
        if not target.parameter.isfinite().all():
            raise CallerError(f"the weights of {target.paths[0]} are not finite: no magnitudes can be compared")
    return Layers(targets, dense, {path: type(layers[path]).__name__ for path in order})


def _weights_of(layer: nn.Module) -> list[nn.Parameter]:
    names = _PROJECTIONS if isinstance(layer, nn.MultiheadAttention) else ("weight",)
    own = dict(layer.named_parameters(recurse=False))
    return [own[name] for name in names if name in own]


def _holders(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The modules that have each parameter."""
    found: dict[nn.Parameter, list[nn.Module]] = {}
    for part in model.modules():
        for parameter in part.parameters(recurse=False):
            found.setdefault(parameter, []).append(part)
    return found


def _unfit(layer: nn.Module, holders: dict[nn.Parameter, list[nn.Module]]) -> str | None:
    """Why a layer cannot be pruned; None if it can."""
    if type(layer) not in _PRUNED:
        return "only nn.Conv1d, nn.Conv2d, nn.Linear and nn.MultiheadAttention themselves are pruned"
    weights = _weights_of(layer)
    if not weights:
        return "its weights are computed from others"
    if any(type(holder) not in _PRUNED for weight in weights for holder in holders[weight]):
        return "its weights are another kind of layer's too"
    return None


def _spared(layer: nn.Module, *, first: bool, called: bool) -> str | None:
    """Why a layer that can be pruned is not by default; None if it is."""
    if not called:
        return "never called with the example"
    if first:
        return "the first convolution"
    depthwise = isinstance(layer, _CONVOLUTIONS) and layer.groups > 1 and layer.groups == layer.in_channels
    return "depthwise" if depthwise else None


# Masks.


@torch.no_grad()
def choose_masks(targets: Sequence[Target], sparsity: Sparsity, done: float = 1) -> dict[Target, torch.Tensor]:
    """Choose what stays by today's magnitudes.

    Args:
        targets: of one model.
        sparsity: the recipe.
        done: how much of it; 1: all. A pattern of which some is done has the zeros that it can spare most.

    Returns:
        bool of each parameter's shape: which weights stay. The number of zeros is exact, rounded to whole weights.
    """
    masks = {one: _without(one.parameter.abs(), one.share * done) for one in targets if one.share is not None}
    common = [one for one in targets if one.share is None]
    if sparsity.pattern:
        return masks | {one: _pattern_mask(one.parameter, sparsity.pattern, done) for one in common}
    if sparsity.layer or not common:
        return masks | {one: _without(one.parameter.abs(), sparsity.share * done) for one in common}
    scores = [lamp_scores(one.parameter) for one in common]
    counts = _counts(scores, round(sparsity.share * done * sum(map(len, scores))))
    return masks | {one: _smallest_out(one.parameter.abs(), count) for one, count in zip(common, counts, strict=True)}


@torch.no_grad()
def apply_masks(masks: dict[Target, torch.Tensor]) -> None:
    """Set to zero what does not stay."""
    for target, mask in masks.items():
        target.parameter.mul_(mask)


def lamp_scores(weight: torch.Tensor) -> NDArray[np.float64]:
    """Of all weights, the smallest weight's first: float64[numel], above 0 and up to 1; 0 where a weight is zero."""
    squares = np.sort(weight.detach().abs().flatten().numpy()).astype(np.float64) ** 2
    rest = squares[::-1].cumsum()[::-1]
    scores = np.zeros_like(squares)
    np.divide(squares, rest, out=scores, where=squares > 0)
    return scores


def _counts(scores: list[NDArray[np.float64]], zeros: int) -> list[int]:
    """How many of each layer are among the lowest scores of all; scores rise with magnitudes within a layer."""
    if not zeros:
        return [0] * len(scores)
    highest = np.partition(np.concatenate(scores), zeros - 1)[zeros - 1]
    counts = [int(np.searchsorted(one, highest)) for one in scores]
    for index, one in enumerate(scores):  # those of just that score go layer by layer, until there are enough
        ties = int(np.searchsorted(one, highest, side="right")) - counts[index]
        counts[index] += min(ties, zeros - sum(counts))
    return counts


def depth_order(weight: torch.Tensor) -> torch.Tensor:
    """[out, inputs, *taps] as [out, depth], with position = tap * inputs + input: the order kernels read rows in."""
    return weight.movedim(1, -1).flatten(1)


def _from_depth_order(rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    out, inputs, *taps = shape
    return rows.reshape(out, *taps, inputs).movedim(-1, 1)


def pattern_holds(weight: torch.Tensor, pattern: Pattern) -> bool:
    """Whether at most `kept` of every `of` neighbours in depth order are not zero."""
    rows = depth_order(weight != 0)
    padded = nn.functional.pad(rows, (0, -rows.shape[1] % pattern.of))
    return bool((padded.reshape(len(rows), -1, pattern.of).sum(2) <= pattern.kept).all())


def _without(values: torch.Tensor, share: float) -> torch.Tensor:
    return _smallest_out(values, round(share * values.numel()))


def _smallest_out(values: torch.Tensor, count: int) -> torch.Tensor:
    """True but for the smallest, whose number is exact: of equal ones the first go."""
    if not count:
        return torch.ones_like(values, dtype=torch.bool)
    flat = values.flatten()
    highest = flat.kthvalue(count).values
    mask = flat > highest
    equal = (flat == highest).nonzero().flatten()
    mask[equal[len(equal) - int((~mask).sum()) + count :]] = True
    return mask.view_as(values)


def _pattern_mask(weight: torch.Tensor, pattern: Pattern, done: float) -> torch.Tensor:
    rows = depth_order(weight.abs())
    out, depth = rows.shape
    # What pads the last group is smaller than any weight, so that it takes the zeros first.
    padded = nn.functional.pad(rows, (0, -depth % pattern.of), value=-1).reshape(out, -1, pattern.of)
    ranks = padded.argsort(dim=2, stable=True).argsort(2)
    spare = (ranks < pattern.of - pattern.kept).flatten(1)[:, :depth]
    magnitudes = torch.where(spare, rows, math.inf).flatten()
    mask = _smallest_out(magnitudes, round(done * int(spare.sum())))
    return _from_depth_order(mask.view(out, depth), weight.shape)
