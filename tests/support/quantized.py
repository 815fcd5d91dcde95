"""Calls the quantized operators of the kernel library directly."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ferryman.converter.kernel_calls import CHANNELS_FIRST as FIRST
from ferryman.converter.kernel_calls import CHANNELS_LAST as LAST
from ferryman.converter.kernel_calls import PARALLEL, Refused
from ferryman.runtime import kernels
from tests.support.kernels import backwards
from tests.support.quantized_reference import QuantConv, QuantEmbedding, QuantLinear, by_lanes
from tests.support.sparse_reference import sparse_blob

FLOATS, INT8 = range(2)
F = np.float32


def record(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def int32(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, ctypes.c_int32)


def int64(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, ctypes.c_int64)


def pointers(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, ctypes.c_void_p)


POOL = {"parallel": PARALLEL, "pool": ctypes.c_void_p, "threads": ctypes.c_int32}

Conv = record(
    "ferryman_quant_conv",
    **int32("batch", "height", "width", "channels", "out_channels", "kernel_h", "kernel_w"),
    **int32("stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left", "pad_bottom", "pad_right"),
    **int32("groups", "bits", "layout", "input", "output"),
    x_scale=ctypes.c_float,
    x_zero=ctypes.c_int32,
    out_scale=ctypes.c_float,
    **int32("out_zero", "out_low", "out_high"),
    add_scale=ctypes.c_float,
    **int32("add_zero", "index_bits", "unpack"),
)
ConvSizes = record(
    "ferryman_quant_sizes",
    **int32("out_height", "out_width"),
    **int64("input", "weights", "per_channel", "output"),
)
ConvCall = record(
    "ferryman_quant_call",
    **pointers("input", "weights"),
    weight_bytes=ctypes.c_int64,
    **pointers("scale", "bias", "add", "output"),
    **POOL,
)
Linear = record(
    "ferryman_quant_linear",
    **int32("rows", "channels", "out_channels", "bits", "group", "input", "blocks", "index_bits"),
)
LinearSizes = record("ferryman_quant_linear_sizes", **int64("input", "weights", "scales", "output"))
LinearCall = record(
    "ferryman_quant_linear_call",
    **pointers("input", "weights"),
    weight_bytes=ctypes.c_int64,
    **pointers("scale", "zero", "bias", "output"),
    **POOL,
)
Embedding = record(
    "ferryman_quant_embedding", **int32("rows", "channels", "bits", "group", "id_bytes", "lanes"), count=ctypes.c_int64
)
EmbeddingSizes = record("ferryman_quant_embedding_sizes", **int64("weights", "scales", "output"))
EmbeddingCall = record("ferryman_quant_embedding_call", **pointers("ids", "weights", "scale", "zero", "output"))
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
