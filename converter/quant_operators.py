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
from ferryman.converter.quant_bits import Bytes, halves, pack_rows, unpack_groups, unpack_rows, unpack_weights

_CONV = (
    "Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? add, int channels, int[2] kernel_size, int[2] stride, "
    "int[4] padding, int[2] dilation, int groups, bool channels_last, int bits, float x_scale, int x_zero, "
    "float out_scale, int out_zero, int out_low, int out_high, float add_scale, int add_zero, int index_bits=0, "
    "bool unpack=False"
)
_LINEAR = (
    "Tensor x, Tensor weight, Tensor scale, Tensor? zero, Tensor bias, int bits, int group, bool blocks, "
    "int index_bits=0"
)
_EMBEDDING = (
    "Tensor ids, Tensor weight, Tensor scale, Tensor? zero, int rows, int channels, int bits, int group, bool lanes"
)
_MATMUL = "Tensor a, Tensor b, bool turned"
_FUNCTION = "Tensor x, Tensor? weight, Tensor? bias, int kind, float epsilon, bool blocks"
_INT8 = 127
BLOCK = 32
"""Channels that share a scale where a row is in blocks."""
_SCALE_BYTES = 4
GELU, GELU_TANH, SILU, SOFTMAX, LAYER_NORM = range(5)
"""Kinds of functions."""


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
    _index_bits: int = 0,
    _unpack: bool = False,
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


def to_blocks(x: torch.Tensor) -> torch.Tensor:
    """float32[..., n] -> int8[..., n + 4 * ceil(n / 32)]: a row in blocks, then their scales."""
    whole, by = _in_blocks(x)
    flat = whole.flatten(-2)[..., : x.shape[-1]].to(torch.int8)
    return torch.cat([flat, by.squeeze(-1).contiguous().view(torch.int8)], -1)


def from_blocks(rows: torch.Tensor) -> torch.Tensor:
    """Undo `to_blocks`."""
    channels = block_channels(rows.shape[-1])
    scales = rows[..., channels:].contiguous().view(torch.float32)
    return rows[..., :channels].float() * _spread(scales.flatten(0, -2), BLOCK, channels).view(*rows.shape[:-1], -1)


def block_bytes(channels: int) -> int:
    """Of a row in blocks."""
    return channels + -(-channels // BLOCK) * _SCALE_BYTES


def block_channels(size: int) -> int:
    """Of a row in blocks of so many bytes."""
    return size - -(-size // (BLOCK + _SCALE_BYTES)) * _SCALE_BYTES


def _in_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., n] -> [..., blocks, 32] whole numbers in float32, zeros where the last has fewer, and [..., blocks, 1]."""
    blocks = functional.pad(x, (0, -x.shape[-1] % BLOCK)).reshape(*x.shape[:-1], -1, BLOCK)
    by = dynamic_scale(blocks, (-1,))
    return quantize(blocks, by, 0, -_INT8, _INT8), by


def _quantized_rows(x: torch.Tensor, *, blocks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as whole numbers in float32, and their scales: [..., 1], or [..., blocks] in blocks."""
    if x.dtype == torch.int8:
        channels = block_channels(x.shape[-1])
        return x[..., :channels].float(), x[..., channels:].contiguous().view(torch.float32)
    if blocks:
        whole, by = _in_blocks(x)
        return whole.flatten(-2)[..., : x.shape[-1]], by.squeeze(-1)
    by = dynamic_scale(x, (-1,))
    return quantize(x, by, 0, -_INT8, _INT8), by


def _matmul(a: torch.Tensor, b: torch.Tensor, turned: bool) -> torch.Tensor:
    x, x_by = _quantized_rows(a, blocks=True)
    w, w_by = _quantized_rows(b if turned else b.transpose(-1, -2), blocks=True)
    y: torch.Tensor | None = None
    for index in range(x_by.shape[-1]):
        some = slice(index * BLOCK, (index + 1) * BLOCK)
        sums = (x[..., some].double() @ w[..., some].double().transpose(-1, -2)).float()
        product = sums * w_by[..., None, :, index] * x_by[..., index : index + 1]
        y = product if y is None else y + product
    assert y is not None  # noqa: S101  # a product sums over something
    return y


def _fake_matmul(a: torch.Tensor, b: torch.Tensor, turned: bool) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-2 if turned else -1]), dtype=torch.float32)


