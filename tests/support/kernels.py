"""Calls ferryman's kernel library directly, and says what it should answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ferryman.converter import kernel_calls
from ferryman.converter.bits import pack_signs, pack_weights
from ferryman.converter.kernel_calls import BITS, PARALLEL, REALS, SIGNS, Conv, Refused, Sizes, check
from ferryman.converter.kernel_calls import CHANNELS_FIRST as FIRST
from ferryman.converter.kernel_calls import CHANNELS_LAST as LAST

__all__ = ["BITS", "FIRST", "LAST", "REALS", "SIGNS", "Case", "Conv", "Refused", "Sizes", "call", "check", "run"]


@PARALLEL
def backwards(_pool, body, argument, tasks):
    """Every order is allowed."""
    for task in reversed(range(tasks)):
        body(argument, task)


@dataclass(frozen=True)
class Case:
    """One convolution and its data."""

    x: np.ndarray
    """float32[batch, channels, height, width]."""
    weight: np.ndarray
    """float32[out, channels / groups, kh, kw]."""
    scale: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right."""
    groups: int = 1
    pad_value: int = 0
    threshold: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def conv(self, kind: int = SIGNS, layout: int = FIRST, *, bits_out: bool = False) -> Conv:
        batch, channels, height, width = self.x.shape
        out, _, kernel_h, kernel_w = self.weight.shape
        return Conv(
            *(batch, height, width, channels, out, kernel_h, kernel_w, *self.stride, *self.dilation, *self.padding),
            *(self.groups, self.pad_value, kind, bits_out, layout),
        )

    def dots(self, *, real: bool = False) -> np.ndarray:
        """Exact dot products: float64[batch, out, oh, ow]."""
        x = self.x.astype(np.float64) if real else signs(self.x)
        top, left, bottom, right = self.padding
        x = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)], constant_values=self.pad_value)
        (sh, sw), (dh, dw) = self.stride, self.dilation
        out, _, kh, kw = self.weight.shape
        windows = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
        windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]
        w = signs(self.weight).reshape(self.groups, out // self.groups, *self.weight.shape[1:])
        windows = windows.reshape(windows.shape[0], self.groups, -1, *windows.shape[2:])
        dots = np.einsum("bgchwij,gocij->bgohw", windows, w)
        return dots.reshape(dots.shape[0], out, *dots.shape[3:])

    def expected(self) -> np.ndarray:
        """float32[batch, out, oh, ow], rounded as the operator rounds."""
        dots = self.dots().astype(np.float32)
        return dots * self.scale[:, None, None] + self.bias[:, None, None]


def signs(values: np.ndarray) -> np.ndarray:
    """+1 where >= 0, else -1."""
    return np.where(values >= 0, 1.0, -1.0)


def packed(x: np.ndarray) -> np.ndarray:
    """int32[batch, height, width, words] of float[batch, channels, height, width]."""
    return pack_signs(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) >= 0)


def run(
    case: Case,
    kind: int = SIGNS,
    layout: int = FIRST,
    *,
    bits_out: bool = False,
    threads: int = 1,
    tree: np.ndarray | None = None,
) -> np.ndarray:
    """float32[batch, out, oh, ow], or int32[batch, oh, ow, words] with `bits_out`.

    `tree`: the weights, in that layout.
    """
    conv = case.conv(kind, layout, bits_out=bits_out)
    sizes = check(conv)
    shape = (case.x.shape[0], sizes.out_height, sizes.out_width)
    channels = case.weight.shape[0]
    x = packed(case.x) if kind == BITS else case.x
    if kind != BITS and layout == LAST:
        x = x.transpose(0, 2, 3, 1)
    if bits_out:
        output = np.full((*shape, -(-channels // 32)), 0x55555555, np.int32)
    else:
        output = np.full((shape[0], channels, *shape[1:]) if layout == FIRST else (*shape, channels), np.nan, "f4")
    weights = pack_weights(case.weight, case.groups)
    assert weights.size == sizes.weights
    arrays = [np.ascontiguousarray(x), weights if tree is None else tree, case.scale, case.bias, case.threshold]
    assert [arrays[0].size, output.size] == [sizes.input, sizes.output]
    call(conv, arrays, output, threads, tree_words=None if tree is None else tree.size)
    return output.transpose(0, 3, 1, 2) if layout == LAST and not bits_out else output


def call(
    conv: Conv, arrays: Sequence[np.ndarray], output: np.ndarray, threads: int = 1, *, tree_words: int | None = None
) -> None:
    """Run with these arrays as they are."""
    pointers = [array.ctypes.data for array in (*arrays, output)]
    request = kernel_calls.request(pointers, parallel=backwards if threads > 1 else None, threads=threads)
    kernel_calls.run(conv, request, tree_words)


def near_duplicates(shape: tuple[int, ...], *, prototypes: int = 4, flips: int = 2, seed: int = 0) -> np.ndarray:
    """float32[shape] weights: each channel one of a few, with a few signs turned."""
    random = np.random.default_rng(seed)
    few = random.standard_normal((prototypes, int(np.prod(shape[1:])))).astype(np.float32)
    rows = few[random.integers(0, prototypes, shape[0])]
    for row in rows:
        row[random.choice(row.size, min(flips, row.size), replace=False)] *= -1
    return rows.reshape(shape)
