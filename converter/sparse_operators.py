"""ferryman's operators with pruned float weights as torch knows them: schemas, what they compute, and their shapes.

`native/kernels/sparse.h` says what each computes; this does it with torch, densely. Images are float32 [N, C, H, W],
or [N, H, W, C] where `last_in` or `last_out` says so; of a linear layer the channels are last. Index bytes are held as
int8.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from ferryman.converter.operators import Operator, output_size, register
from ferryman.converter.quant_bits import from_depth
from ferryman.converter.sparse_bits import ALL, read_places

NO_CLIP = torch.finfo(torch.float32).max
"""Of either sign: outputs are not clipped there."""
_CONV = (
    "Tensor x, Tensor values, Tensor index, Tensor bias, Tensor? add, int channels, int[2] kernel_size, int[2] stride, "
    "int[4] padding, int[2] dilation, int groups, bool last_in, bool last_out, int index_bits, float low, float high"
)
_LINEAR = "Tensor x, Tensor values, Tensor index, Tensor bias, int index_bits, float low, float high"


def weight_rows(values: torch.Tensor, index: torch.Tensor, index_bits: int, shape: tuple[int, int]) -> torch.Tensor:
    """float32[out, depth], zeros included."""
    if index_bits == ALL:
        return values.reshape(shape)
    held = torch.from_numpy(read_places(index.view(torch.uint8).numpy(), index_bits, shape))
    return torch.zeros(shape).masked_scatter(held, values)


def _clip(y: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return y.clamp(None if low <= -NO_CLIP else low, None if high >= NO_CLIP else high) if _clips(low, high) else y


def _clips(low: float, high: float) -> bool:
    return low > -NO_CLIP or high < NO_CLIP


def _conv2d(  # as the schema says
    x: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    bias: torch.Tensor,
    add: torch.Tensor | None,
    channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    last_in: bool,
    last_out: bool,
    index_bits: int,
    low: float,
    high: float,
) -> torch.Tensor:
    shape = (bias.numel(), channels // groups, *kernel_size)
    rows = weight_rows(values, index, index_bits, (shape[0], shape[1] * kernel_size[0] * kernel_size[1]))
    weight = torch.from_numpy(from_depth(rows.numpy(), shape))
    top, left, bottom, right = padding
    images = functional.pad(x.permute(0, 3, 1, 2) if last_in else x, (left, right, top, bottom))
    y = functional.conv2d(images, weight, bias, tuple(stride), 0, tuple(dilation), groups)
    y = y.permute(0, 2, 3, 1) if last_out else y
    return _clip(y if add is None else y + add, low, high).contiguous()


def _fake_conv2d(  # as the schema says
    x: torch.Tensor,
    _values: torch.Tensor,
    _index: torch.Tensor,
    bias: torch.Tensor,
    _add: torch.Tensor | None,
    _channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    _groups: int,
    last_in: bool,
    last_out: bool,
    *_: object,
) -> torch.Tensor:
    top, left, bottom, right = padding
    height, width = x.shape[1:3] if last_in else x.shape[2:4]
    size = (
        output_size(height, top, bottom, kernel_size[0], dilation[0], stride[0]),
        output_size(width, left, right, kernel_size[1], dilation[1], stride[1]),
    )
    shape = (*size, bias.numel()) if last_out else (bias.numel(), *size)
    return x.new_empty((x.shape[0], *shape), dtype=torch.float32)


def _linear(
    x: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    bias: torch.Tensor,
    index_bits: int,
    low: float,
    high: float,
) -> torch.Tensor:
    weight = weight_rows(values, index, index_bits, (bias.numel(), x.shape[-1]))
    return _clip(functional.linear(x, weight, bias), low, high)


def _fake_linear(
    x: torch.Tensor, _values: torch.Tensor, _index: torch.Tensor, bias: torch.Tensor, *_: object
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], bias.numel()), dtype=torch.float32)


_OPERATORS: dict[str, Operator] = {
    "sparse_conv2d": (_CONV, _conv2d, _fake_conv2d),
    "sparse_linear": (_LINEAR, _linear, _fake_linear),
}

_LIBRARY = register(_OPERATORS)
"""Kept alive: the registrations go with it."""