def _function(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, kind: int, epsilon: float, blocks: bool
) -> torch.Tensor:
    if kind == SOFTMAX:
        y = torch.nan_to_num(x.softmax(-1), nan=0.0)  # of nothing but minus infinity
    elif kind == LAYER_NORM:
        y = functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)
    elif kind == SILU:
        y = functional.silu(x)
    else:
        y = functional.gelu(x, approximate="tanh" if kind == GELU_TANH else "none")
    return to_blocks(y) if blocks else y


def _fake_function(
    x: torch.Tensor, _weight: torch.Tensor | None, _bias: torch.Tensor | None, _kind: int, _epsilon: float, blocks: bool
) -> torch.Tensor:
    if blocks:
        return x.new_empty((*x.shape[:-1], block_bytes(x.shape[-1])), dtype=torch.int8)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor,
    bits: int,
    group: int,
    blocks: bool,
    _index_bits: int = 0,
) -> torch.Tensor:
    rows, by = _quantized_rows(x, blocks=blocks)
    blocks = blocks or x.dtype == torch.int8
    out, channels = bias.numel(), rows.shape[-1]
    stored = torch.from_numpy(unpack_weights(_bytes(weight), (out, channels), 1, bits)) + halves(bits)
    scales = torch.from_numpy(unpack_groups(scale.numpy(), out)).float()
    zeros = halves(bits) if zero is None else torch.from_numpy(unpack_groups(_bytes(zero), out)).int()
    whole = rows.double()
    y: torch.Tensor | None = None
    for index in range(scales.shape[1]):
        some = slice(index * group, min((index + 1) * group, channels))
        zero_of = zeros if isinstance(zeros, int) else zeros[:, index : index + 1]
        product = functional.linear(whole[..., some], (stored[:, some] - zero_of).double()).float() * scales[:, index]
        if blocks:
            product = product * by[..., index : index + 1]
        y = product if y is None else y + product
    assert y is not None  # noqa: S101  # a layer has inputs
    return (y if blocks else y * by) + bias


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
    rows: int,
    channels: int,
    bits: int,
    group: int,
    lanes: bool,
) -> torch.Tensor:
    if lanes:
        weight, scale, zero = _by_row(weight, scale, zero, (rows, channels), bits)
    chosen = ids.reshape(-1)
    stored = torch.from_numpy(unpack_rows(_bytes(weight[chosen]), channels, bits)) + halves(bits)
    zeros: torch.Tensor | int = halves(bits)
    if zero is not None:
        zeros = _spread(zero[chosen].view(torch.uint8).int(), group, channels)
    values = (stored - zeros).float() * _spread(scale[chosen].float(), group, channels)
    return values.reshape(*ids.shape, channels)


def _by_row(
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, shape: tuple[int, int], bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What lies as a linear layer's does, as a table's."""
    table = pack_rows(unpack_weights(_bytes(weight), shape, 1, bits), bits)
    scales = unpack_groups(scale.numpy(), shape[0])
    zeros = None if zero is None else torch.from_numpy(unpack_groups(_bytes(zero), shape[0])).view(torch.int8)
    return torch.from_numpy(table).view(torch.int8), torch.from_numpy(scales), zeros


def _spread(values: torch.Tensor, group: int, channels: int) -> torch.Tensor:
    """[rows, groups] -> [rows, channels]."""
    return values.repeat_interleave(group, 1)[:, :channels]


def _fake_embedding(
    ids: torch.Tensor,
    _weight: torch.Tensor,
    _scale: torch.Tensor,
    _zero: torch.Tensor | None,
    _rows: int,
    channels: int,
    *_: object,
) -> torch.Tensor:
    return ids.new_empty((*ids.shape, channels), dtype=torch.float32)


_OPERATORS: dict[str, tuple[str, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "quant_conv2d": (_CONV, _conv2d, _fake_conv2d),
    "quant_linear": (_LINEAR, _linear, _fake_linear),
    "quant_embedding": (_EMBEDDING, _embedding, _fake_embedding),
    "quant_matmul": (_MATMUL, _matmul, _fake_matmul),
    "quant_function": (_FUNCTION, _function, _fake_function),
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
