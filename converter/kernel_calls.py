"""The kernel library's records and calls, as native/kernels/kernels.h has them, for those who measure and test it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ferryman.runtime import kernels

SIGNS, BITS, REALS = range(3)
"""What the inputs are taken for."""
CHANNELS_FIRST, CHANNELS_LAST = range(2)


class Conv(ctypes.Structure):
    """ferryman_binary_conv."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            *("batch", "height", "width", "channels", "out_channels", "kernel_h", "kernel_w"),
            *("stride_h", "stride_w", "dilation_h", "dilation_w"),
            *("pad_top", "pad_left", "pad_bottom", "pad_right", "groups", "pad_value", "input", "bits_out", "layout"),
        )
    )


class Sizes(ctypes.Structure):
    """ferryman_binary_sizes: elements of 4 bytes."""

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


def check(conv: Conv) -> Sizes:
    """Sizes of a convolution.

    Raises:
        Refused: the library will not have it.
        DeviceError: as `kernels.load`.
    """
    sizes = Sizes()
    _ask(kernels.load().ferryman_binary_check(ctypes.byref(conv), ctypes.byref(sizes)))
    return sizes


def check_tree(conv: Conv, pointer: int, words: int) -> None:
    """Whether these words are a tree for a convolution that passed `check`.

    Raises:
        Refused: they are not.
        DeviceError: as `kernels.load`.
    """
    _ask(_tree_function("check")(ctypes.byref(conv), ctypes.c_void_p(pointer), ctypes.c_int64(words)))


def run(conv: Conv, call: Call, tree_words: int | None = None) -> None:
    """Compute; with `tree_words` the weights are a tree of so many words.

    Raises:
        Refused: the library will not.
        DeviceError: as `kernels.load`.
    """
    if tree_words is None:
        _ask(kernels.load().ferryman_binary_run(ctypes.byref(conv), ctypes.byref(call)))
    else:
        _ask(_tree_function("run")(ctypes.byref(conv), ctypes.byref(call), ctypes.c_int64(tree_words)))


def request(pointers: Sequence[int], *, parallel: Any = None, threads: int = 1) -> Call:  # noqa: ANN401  # ctypes' own
    """Make a call of input, weights, scale, bias, threshold and output; the caller keeps what they point at."""
    return Call(*pointers, parallel or PARALLEL(), None, threads)


def _tree_function(name: str) -> Any:  # noqa: ANN401  # ctypes' own
    function = getattr(kernels.load(), f"ferryman_tree_{name}")
    function.restype = ctypes.c_char_p  # kept
    return function


def _ask(problem: bytes | None) -> None:
    if problem:
        raise Refused(problem.decode())
