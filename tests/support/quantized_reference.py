"""What the quantized operators answer, in numpy, to the letter of quantized.h; and the bytes of their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 16
QUADS = 4


@dataclass(frozen=True)
class Int8:
    """How int8 stand for floats."""

    scale: float
    zero: int = 0
    low: int = -128
    high: int = 127


def quantize(x: np.ndarray, by: Int8) -> np.ndarray:
    """float32[...] -> int64[...]."""
    return _rounded(np.asarray(x, np.float32) * (np.float32(1) / np.float32(by.scale)), by)


def dynamic(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[rows, n] -> int64[rows, n], and the scale of each row."""
    scale = np.nan_to_num(np.abs(x), nan=0, posinf=np.inf).max(axis=1).astype(np.float32) / np.float32(127)
    inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale).astype(np.float32)
    return _rounded(x * inverse[:, None], Int8(1.0, 0, -127, 127)), scale


def _rounded(scaled: np.ndarray, by: Int8) -> np.ndarray:
    low, high = np.float32(by.low - by.zero), np.float32(by.high - by.zero)
    ends = np.minimum(np.maximum(np.where(np.isnan(scaled), low, scaled), low), high)
    return by.zero + np.rint(ends).astype(np.int64)


@dataclass(frozen=True)
class QuantConv:
    """A convolution and its data, channels first."""

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
    """0: dynamic."""
    x_zero: int = 0
    out: Int8 | None = None
    """None: floats."""
    add: np.ndarray | None = None
    """int8[batch, out, out height, out width]."""
    add_scale: float = 0.0
    add_zero: int = 0

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        """x - x_zero, and the scale of each image."""
        batch = len(self.x)
        if self.x.dtype == np.int8:
            return self.x.astype("i8") - self.x_zero, np.full(batch, self.x_scale, np.float32)
        if self.x_scale == 0:
            q, scale = dynamic(self.x.reshape(batch, -1))
            return q.reshape(self.x.shape), scale
        return quantize(self.x, Int8(self.x_scale, self.x_zero)) - self.x_zero, np.full(batch, self.x_scale, np.float32)

    @np.errstate(all="ignore")
    def expected(self) -> np.ndarray:
        """float32 or int8[batch, out, out height, out width]."""
        x, x_scale = self.quantized()
        top, left, bottom, right = self.padding
        x = np.pad(x.astype("f8"), [(0, 0), (0, 0), (top, bottom), (left, right)])
        (sh, sw), (dh, dw) = self.stride, self.dilation
        out, _, kh, kw = self.weight.shape
        windows = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
        windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]
        windows = windows.reshape(windows.shape[0], self.groups, -1, *windows.shape[2:])
        weight = self.weight.astype("f8").reshape(self.groups, out // self.groups, *self.weight.shape[1:])
        acc = np.einsum("bgchwij,gocij->bgohw", windows, weight)
        acc = acc.reshape(acc.shape[0], out, *acc.shape[3:])
        scale = x_scale[:, None] * self.scale
        y = acc.astype(np.float32) * scale[:, :, None, None] + self.bias[:, None, None]
        if self.add is not None:
            y = y + np.float32(self.add_scale) * (self.add.astype("i8") - self.add_zero).astype(np.float32)
        return y if self.out is None else quantize(y, self.out).astype(np.int8)

    def packed(self) -> np.ndarray:
        out, channels, kh, kw = self.weight.shape
        if self.groups > 1 and channels == 1:
            return pack_depthwise(self.weight.reshape(out, kh * kw), self.bits)
        rows = self.weight.transpose(0, 2, 3, 1).reshape(self.groups, out // self.groups, kh * kw * channels)
        return pack_lanes(rows, self.bits)


@dataclass(frozen=True)
class QuantLinear:
    """A linear layer; stored weights are unsigned."""

    stored: np.ndarray
    """int[out, channels]."""
    scale: np.ndarray
    """float16[out, groups]."""
    zero: np.ndarray | None
    """uint8[out, groups]."""
    bias: np.ndarray
    bits: int
    group: int

    @np.errstate(all="ignore")
    def expected(self, x: np.ndarray) -> np.ndarray:
        """float32[..., channels] -> float32[..., out]."""
        rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
        q, x_scale = dynamic(rows)
        groups = self.scale.shape[1]
        zero = np.full(self.scale.shape, 1 << (self.bits - 1)) if self.zero is None else self.zero.astype("i8")
        filler = [(0, 0), (0, groups * self.group - rows.shape[1])]  # the last group may have fewer
        q = np.pad(q, filler).reshape(len(rows), groups, -1)
        weight = np.pad(self.stored.astype("i8"), filler).reshape(len(self.stored), groups, -1) - zero[:, :, None]
        acc = np.einsum("rgd,ngd->grn", q, weight)
        parts = acc.astype(np.float32) * self.scale.astype(np.float32).T[:, None, :]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return (total * x_scale[:, None] + self.bias).reshape(*x.shape[:-1], -1)

    def constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The bytes of weights, scales and zeros."""
        weight = pack_lanes(self.stored[None].astype("i8") - (1 << (self.bits - 1)), self.bits)
        return weight, by_lanes(self.scale), None if self.zero is None else by_lanes(self.zero)


@dataclass(frozen=True)
class QuantEmbedding:
    """A table; what it stores is unsigned."""

    stored: np.ndarray
    """int[rows, channels]."""
    scale: np.ndarray
    """float16[rows, groups]."""
    zero: np.ndarray | None
    bits: int
    group: int

    @np.errstate(all="ignore")
    def expected(self, ids: np.ndarray) -> np.ndarray:
        zero = np.full(self.scale.shape, 1 << (self.bits - 1)) if self.zero is None else self.zero.astype("i8")
        group_of = np.arange(self.stored.shape[1]) // self.group
        table = (self.stored.astype("i8") - zero[:, group_of]).astype(np.float32)
        return (table * self.scale.astype(np.float32)[:, group_of])[ids]

    def packed(self, *, lanes: bool = False) -> np.ndarray:
        if lanes:
            return pack_lanes(self.stored[None].astype("i8") - (1 << (self.bits - 1)), self.bits)
        per = 8 // self.bits
        padded = np.pad(self.stored, [(0, 0), (0, -self.stored.shape[1] % per)], constant_values=1 << (self.bits - 1))
        return _join(padded.reshape(len(padded), -1, per), self.bits)


def pack_lanes(weight: np.ndarray, bits: int) -> np.ndarray:
    """int[groups, out, depth] -> uint8[groups, ceil(out / 16), ceil(ceil(depth / 4) / per), 16, 4]."""
    per = 8 // bits
    groups, out, depth = weight.shape
    padded = np.pad(weight, [(0, 0), (0, -out % LANES), (0, -depth % (QUADS * per))]) + (1 << (bits - 1))
    split = padded.reshape(groups, -1, LANES, padded.shape[2] // (QUADS * per), per, QUADS)
    return _join(split.transpose(0, 1, 3, 2, 5, 4), bits)


def pack_depthwise(weight: np.ndarray, bits: int) -> np.ndarray:
    """int[out, taps] -> uint8[ceil(out / 16), ceil(taps / per), 16]."""
    per = 8 // bits
    out, taps = weight.shape
    padded = np.pad(weight, [(0, -out % LANES), (0, -taps % per)]) + (1 << (bits - 1))
    split = padded.reshape(-1, LANES, padded.shape[1] // per, per)
    return _join(split.transpose(0, 2, 1, 3), bits)


def _join(stored: np.ndarray, bits: int) -> np.ndarray:
    """int[..., per], low bits first -> uint8[...]."""
    shifts = bits * np.arange(stored.shape[-1])
    return np.ascontiguousarray((stored.astype("i8") << shifts).sum(-1).astype(np.uint8))


def by_lanes(values: np.ndarray) -> np.ndarray:
    """[out, groups] -> [ceil(out / 16), groups, 16]; what fills up is 1."""
    padded = np.pad(values, [(0, -len(values) % LANES), (0, 0)], constant_values=1)
    return np.ascontiguousarray(padded.reshape(-1, LANES, values.shape[1]).transpose(0, 2, 1))


# Cases.


def weights_of(random: np.random.Generator, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    half = 1 << (bits - 1)
    return random.integers(-half, half, shape)


def int8_of(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.integers(-128, 128, shape, dtype=np.int8)


def floats_of(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def linear_case(
    channels: int, out: int, bits: int = 4, group: int = 32, *, zero: bool = True, seed: int = 0
) -> QuantLinear:
    random = np.random.default_rng(seed)
    shape = (out, -(-channels // group))
    return QuantLinear(
        stored=random.integers(0, 1 << bits, (out, channels)),
        scale=random.uniform(0.001, 0.1, shape).astype(np.float16),
        zero=random.integers(0, 1 << bits, shape, dtype=np.uint8) if zero else None,
        bias=floats_of(random, out),
        bits=bits,
        group=group,
    )


def embedding_case(
    rows: int, channels: int, bits: int = 4, group: int = 32, *, zero: bool = True, seed: int = 0
) -> QuantEmbedding:
    random = np.random.default_rng(seed)
    shape = (rows, -(-channels // group))
    return QuantEmbedding(
        stored=random.integers(0, 1 << bits, (rows, channels)),
        scale=random.uniform(0.001, 0.1, shape).astype(np.float16),
        zero=random.integers(0, 1 << bits, shape, dtype=np.uint8) if zero else None,
        bits=bits,
        group=group,
    )


def conv_case(
    channels: int = 32,
    out: int = 16,
    *,
    size: int = 4,
    batch: int = 1,
    bits: int = 8,
    kernel: int = 3,
    groups: int = 1,
    int8: bool = False,
    int8_out: bool = False,
    adds: bool = False,
    x_scale: float = 0.02,
    stride: int = 1,
    seed: int = 0,
) -> QuantConv:
    """Padded, so that a stride of 1 keeps the size (of odd kernels)."""
    random = np.random.default_rng(seed)
    pad = kernel // 2
    out_size = (size + 2 * pad - kernel) // stride + 1
    shape = (batch, channels, size, size)
    return QuantConv(
        x=int8_of(random, shape) if int8 else floats_of(random, *shape),
        weight=weights_of(random, bits, (out, channels // groups, kernel, kernel)),
        scale=random.uniform(0.001, 0.02, out).astype(np.float32),
        bias=floats_of(random, out),
        bits=bits,
        stride=(stride, stride),
        padding=(pad,) * 4,
        groups=groups,
        x_scale=x_scale,
        x_zero=0 if x_scale == 0 else 5,
        out=Int8(0.05, -3, -100, 120) if int8_out else None,
        add=int8_of(random, (batch, out, out_size, out_size)) if adds else None,
        add_scale=0.03 if adds else 0.0,
        add_zero=7 if adds else 0,
    )
