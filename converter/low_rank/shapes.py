"""The chains of thin layers that stand for one: which there are, what they cost, and what they look like.

    svd      kxk to r channels, then 1x1             of a linear layer: two of them
    spatial  kx1 to r channels, then 1xk             (Jaderberg et al. 2014)
    tucker   1x1 to r, kxk from r to s, then 1x1     Tucker-2 (Kim et al. 2016)
    cp       1x1 to r, depthwise kx1 and 1xk, 1x1    CP (Lebedev et al. 2015)

Stride, padding and dilation go with the tap they are of, so that the chain reads what the layer read.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ferryman.converter.low_rank.layers import Factorable, Layer

Way = Literal["svd", "spatial", "tucker", "cp"]
Ranks = tuple[int, ...]
"""One number, but of tucker: r and s."""
_STEPS = ((64, 16), (32, 8), (16, 4))
"""Layers at least so wide have ranks that are multiples of so much. Stock kernels work on 16 channels at a time (8 on
aarch64): a rank of 17 takes nearly as long as one of 32, as `tests.benchmarks.folded_low_rank` measures."""
_PLANE = 2


@dataclass(frozen=True)
class Price:
    """What a layer or a chain costs."""

    macs: int
    """Multiplications of all its calls in one run of the example."""
    nbytes: int
    """Of weights."""


def ways(layer: Layer) -> tuple[Way, ...]:
    """The kinds of chains that can stand for a layer."""
    spread = sum(size > 1 for size in layer.kernel)
    if not spread:
        return ("svd",)
    if spread < len(layer.kernel):
        return ("svd", "tucker")
    return ("svd", "tucker", "cp", "spatial") if spread == _PLANE else ("svd", "tucker", "cp")


def step_of(layer: Layer) -> int:
    """What ranks are multiples of."""
    narrow = min(layer.inputs, layer.outputs)
    return next((step for width, step in _STEPS if narrow >= width), 1)


def rank_max(layer: Layer, way: Way) -> Ranks:
    """The ranks at which a chain is the layer itself (of cp: surely is)."""
    taps = math.prod(layer.kernel)
    outputs, inputs = layer.outputs, layer.inputs
    if way == "svd":
        return (min(outputs, inputs * taps),)
    if way == "tucker":
        return min(inputs, outputs * taps), min(outputs, inputs * taps)
    if way == "spatial":
        return (min(inputs * layer.kernel[0], outputs * layer.kernel[1]),)
    return (min(inputs * taps, outputs * taps, inputs * outputs),)


def chain(layer: Layer, way: Way, ranks: Ranks, *, bias: bool, device: str = "cpu") -> nn.Sequential:
    """Layers of random weights that can stand for one.

    Args:
        layer: what they stand for.
        way: one of its `ways`.
        ranks: of `way`.
        bias: whether the last has one.
        device: `meta`: without weights.
    """
    module, kind = layer.module, layer.module.weight.dtype
    more: dict[str, Any] = {"dtype": kind, "device": device}
    (first, last) = (ranks[0], ranks[-1])
    if isinstance(module, nn.Linear):
        made: list[nn.Module] = [
            nn.Linear(layer.inputs, first, bias=False, **more), nn.Linear(first, layer.outputs, bias=bias, **more)
        ]  # fmt: skip
        return nn.Sequential(*made)
    conv: Callable[..., nn.Module] = type(module)
    whole = range(len(layer.kernel))
    if way == "svd":
        made = [conv(layer.inputs, first, **_taps(module, whole), bias=False, **more)]
    elif way == "tucker":
        made = [conv(layer.inputs, first, 1, bias=False, **more)]
        made += [conv(first, last, **_taps(module, whole), bias=False, **more)]
    elif way == "cp":
        made = [conv(layer.inputs, first, 1, bias=False, **more)]
        made += [conv(first, first, **_taps(module, [dim]), groups=first, bias=False, **more) for dim in whole]
    else:
        made = [conv(layer.inputs, first, **_taps(module, [0]), bias=False, **more)]
        return nn.Sequential(*made, conv(first, layer.outputs, **_taps(module, [1]), bias=bias, **more))
    return nn.Sequential(*made, conv(last, layer.outputs, 1, bias=bias, **more))


def _taps(module: Factorable, dims: Sequence[int]) -> dict[str, Any]:
    """Arguments of a convolution that has the layer's taps in some dimensions, and one tap in the others."""
    if isinstance(module, nn.Linear):
        return {}
    padding = module.padding

    def of(values: Sequence[int], other: int) -> tuple[int, ...]:
        return tuple(value if dim in dims else other for dim, value in enumerate(values))

    return {
        "kernel_size": of(module.kernel_size, 1),
        "stride": of(module.stride, 1),
        "dilation": of(module.dilation, 1),
        "padding": padding if isinstance(padding, str) else of(padding, 0),
        "padding_mode": module.padding_mode,
    }


def price(layer: Layer, way: Way | None = None, ranks: Ranks = (), *, bias: bool = False) -> Price:
    """What a layer costs, or a chain in its place; nothing is computed.

    Args:
        layer: as it is, if no way is given.
        way: of the chain.
        ranks: of the chain.
        bias: whether the chain's last has one.
    """
    made: nn.Module = _bare(layer) if way is None else chain(layer, way, ranks, bias=bias, device="meta")
    parts: list[Any] = list(made) if isinstance(made, nn.Sequential) else [made]
    macs = 0
    for call in layer.calls:
        x = torch.empty(call, device="meta", dtype=layer.module.weight.dtype)
        for part in parts:
            x = part(x)
            places = x.numel() // x.shape[-1 if isinstance(part, nn.Linear) else 1]
            macs += places * part.weight.numel()
    return Price(macs, sum(one.numel() * one.element_size() for one in made.parameters()))


def _bare(layer: Layer) -> nn.Module:
    """The layer without its weights."""
    module = layer.module
    more: dict[str, Any] = {"dtype": module.weight.dtype, "device": "meta", "bias": module.bias is not None}
    if isinstance(module, nn.Linear):
        return nn.Linear(layer.inputs, layer.outputs, **more)
    return type(module)(layer.inputs, layer.outputs, **_taps(module, range(len(layer.kernel))), **more)


def rank_grid(layer: Layer, way: Way, count: int, least: Callable[[Ranks], bool]) -> Iterator[int]:
    """Ranks to try, from low to high: evenly spread over those that are worth it, multiples of `step_of`.

    Args:
        layer: to be replaced.
        way: other than tucker, whose two ranks go together.
        count: how many at most, about.
        least: whether ranks cost less than the layer.
    """
    step = step_of(layer)
    all_ranks = range(step, rank_max(layer, way)[-1] + 1, step)
    most = step * bisect.bisect_left(all_ranks, True, key=lambda rank: not least((rank,)))  # costs grow with ranks
    stride = step * max(1, math.ceil(most / step / count))
    yield from range(most % stride or stride, most + 1, stride)
