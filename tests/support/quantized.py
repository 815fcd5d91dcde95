"""Calls the quantized operators of the kernel library directly."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ferryman.converter.kernel_calls import CHANNELS_FIRST as FIRST
from ferryman.converter.kernel_calls import CHANNELS_LAST as LAST
from ferryman.converter.kernel_calls import PARALLEL
from ferryman.converter.quant_calls import (
    FLOATS,
    INT8,
    Conv,
    ConvCall,
    Embedding,
    EmbeddingCall,
    Linear,
    LinearCall,
    check,
    run,
)
from tests.support.kernels import backwards
from tests.support.quantized_reference import QuantConv, QuantEmbedding, QuantLinear, by_lanes
from tests.support.sparse_reference import sparse_blob

F = np.float32


def request(kind: Any, arrays: Sequence[np.ndarray | None], threads: int = 1) -> Any:
    """A call with these arrays, which the caller keeps."""
    call = kind()
    names = [name for name, of in kind._fields_ if of is ctypes.c_void_p and name != "pool"]
    for name, array in zip(names, arrays, strict=True):
        setattr(call, name, None if array is None else array.ctypes.data)
        if name == "weights" and hasattr(call, "weight_bytes"):
            call.weight_bytes = array.nbytes
    if hasattr(call, "parallel"):
        call.parallel, call.threads = backwards if threads > 1 else PARALLEL(), threads
    return call


def run_conv(
    case: QuantConv, layout: int = FIRST, threads: int = 1, sparse: tuple[int, bool] | None = None
) -> np.ndarray:
    """What the kernels answer, channels first; `sparse`: bits of the index, and whether weights are unpacked."""
    batch, channels, height, width = case.x.shape
    out, _, kernel_h, kernel_w = case.weight.shape
    ends = (case.out.scale, case.out.zero, case.out.low, case.out.high) if case.out else (0, 0, 0, 0)
    conv = Conv(
        *(batch, height, width, channels, out, kernel_h, kernel_w, *case.stride, *case.dilation, *case.padding),
        *(case.groups, case.bits, layout, INT8 if case.x.dtype == np.int8 else FLOATS, INT8 if case.out else FLOATS),
        *(case.x_scale, case.x_zero, *ends, case.add_scale, case.add_zero, *(sparse or (0, False))),
    )
    sizes = check(conv)
    shape = (batch, out, sizes.out_height, sizes.out_width)

    def placed(array: np.ndarray) -> np.ndarray:
        last = layout == LAST or array.dtype == np.int8
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if last else array)

    x = placed(case.x)
    weights = sparse_blob(case.weight, case.bits, sparse[0]) if sparse else case.packed()
    output = placed(np.full(shape, 77, np.int8) if case.out else np.full(shape, np.nan, F))
    assert (x.size, 0 if sparse else weights.size, output.size) == (sizes.input, sizes.weights, sizes.output)
    add = None if case.add is None else placed(case.add)
    run(conv, request(ConvCall, [x, weights, case.scale, case.bias, add, output], threads))
    return output.transpose(0, 3, 1, 2) if layout == LAST or case.out else output


def run_linear(layer: QuantLinear, x: np.ndarray, threads: int = 1, index_bits: int = 0) -> np.ndarray:
    """Of float32[rows, channels]."""
    out, channels = layer.stored.shape
    linear = Linear(len(x), channels, out, layer.bits, layer.group, FLOATS, 0, index_bits)
    sizes = check(linear)
    weights, scale, zero = layer.constants()
    if index_bits:
        signed = layer.stored.astype("i8") - (1 << (layer.bits - 1))
        weights = sparse_blob(signed[:, :, None, None], layer.bits, index_bits)
    output = np.full((len(x), out), np.nan, F)
    found = (x.size, 0 if index_bits else weights.size, scale.size, output.size)
    assert found == (sizes.input, sizes.weights, sizes.scales, sizes.output)
    run(linear, request(LinearCall, [x, weights, scale, zero, layer.bias, output], threads))
    return output


def run_embedding(table: QuantEmbedding, ids: np.ndarray, *, lanes: bool = False) -> np.ndarray:
    """Rows by number."""
    rows, channels = table.stored.shape
    numbers = Embedding(rows, channels, table.bits, table.group, ids.itemsize, int(lanes), ids.size)
    sizes = check(numbers)
    weights, scale, zero = table.packed(lanes=lanes), table.scale, table.zero
    if lanes:
        scale, zero = by_lanes(scale), None if zero is None else by_lanes(zero)
    output = np.full((ids.size, channels), np.nan, F)
    assert (weights.size, scale.size, output.size) == (sizes.weights, sizes.scales, sizes.output)
    run(numbers, request(EmbeddingCall, [ids, weights, scale, zero, output]))
    return output
