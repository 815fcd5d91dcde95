"""Calls the quantized operators directly, and says what they should answer: native/kernels/quantized.h in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ferryman.converter.kernel_calls import CHANNELS_FIRST as FIRST
from ferryman.converter.kernel_calls import CHANNELS_LAST as LAST
from ferryman.converter.kernel_calls import PARALLEL, Refused
from ferryman.runtime import kernels
from tests.support.kernels import backwards

FLOATS, INT8 = range(2)
F = np.float32


def _record(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _int32(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, ctypes.c_int32)


def _int64(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, ctypes.c_int64)


def _pointers(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, ctypes.c_void_p)


_POOL = {"parallel": PARALLEL, "pool": ctypes.c_void_p, "threads": ctypes.c_int32}

Conv = _record(
    "ferryman_quant_conv",
    **_int32("batch", "height", "width", "channels", "out_channels", "kernel_h", "kernel_w"),
    **_int32("stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left", "pad_bottom", "pad_right"),
    **_int32("groups", "bits", "layout", "input", "output"),
    x_scale=ctypes.c_float,
    x_zero=ctypes.c_int32,
    out_scale=ctypes.c_float,
    **_int32("out_zero", "out_low", "out_high"),
    add_scale=ctypes.c_float,
    add_zero=ctypes.c_int32,
)
ConvSizes = _record(
    "ferryman_quant_sizes",
    **_int32("out_height", "out_width"),
    **_int64("input", "weights", "per_channel", "output"),
)
ConvCall = _record("ferryman_quant_call", **_pointers("input", "weights", "scale", "bias", "add", "output"), **_POOL)
Linear = _record(
    "ferryman_quant_linear", **_int32("rows", "channels", "out_channels", "bits", "group", "input", "blocks")
)
LinearSizes = _record("ferryman_quant_linear_sizes", **_int64("input", "weights", "scales", "output"))
LinearCall = _record(
    "ferryman_quant_linear_call", **_pointers("input", "weights", "scale", "zero", "bias", "output"), **_POOL
)
Embedding = _record(
    "ferryman_quant_embedding", **_int32("rows", "channels", "bits", "group", "id_bytes", "lanes"), count=ctypes.c_int64
)
EmbeddingSizes = _record("ferryman_quant_embedding_sizes", **_int64("weights", "scales", "output"))
EmbeddingCall = _record("ferryman_quant_embedding_call", **_pointers("ids", "weights", "scale", "zero", "output"))
_SIZES = {Conv: ("conv", ConvSizes), Linear: ("linear", LinearSizes), Embedding: ("embedding", EmbeddingSizes)}


def check(numbers: Any) -> Any:
    """Sizes of an operator; raises Refused."""
    name, sizes = _SIZES[type(numbers)]
    made = sizes()
    _ask(f"{name}_check", numbers, made)
    return made


def run(numbers: Any, call: Any) -> None:
    """Compute; raises Refused."""
    _ask(f"{_SIZES[type(numbers)][0]}_run", numbers, call)


def _ask(name: str, *records: ctypes.Structure) -> None:
    function = getattr(kernels.load(), f"ferryman_quant_{name}")
    function.restype = ctypes.c_char_p
    if problem := function(*map(ctypes.byref, records)):
        raise Refused(problem.decode())


def request(kind: Any, arrays: Sequence[np.ndarray | None], threads: int = 1) -> Any:
    """A call with these arrays, which the caller keeps."""
    pointers = [None if array is None else array.ctypes.data for array in arrays]
    pool = (backwards if threads > 1 else PARALLEL(), None, threads) if len(kind._fields_) > len(pointers) else ()
    return kind(*pointers, *pool)


def pack_last(stored: np.ndarray, bits: int) -> np.ndarray:
    """uint8[..., ceil(n / per)] of unsigned[..., n], low bits first; what fills the last byte stands for 0."""
    per = 8 // bits
    padding = [(0, 0)] * (stored.ndim - 1) + [(0, -stored.shape[-1] % per)]
    fields = np.pad(stored, padding, constant_values=1 << (bits - 1)).reshape(*stored.shape[:-1], -1, per)
    return (fields << (bits * np.arange(per))).sum(-1).astype(np.uint8)


def pack_blocks(weights: np.ndarray, bits: int) -> np.ndarray:
    """uint8[blocks, vectors, 16, 4] of int[out, depth]: the layout of convolutions and linear layers."""
    stored = weights + (1 << (bits - 1))
    padding = [(0, -stored.shape[0] % 16), (0, -stored.shape[1] % 4)]
    stored = np.pad(stored, padding, constant_values=1 << (bits - 1))
    quads = stored.reshape(stored.shape[0] // 16, 16, -1, 4)
    return np.ascontiguousarray(pack_last(quads.transpose(0, 1, 3, 2), bits).transpose(0, 3, 1, 2))


def pack_conv(weight: np.ndarray, groups: int, bits: int) -> np.ndarray:
    """Of int[out, in / groups, kh, kw]."""
    out, per_group = weight.shape[:2]
    if groups > 1 and per_group == 1:
        stored = np.pad(weight.reshape(out, -1), [(0, -out % 16), (0, 0)]) + (1 << (bits - 1))
        packed = pack_last(stored, bits).reshape(-1, 16, -(-stored.shape[1] * bits // 8))
        return np.ascontiguousarray(packed.transpose(0, 2, 1))
    rows = weight.transpose(0, 2, 3, 1).reshape(groups, out // groups, -1)
    return np.stack([pack_blocks(group, bits) for group in rows])


def blocks_of(per_channel: np.ndarray, fill: float) -> np.ndarray:
    """[ceil(out / 16), groups, 16] of [out, groups]."""
    padded = np.pad(per_channel, [(0, -per_channel.shape[0] % 16), (0, 0)], constant_values=fill)
    return np.ascontiguousarray(padded.reshape(-1, 16, per_channel.shape[1]).transpose(0, 2, 1))


def quantize(x: np.ndarray, scale: np.ndarray, zero: int, low: int, high: int) -> np.ndarray:
    """int8 of floats; of nothing but zeros where the scale is 0."""
    inverse = np.where(scale == 0, F(0), F(1) / scale).astype(F)
    y = x * inverse
    y = np.where(y > F(low - zero), y, F(low - zero))
    return (zero + np.rint(np.minimum(y, F(high - zero)))).astype(np.int8)


def dynamic(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes along the last axis: int8[..., n] and the scale[..., 1]."""
    scale = np.nan_to_num(np.abs(x), nan=0, posinf=np.inf).max(-1, keepdims=True).astype(F) / F(127)
    return quantize(x, scale, 0, -127, 127), scale


