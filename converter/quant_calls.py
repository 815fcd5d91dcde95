"""The kernel library's records of quantized layers, as native/kernels/quantized.h has them; see `kernel_calls`."""

from __future__ import annotations

import ctypes
from typing import Any

from ferryman.converter.kernel_calls import PARALLEL, Refused
from ferryman.runtime import kernels

FLOATS, INT8 = range(2)


def record(name: str, **fields: Any) -> type[ctypes.Structure]:  # noqa: ANN401  # ctypes' own
    """A structure of C."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def int32(*names: str) -> dict[str, Any]:
    """Fields of a structure."""
    return dict.fromkeys(names, ctypes.c_int32)


def int64(*names: str) -> dict[str, Any]:
    """Fields of a structure."""
    return dict.fromkeys(names, ctypes.c_int64)


def pointers(*names: str) -> dict[str, Any]:
    """Fields of a structure."""
    return dict.fromkeys(names, ctypes.c_void_p)


POOL = {"parallel": PARALLEL, "pool": ctypes.c_void_p, "threads": ctypes.c_int32}

Conv: Any = record(
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
ConvSizes: Any = record(
    "ferryman_quant_sizes", **int32("out_height", "out_width"), **int64("input", "weights", "per_channel", "output")
)
ConvCall: Any = record(
    "ferryman_quant_call",
    **pointers("input", "weights"),
    **int64("weight_bytes"),
    **pointers("scale", "bias", "add", "output"),
    **POOL,
)
Linear: Any = record(
    "ferryman_quant_linear",
    **int32("rows", "channels", "out_channels", "bits", "group", "input", "blocks", "index_bits"),
)
LinearSizes: Any = record("ferryman_quant_linear_sizes", **int64("input", "weights", "scales", "output"))
LinearCall: Any = record(
    "ferryman_quant_linear_call",
    **pointers("input", "weights"),
    **int64("weight_bytes"),
    **pointers("scale", "zero", "bias", "output"),
    **POOL,
)
Embedding: Any = record(
    "ferryman_quant_embedding", **int32("rows", "channels", "bits", "group", "id_bytes", "lanes"), count=ctypes.c_int64
)
EmbeddingSizes: Any = record("ferryman_quant_embedding_sizes", **int64("weights", "scales", "output"))
EmbeddingCall: Any = record("ferryman_quant_embedding_call", **pointers("ids", "weights", "scale", "zero", "output"))
_SIZES = {Conv: ("conv", ConvSizes), Linear: ("linear", LinearSizes), Embedding: ("embedding", EmbeddingSizes)}


def check(numbers: Any) -> Any:  # noqa: ANN401  # ctypes' own
    """Sizes of a Conv, Linear or Embedding.

    Raises:
        Refused: the library will not have it.
        DeviceError: as `kernels.load`.
    """
    name, sizes = _SIZES[type(numbers)]
    made = sizes()
    ask(f"{name}_check", numbers, made)
    return made


def run(numbers: Any, call: Any) -> None:  # noqa: ANN401  # ctypes' own
    """Compute a Conv with a ConvCall, and so on.

    Raises:
        Refused: the library will not.
        DeviceError: as `kernels.load`.
    """
    ask(f"{_SIZES[type(numbers)][0]}_run", numbers, call)


def ask(function: str, *arguments: Any) -> None:  # noqa: ANN401  # ctypes' own
    """Call one of the functions that answer with what is wrong.

    Raises:
        Refused: something is.
    """
    called = getattr(kernels.load(), f"ferryman_quant_{function}")
    called.restype = ctypes.c_char_p
    problem = called(*(ctypes.byref(one) for one in arguments))
    if problem:
        raise Refused(problem.decode())
