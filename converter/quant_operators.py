"""ferryman's quantized operators as torch knows them: schemas, what they compute, and their shapes.

`native/kernels/quantized.h` says what each computes, to the rounding; this does the same with torch, slowly. Int8
images are [N, H, W, C]; floats are [N, C, H, W], with `channels_last` [N, H, W, C]. Packed bytes are held as int8:
litert-torch writes no constants of uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from ferryman.converter.operators import NAMESPACE, output_size
from ferryman.converter.quant_bits import Bytes, halves, unpack_groups, unpack_rows, unpack_weights

_CONV = (
    "Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? add, int channels, int[2] kernel_size, int[2] stride, "
    "int[4] padding, int[2] dilation, int groups, bool channels_last, int bits, float x_scale, int x_zero, "
    "float out_scale, int out_zero, int out_low, int out_high, float add_scale, int add_zero"
)
_LINEAR = "Tensor x, Tensor weight, Tensor scale, Tensor? zero, Tensor bias, int bits, int group"
_EMBEDDING = "Tensor ids, Tensor weight, Tensor scale, Tensor? zero, int channels, int bits, int group"
_INT8 = 127


def _bytes(stored: torch.Tensor) -> Bytes:
    return stored.view(torch.uint8).numpy()


def quantize(x: torch.Tensor, scale: torch.Tensor | float, zero: int, low: int, high: int) -> torch.Tensor:
    """Floats to what int8 holds, as float32; `scale` may be one an image."""
    inverse = 1 / torch.as_tensor(scale, dtype=torch.float32)
    inverse = torch.where(inverse.isinf(), 0.0, inverse)  # of a dynamic scale of 0
    scaled = torch.nan_to_num(x * inverse, nan=float(low - zero))
    return scaled.clamp(low - zero, high - zero).round() + zero


def dynamic_scale(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """The largest magnitude over `dims`, which are kept, / 127."""
    return x.abs().amax(dims, keepdim=True) / _INT8


def _conv2d(  # as the schema says
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    add: torch.Tensor | None,
    channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
    bits: int,
    x_scale: float,
    x_zero: int,
    out_scale: float,
    out_zero: int,
    out_low: int,
    out_high: int,
    add_scale: float,
    add_zero: int,
) -> torch.Tensor:
    shape = (scale.numel(), channels // groups, *kernel_size)
    integers = torch.from_numpy(unpack_weights(_bytes(weight), shape, groups, bits))
    is_int8 = x.dtype == torch.int8
    images = x.permute(0, 3, 1, 2) if is_int8 or channels_last else x
    by = torch.tensor(x_scale, dtype=torch.float32)
    if is_int8:
        whole = images.float()
    elif x_scale > 0:
        whole = quantize(images, by, x_zero, -128, 127)
    else:
        by = dynamic_scale(images, (1, 2, 3))
        whole, x_zero = quantize(images, by, 0, -_INT8, _INT8), 0
    top, left, bottom, right = padding
    # In float64 every sum of these products is exact.
    centred = functional.pad((whole - x_zero).double(), (left, right, top, bottom))
    sums = functional.conv2d(
        centred, integers.double(), stride=tuple(stride), dilation=tuple(dilation), groups=groups
    ).float()
    y = sums * (by * scale[:, None, None]) + bias[:, None, None]
    if add is not None:
        y = y + torch.tensor(add_scale, dtype=torch.float32) * (add.permute(0, 3, 1, 2).float() - add_zero)
    if out_scale > 0:
        return quantize(y, out_scale, out_zero, out_low, out_high).to(torch.int8).permute(0, 2, 3, 1).contiguous()
    return (y.permute(0, 2, 3, 1) if channels_last else y).contiguous()


def _fake_conv2d(  # as the schema says
    x: torch.Tensor,
    _weight: torch.Tensor,
    scale: torch.Tensor,
    _bias: torch.Tensor,
    _add: torch.Tensor | None,
    _channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    _groups: int,
    channels_last: bool,
    _bits: int,
    _x_scale: float,
    _x_zero: int,
    out_scale: float,
    *_: object,
) -> torch.Tensor:
    top, left, bottom, right = padding
    height, width = x.shape[1:3] if channels_last or x.dtype == torch.int8 else x.shape[2:4]
    size = (
        output_size(height, top, bottom, kernel_size[0], dilation[0], stride[0]),
        output_size(width, left, right, kernel_size[1], dilation[1], stride[1]),
    )
    out = scale.numel()
    if out_scale > 0:
        return x.new_empty((x.shape[0], *size, out), dtype=torch.int8)
    return x.new_empty((x.shape[0], *size, out) if channels_last else (x.shape[0], out, *size), dtype=torch.float32)


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor,
    bits: int,
    group: int,
) -> torch.Tensor:
    out, channels = bias.numel(), x.shape[-1]
    stored = torch.from_numpy(unpack_weights(_bytes(weight), (out, channels), 1, bits)) + halves(bits)
    scales = torch.from_numpy(unpack_groups(scale.numpy(), out)).float()
    zeros = halves(bits) if zero is None else torch.from_numpy(unpack_groups(_bytes(zero), out)).int()
    by = dynamic_scale(x, (-1,))
    whole = quantize(x, by, 0, -_INT8, _INT8).double()
    y: torch.Tensor | None = None
    for index in range(scales.shape[1]):
        some = slice(index * group, min((index + 1) * group, channels))
        zero_of = zeros if isinstance(zeros, int) else zeros[:, index : index + 1]
        product = functional.linear(whole[..., some], (stored[:, some] - zero_of).double()).float() * scales[:, index]
        y = product if y is None else y + product
    assert y is not None  # noqa: S101  # a layer has inputs
    return y * by + bias


def _fake_linear(
    x: torch.Tensor,
    _weight: torch.Tensor,
    _scale: torch.Tensor,
    _zero: torch.Tensor | None,
    bias: torch.Tensor,
    *_: object,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], bias.numel()), dtype=torch.float32)


def _embedding(
    ids: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    channels: int,
    bits: int,
    group: int,
) -> torch.Tensor:
    rows = ids.reshape(-1)
    stored = torch.from_numpy(unpack_rows(_bytes(weight[rows]), channels, bits)) + halves(bits)
    zeros: torch.Tensor | int = halves(bits)
    if zero is not None:
        zeros = _spread(zero[rows].view(torch.uint8).int(), group, channels)
    values = (stored - zeros).float() * _spread(scale[rows].float(), group, channels)
    return values.reshape(*ids.shape, channels)


def _spread(values: torch.Tensor, group: int, channels: int) -> torch.Tensor:
    """[rows, groups] -> [rows, channels]."""
    return values.repeat_interleave(group, 1)[:, :channels]


def _fake_embedding(
    ids: torch.Tensor,
    _weight: torch.Tensor,
    _scale: torch.Tensor,
    _zero: torch.Tensor | None,
    channels: int,
    *_: object,
) -> torch.Tensor:
    return ids.new_empty((*ids.shape, channels), dtype=torch.float32)


_OPERATORS: dict[str, tuple[str, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "quant_conv2d": (_CONV, _conv2d, _fake_conv2d),
    "quant_linear": (_LINEAR, _linear, _fake_linear),
    "quant_embedding": (_EMBEDDING, _embedding, _fake_embedding),
}


def _register() -> Any:  # noqa: ANN401  # untyped in torch
    library: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's own lack
    for name, (arguments, compute, fake) in _OPERATORS.items():
        library.define(f"{name}({arguments}) -> Tensor")
        library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)")  # what ExecuTorch calls
        library.impl(name, compute, "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    return library


_LIBRARY = _register()
"""Kept alive: the registrations go with it."""
