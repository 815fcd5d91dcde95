"""Calls ferryman's kernel library directly, and says what it should answer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ferryman.converter.bits import pack_signs, pack_weights
from ferryman.runtime import kernels

SIGNS, BITS, REALS = range(3)
FIRST, LAST = range(2)


class Conv(ctypes.Structure):
    """ferryman_binary_conv of kernels.h."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            *("batch", "height", "width", "channels", "out_channels", "kernel_h", "kernel_w"),
            *("stride_h", "stride_w", "dilation_h", "dilation_w"),
            *("pad_top", "pad_left", "pad_bottom", "pad_right", "groups", "pad_value", "input", "bits_out", "layout"),
        )
    )


class Sizes(ctypes.Structure):
    """ferryman_binary_sizes."""

    _fields_ = (
        ("out_height", ctypes.c_int32),
        ("out_width", ctypes.c_int32),
        ("input", ctypes.c_int64),
        ("weights", ctypes.c_int64),
        ("per_channel", ctypes.c_int64),
        ("output", ctypes.c_int64),
    )


BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, BODY, ctypes.c_void_p, ctypes.c_size_t)


class Call(ctypes.Structure):
    """ferryman_binary_call."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weights", "scale", "bias", "threshold", "output")),
        ("parallel", PARALLEL),
        ("pool", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


class Refused(Exception):
    """What the library said."""


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


def check(conv: Conv) -> Sizes:
    """Sizes of a convolution.

    Raises:
        Refused: the library will not have it.
    """
    sizes = Sizes()
    if problem := kernels.load().ferryman_binary_check(ctypes.byref(conv), ctypes.byref(sizes)):
        raise Refused(problem.decode())
    return sizes


def run(case: Case, kind: int = SIGNS, layout: int = FIRST, *, bits_out: bool = False, threads: int = 1) -> np.ndarray:
    """float32[batch, out, oh, ow], or int32[batch, oh, ow, words] with `bits_out`."""
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
    arrays = [np.ascontiguousarray(x), pack_weights(case.weight, case.groups), case.scale, case.bias, case.threshold]
    assert [arrays[0].size, arrays[1].size, output.size] == [sizes.input, sizes.weights, sizes.output]
    call(conv, arrays, output, threads)
    return output.transpose(0, 3, 1, 2) if layout == LAST and not bits_out else output


def call(conv: Conv, arrays: Sequence[np.ndarray], output: np.ndarray, threads: int = 1) -> None:
    """Run with these arrays as they are."""
    pointers = [array.ctypes.data for array in arrays]
    request = Call(*pointers, output.ctypes.data, backwards if threads > 1 else PARALLEL(), None, threads)
    if problem := kernels.load().ferryman_binary_run(ctypes.byref(conv), ctypes.byref(request)):
        raise Refused(problem.decode())