@dataclass(frozen=True)
class Case:
    """One convolution and its data, all with the channels first."""

    x: np.ndarray
    """float32 or int8[batch, channels, height, width]."""
    weight: np.ndarray
    """int[out, channels / groups, kh, kw]."""
    scale: np.ndarray
    bias: np.ndarray
    bits: int = 8
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right."""
    groups: int = 1
    x_scale: float = 0.0
    x_zero: int = 0
    out: tuple[float, int, int, int] | None = None
    """Scale, zero, low and high of int8 outputs."""
    add: tuple[float, int] | None = None
    """Scale and zero of what is added, which is drawn here."""

    def conv(self, layout: int = FIRST) -> Any:
        batch, channels, height, width = self.x.shape
        out, _, kernel_h, kernel_w = self.weight.shape
        return Conv(
            *(batch, height, width, channels, out, kernel_h, kernel_w, *self.stride, *self.dilation, *self.padding),
            *(self.groups, self.bits, layout, INT8 if self.x.dtype == np.int8 else FLOATS),
            *(INT8 if self.out else FLOATS, self.x_scale, self.x_zero, *(self.out or (0, 0, 0, 0))),
            *(self.add or (0, 0)),
        )

    def added(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(5).integers(-128, 128, shape, dtype=np.int8)

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """int8 of the input, and the scale of each image."""
        batch = self.x.shape[0]
        fixed = np.full((batch, 1), self.x_scale, F)
        if self.x.dtype == np.int8:
            return self.x, fixed
        if self.x_scale:
            return quantize(self.x, F(self.x_scale), self.x_zero, -128, 127), fixed
        q, scale = dynamic(self.x.reshape(batch, -1))
        return q.reshape(self.x.shape), scale

    def expected(self) -> np.ndarray:
        q, x_scale = self.inputs()
        top, left, bottom, right = self.padding
        centred = q.astype(np.int64) - (self.x_zero if self.x_scale else 0)
        x = np.pad(centred, [(0, 0), (0, 0), (top, bottom), (left, right)])
        (sh, sw), (dh, dw) = self.stride, self.dilation
        out, _, kh, kw = self.weight.shape
        windows = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
        windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]
        w = self.weight.astype(np.int64).reshape(self.groups, out // self.groups, *self.weight.shape[1:])
        windows = windows.reshape(windows.shape[0], self.groups, -1, *windows.shape[2:])
        dots = np.einsum("bgchwij,gocij->bgohw", windows, w)
        dots = dots.reshape(dots.shape[0], out, *dots.shape[3:]).astype(F)
        y = dots * (x_scale * self.scale)[:, :, None, None] + self.bias[:, None, None]
        if self.add:
            scale, zero = self.add
            y = y + F(scale) * (self.added(y.shape).astype(np.int32) - zero).astype(F)
        if self.out:
            scale, *rest = self.out
            y = quantize(y, F(scale), *rest)
        return y

    def run(self, layout: int = FIRST, threads: int = 1) -> np.ndarray:
        conv = self.conv(layout)
        sizes = check(conv)
        out = self.weight.shape[0]
        shape = (self.x.shape[0], out, sizes.out_height, sizes.out_width)

        def placed(array: np.ndarray) -> np.ndarray:
            last = layout == LAST or array.dtype == np.int8
            return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if last else array)

        x = placed(self.x)
        weights = pack_conv(self.weight, self.groups, self.bits)
        output = placed(np.full(shape, 77, np.int8) if self.out else np.full(shape, np.nan, F))
        assert (x.size, weights.size, output.size) == (sizes.input, sizes.weights, sizes.output)
        add = placed(self.added(shape)) if self.add else None
        arrays = [x, weights, self.scale, self.bias, add, output]
        run(conv, request(ConvCall, arrays, threads))
        return output.transpose(0, 3, 1, 2) if layout == LAST or self.out else output


@dataclass(frozen=True)
class LinearCase:
    """One linear layer and its data."""

    x: np.ndarray
    """float32[rows, channels]."""
    weight: np.ndarray
    """int[out, channels]."""
    scale: np.ndarray
    """float16[out, groups]."""
    bias: np.ndarray
    bits: int
    group: int
    zero: np.ndarray | None = None
    """uint8[out, groups]: what is stored for 0."""

    def expected(self) -> np.ndarray:
        half = 1 << (self.bits - 1)
        q, x_scale = dynamic(self.x)
        total = None
        for g, begin in enumerate(range(0, self.x.shape[1], self.group)):
            part = slice(begin, begin + self.group)
            zero = half if self.zero is None else self.zero[:, g].astype(np.int64)[:, None]
            w = self.weight[:, part].astype(np.int64) + half - zero
            product = (q[:, part].astype(np.int64) @ w.T).astype(F) * self.scale[:, g].astype(F)
            total = product if total is None else total + product
        return total * x_scale + self.bias

    def run(self, threads: int = 1) -> np.ndarray:
        rows, channels = self.x.shape
        out = self.weight.shape[0]
        linear = Linear(rows, channels, out, self.bits, self.group)
        sizes = check(linear)
        weights = pack_blocks(self.weight, self.bits)
        scale = blocks_of(self.scale, 0)
        zero = None if self.zero is None else blocks_of(self.zero, 0)
        output = np.full((rows, out), np.nan, F)
        found = (self.x.size, weights.size, scale.size, output.size)
        assert found == (sizes.input, sizes.weights, sizes.scales, sizes.output)
        run(linear, request(LinearCall, [self.x, weights, scale, zero, self.bias, output], threads))
        return output


@dataclass(frozen=True)
class EmbeddingCase:
    """A table and the numbers of some of its rows."""

    ids: np.ndarray
    stored: np.ndarray
    """uint8[rows, channels]."""
    scale: np.ndarray
    """float16[rows, groups]."""
    bits: int
    group: int
    zero: np.ndarray | None = None
    lanes: bool = False

    def expected(self) -> np.ndarray:
        zero = np.full(self.scale.shape, 1 << (self.bits - 1)) if self.zero is None else self.zero

        def spread(of_group: np.ndarray) -> np.ndarray:
            return of_group.repeat(self.group, axis=1)[:, : self.stored.shape[1]]

        table = (self.stored.astype(np.int32) - spread(zero)).astype(F) * spread(self.scale.astype(F))
        return table[self.ids]

    def run(self) -> np.ndarray:
        rows, channels = self.stored.shape
        table = Embedding(rows, channels, self.bits, self.group, self.ids.itemsize, int(self.lanes), self.ids.size)
        sizes = check(table)
        weights, scale, zero = pack_last(self.stored, self.bits), self.scale, self.zero
        if self.lanes:
            weights = pack_blocks(self.stored.astype(np.int32) - (1 << (self.bits - 1)), self.bits)
            scale, zero = blocks_of(scale, 0), None if zero is None else blocks_of(zero, 0)
        output = np.full((self.ids.size, channels), np.nan, F)
        assert (weights.size, scale.size, output.size) == (sizes.weights, sizes.scales, sizes.output)
        run(table, request(EmbeddingCall, [self.ids, weights, scale, zero, output]))
        return output
