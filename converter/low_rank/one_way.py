"""Networks that are designed low-rank: before training, convolutions become chains of one-way filters.

Seed: "A priori compression of convolutional neural networks for wave simulators" (Boukraichi et al. 2023): a kernel
over channels, height and width is a product of three filters, each along one of them, from the start; so there are
fewer weights to train, to store and to multiply with, and no trained kernel to be approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.training import copy_model
from ferryman.converter.prune.budget import Cost, count
from ferryman.converter.prune.graph import positional, run
from ferryman.runtime.contracts.errors import CallerError, ModelError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPACE = 2


@dataclass(frozen=True)
class OneWay:
    """A network of one-way filters, to be trained."""

    model: nn.Module
    decisions: tuple[Decision, ...]
    before: Cost
    after: Cost


def one_way(model: nn.Module, example: Example, *, ways: int = 3) -> OneWay:
    """Put chains of one-way filters, of random weights, in the places of a model's convolutions; it is not changed.

    With three ways, a filter along channels (1x1), then one along each dimension of space for each channel (kx1, 1xk);
    depthwise convolutions, which have no filter along channels, have the others. With two, filters along space mix
    channels too: kx1 from inputs to outputs, then 1xk among outputs.

    Args:
        model: to be trained.
        example: positional inputs of one call.
        ways: 3 or 2.

    Raises:
        CallerError: ways is something else, or the model fails with the example.
        ModelError: it has no convolutions that can be replaced.
    """
    if ways not in (2, 3):
        raise CallerError(f"a kernel is cut into filters of 3 ways or of 2, found {ways!r}")
    inputs = positional(example)
    expected = [one.shape for one in run(model, inputs)]
    made = copy_model(model)
    names: dict[nn.Module, list[str]] = {}
    for path, part in made.named_modules(remove_duplicate=False):
        if isinstance(part, nn.modules.conv._ConvNd):  # noqa: SLF001  # the base of all convolutions
            names.setdefault(part, []).append(path)
    decisions = []
    for part, paths in names.items():
        why = _unfit(part, paths)
        chain = None if why else _chain(part, ways)
        reason = why or f"{_said(chain)}: {_weights(chain) / _weights(part):.0%} of the weights"
        for path in paths:
            decisions.append(Decision(path, type(part).__name__, "float" if why else "replaced", reason))
            if chain is not None:
                owner, _, name = path.rpartition(".")
                setattr(made.get_submodule(owner), name, chain)
    if not any(one.decision == "replaced" for one in decisions):
        kept = "; ".join(f"{one.path or 'the model'}: {one.reason}" for one in decisions)
        raise ModelError(f"nothing of the model can be one-way: {kept or 'it has no convolutions'}")
    found = [one.shape for one in run(made, inputs)]
    if found != expected:
        raise ModelError(f"the model gives {found} of one-way filters, {expected} without: it looks into its layers")
    return OneWay(made, tuple(decisions), count(model, inputs), count(made, inputs))


def _unfit(part: nn.Module, paths: Sequence[str]) -> str | None:
    if type(part) not in _CONVS:
        return f"only {', '.join(one.__name__ for one in _CONVS)} themselves have one-way filters"
    assert isinstance(part, _CONVS)  # noqa: S101  # as just seen
    if "" in paths:
        return "it is the model itself"
    depthwise = part.groups == part.in_channels == part.out_channels
    if part.groups > 1 and not depthwise:
        return f"in {part.groups} groups"
    spread = sum(size > 1 for size in part.kernel_size)
    if spread < (_SPACE if depthwise else 1):
        return "its filters are one-way already"
    return None


def _chain(part: Any, ways: int) -> nn.Sequential:  # noqa: ANN401  # a convolution
    """One-way filters that read what a convolution reads, and give what it gives."""
    conv, outputs = type(part), part.out_channels
    depthwise = part.groups == part.in_channels == outputs > 1
    along = [dim for dim, size in enumerate(part.kernel_size) if size > 1]
    across = ways == 3 and not depthwise  # noqa: PLR2004  # a filter along channels
    made: list[nn.Module] = [conv(part.in_channels, outputs, 1, bias=False)] if across else []
    for dim in along:
        last = dim == along[-1]
        inputs = outputs if made else part.in_channels
        groups = outputs if across or depthwise else 1
        # What a dimension without taps skips, or is padded by, goes with the last filter.
        dims = [dim, *(one for one in range(len(part.kernel_size)) if one not in along)] if last else [dim]
        made.append(conv(inputs, outputs, **_taps(part, dims), groups=groups, bias=last and part.bias is not None))
    chain = nn.Sequential(*made).to(part.weight.device, part.weight.dtype)
    with torch.no_grad():  # each but the last keeps the variance, as a chain of usual weights would not
        parts: list[Any] = list(chain)
        for one in parts[:-1]:
            one.weight.normal_(0, 1 / math.sqrt(one.weight[0].numel()))
    return chain.train(part.training)


def _taps(part: Any, dims: Sequence[int]) -> dict[str, Any]:  # noqa: ANN401  # a convolution
    """Arguments of a convolution that has a part's taps along some dimensions."""

    def of(values: Sequence[int], other: int) -> tuple[int, ...]:
        return tuple(value if dim in dims else other for dim, value in enumerate(values))

    return {
        "kernel_size": of(part.kernel_size, 1),
        "stride": of(part.stride, 1),
        "dilation": of(part.dilation, 1),
        "padding": part.padding if isinstance(part.padding, str) else of(part.padding, 0),
        "padding_mode": part.padding_mode,
    }


def _said(chain: nn.Sequential | None) -> str:
    parts: list[Any] = list(chain or ())
    names = ["x".join(map(str, one.kernel_size)) + (" depthwise" if one.groups > 1 else "") for one in parts]
    return ", ".join(names)


def _weights(part: nn.Module | None) -> int:
    return sum(one.numel() for one in part.parameters()) if part is not None else 0
