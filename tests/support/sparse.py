"""Calls the sparse operators of the kernel library directly."""

from __future__ import annotations

import ctypes

import numpy as np

from ferryman.converter.kernel_calls import CHANNELS_FIRST as FIRST
from ferryman.converter.kernel_calls import CHANNELS_LAST as LAST
from ferryman.converter.kernel_calls import Refused
from ferryman.converter.quant_calls import POOL, int32, int64, pointers, record
from ferryman.runtime import kernels
from tests.support.quantized import request
from tests.support.sparse_reference import SparseConv

Conv = record(
    "ferryman_sparse_conv",
    **int32("batch", "height", "width", "channels", "out_channels", "kernel_h", "kernel_w"),
    **int32("stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left", "pad_bottom", "pad_right"),
    **int32("groups", "index_bits", "input_layout", "output_layout", "add"),
    low=ctypes.c_float,
    high=ctypes.c_float,
)
Sizes = record("ferryman_sparse_sizes", **int32("out_height", "out_width"), **int64("input", "output", "per_channel"))
Call = record(
    "ferryman_sparse_call",
    **pointers("input", "values"),
    value_count=ctypes.c_int64,
    index=ctypes.c_void_p,
    index_bytes=ctypes.c_int64,
    **pointers("bias", "add", "output"),
    **POOL,
)


def conv_of(case: SparseConv, last_in: int = FIRST, last_out: int = FIRST) -> Conv:
    """Its numbers."""
    batch, channels, height, width = case.x.shape
    out, _, kh, kw = case.weight.shape
    return Conv(
        *(batch, height, width, channels, out, kh, kw, *case.stride, *case.dilation, *case.padding, case.groups),
        *(case.index_bits, last_in, last_out, case.add is not None, case.low, case.high),
    )


def check(conv: Conv) -> Sizes:
    """Sizes of an operator; raises Refused."""
    sizes = Sizes()
    _ask("check", conv, sizes)
    return sizes


def run(conv: Conv, arrays: list[np.ndarray | None], threads: int = 1) -> None:
    """Compute from input, values, index, bias and add into output; raises Refused."""
    x, values, index, bias, add, output = arrays
    call = request(Call, [x, values, index, bias, add, output], threads)
    call.value_count, call.index_bytes = values.size, index.size
    _ask("run", conv, call)


def run_conv(case: SparseConv, last_in: int = FIRST, last_out: int = FIRST, threads: int = 1) -> np.ndarray:
    """What the kernels answer, channels first."""
    conv = conv_of(case, last_in, last_out)
    sizes = check(conv)

    def placed(array: np.ndarray, layout: int) -> np.ndarray:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if layout == LAST else array)

    output = placed(np.full((len(case.x), len(case.weight), sizes.out_height, sizes.out_width), 77, "f4"), last_out)
    x, add = placed(case.x, last_in), None if case.add is None else placed(case.add, last_out)
    assert (x.size, output.size, case.bias.size) == (sizes.input, sizes.output, sizes.per_channel)
    run(conv, [x, *case.constants(), case.bias, add, output], threads)
    return output.transpose(0, 3, 1, 2) if last_out == LAST else output


def _ask(name: str, *records: ctypes.Structure) -> None:
    function = getattr(kernels.load(), f"ferryman_sparse_conv_{name}")
    function.restype = ctypes.c_char_p
    if problem := function(*map(ctypes.byref, records)):
        raise Refused(problem.decode())
