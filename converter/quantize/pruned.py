"""Whether a quantized layer is held without its zeros: where that is smaller, and costs little time on this machine."""

from __future__ import annotations

import ctypes
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ferryman.converter import quant_calls
from ferryman.converter.quant_calls import Conv, ConvCall, Linear, LinearCall
from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.rounding import Packed
from ferryman.converter.quantize.weights import Rounded
from ferryman.converter.sparse_bits import DEPTH_MAX, pack_sparse
from ferryman.runtime import kernels

_SLOWER = 2.0
"""How many times the dense layer's time a smaller one may take."""
_SMALLER = 0.9
"""How large it may be at most."""
_ROUNDS = 15
_SAMPLE_NS = 200_000
_BUDGET_NS = 500_000_000


def without_zeros(layer: Layer, bits: int, rounded: Rounded, dense: Packed) -> Packed:
    """Hold a layer without its zeros, or as it is.

    A convolution either multiplies only those weights that are not zero, or lays all of them out at each call; linear
    layers do the latter. What is fastest is taken, unless it is much slower than the dense layer.

    Args:
        layer: which.
        bits: of a weight.
        rounded: its weights, without zero points.
        dense: how the artifact would hold all of them.

    Raises:
        DeviceError: the kernel library is there but cannot be used.
    """
    if layer.embedding or layer.depthwise or rounded.integers.shape[1] > DEPTH_MAX:
        return dense
    packed, index_bits = pack_sparse(rounded.integers.numpy().reshape(layer.weight.shape), bits)
    if packed.nbytes > _SMALLER * dense.weight.nbytes:
        return dense
    held = dataclasses.replace(dense, weight=torch.from_numpy(packed), index_bits=index_bits)
    ways = [dense, dataclasses.replace(held, unpack=True)]
    ways += [held] if layer.window else []
    if kernels.version() is None:
        return ways[1]
    calls = [_conv(layer, bits, way) if layer.window else _linear(layer, bits, rounded, way) for way in ways]
    base, *times = _time(calls)
    best = min(range(len(times)), key=times.__getitem__)
    return ways[1 + best] if times[best] <= _SLOWER * base else dense


def _size(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _conv(layer: Layer, bits: int, packed: Packed) -> Callable[[], None]:
    assert layer.window is not None  # noqa: S101  # without_zeros looked
    channels, kernel, stride, padding, dilation, groups, *_ = layer.window
    batch, _, height, width = map(_size, layer.x.meta["val"].shape)
    kind = quant_calls.INT8 if layer.static else quant_calls.FLOATS
    out = {"out_scale": 1.0, "out_low": -128, "out_high": 127} if layer.static else {}
    conv = Conv(
        *(batch, height, width, channels, len(layer.weight), *kernel, *stride, *dilation, *padding, groups, bits),
        *(0, kind, kind, 1.0 if layer.static else 0.0),
        index_bits=packed.index_bits,
        unpack=packed.unpack,
        **out,
    )
    sizes = quant_calls.check(conv)
    random = np.random.default_rng(0)
    dtype = np.int8 if layer.static else np.float32
    x = random.integers(-128, 128, sizes.input).astype(dtype)
    one = np.ones(sizes.per_channel, np.float32)
    y = np.empty(sizes.output, dtype)
    weight = packed.weight.numpy()
    call = ConvCall(
        x.ctypes.data, weight.ctypes.data, weight.nbytes, one.ctypes.data, one.ctypes.data, None, y.ctypes.data
    )
    return _kept(conv, call, (x, weight, one, y))


def _linear(layer: Layer, bits: int, rounded: Rounded, packed: Packed) -> Callable[[], None]:
    *leading, channels = map(_size, layer.x.meta["val"].shape)
    rows = int(np.prod(leading, dtype=int))
    linear = Linear(rows, channels, len(layer.weight), bits, rounded.group, 0, 0, packed.index_bits)
    sizes = quant_calls.check(linear)
    x = np.random.default_rng(0).standard_normal(sizes.input, np.float32)
    bias, y = np.zeros(len(layer.weight), np.float32), np.empty(sizes.output, np.float32)
    weight, scale = packed.weight.numpy(), packed.scale.numpy()
    call = LinearCall(
        *(x.ctypes.data, weight.ctypes.data, weight.nbytes, scale.ctypes.data, None, bias.ctypes.data, y.ctypes.data)
    )
    return _kept(linear, call, (x, weight, scale, bias, y))


def _kept(numbers: ctypes.Structure, call: ctypes.Structure, arrays: Sequence[object]) -> Callable[[], None]:
    """A call that keeps what it points at."""

    def run(_arrays: Sequence[object] = arrays) -> None:
        quant_calls.run(numbers, call)

    return run


def _time(calls: Sequence[Callable[[], None]]) -> list[float]:
    """Of each call: medians over interleaved rounds."""

    def nanoseconds(call: Callable[[], None], times: int) -> float:
        start = time.perf_counter_ns()
        for _ in range(times):
            call()
        return (time.perf_counter_ns() - start) / times

    repeats = [max(1, int(_SAMPLE_NS / max(1.0, nanoseconds(call, 2)))) for call in calls]
    found: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter_ns() + _BUDGET_NS
    for turn in range(_ROUNDS):
        order = range(len(calls))
        for index in order if turn % 2 == 0 else reversed(order):
            found[index].append(nanoseconds(calls[index], repeats[index]))
        if time.perf_counter_ns() > end:
            break
    return [statistics.median(one) for one in found]
