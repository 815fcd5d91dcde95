"""Tensors and the signature of a model, as records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

Array = NDArray[Any]
T = TypeVar("T")

DTYPES = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)


NDIM_MAX = 32
"""What numpy 1 has room for."""


class DynamicDim(Record):
    """A dimension that is fixed per call, within bounds (both included); the same symbol means the same size."""

    symbol: str
    min: int
    max: int


class TensorSpec(Record):
    """Name, numpy dtype name and shape of one input or output."""

    name: str
    dtype: str
    shape: tuple[int | DynamicDim, ...]

    def describe(self) -> str:
        """For people: `float32[1, 3, 32, 32] image`."""
        dims = ", ".join(str(d) if isinstance(d, int) else f"{d.symbol}:{d.min}..{d.max}" for d in self.shape)
        return f"{self.dtype}[{dims}] {self.name}"


class Signature(Record):
    """What goes in and what comes out, in call order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Tensor(Record):
    """An array on a wire: little-endian, C order, no copy beyond the one the wire needs."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def to_array(self) -> Array:
        """View the bytes as an array.

        Raises:
            ValueError: dtype unknown, the bytes do not fill the shape, or numpy has no such shape.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        dtype = np.dtype(self.dtype).newbyteorder("<")
        if len(self.shape) > NDIM_MAX:
            raise ValueError(f"{len(self.shape)} dimensions are more than the {NDIM_MAX} a tensor may have")
        if any(d < 0 for d in self.shape):
            raise ValueError(f"shape {self.shape} has a negative dimension")
        expected = math.prod(self.shape) * dtype.itemsize
        if len(self.data) != expected:
            raise ValueError(f"{self.dtype}{list(self.shape)} takes {expected} bytes, found {len(self.data)}")
        try:
            return np.frombuffer(self.data, dtype=dtype).reshape(self.shape)
        except OverflowError as error:  # a dimension beside a zero one
            raise ValueError(f"shape {self.shape}: {error}") from error


def to_tensor(array: Array) -> Tensor:
    """Pack an array for a wire.

    Raises:
        CallerError: its dtype is none of DTYPES.
    """
    if array.dtype.name not in DTYPES:
        raise CallerError(f"arrays have one of the dtypes {', '.join(DTYPES)}; found {array.dtype}")
    little = array.dtype.newbyteorder("<")
    dense = np.ascontiguousarray(array, little).reshape(array.shape)  # ascontiguousarray makes 0-d 1-d
    return Tensor(dtype=dense.dtype.name, shape=dense.shape, data=dense.tobytes())


def to_tensors(arrays: Sequence[Array]) -> tuple[Tensor, ...]:
    """Pack arrays for a wire."""
    return tuple(to_tensor(a) for a in arrays)


def pack(record: Record) -> bytes:
    """Encode a record that carries tensors (MessagePack: bytes stay bytes)."""
    return msgspec.msgpack.encode(record)


def unpack(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Decode and validate what `pack` wrote.

    Raises:
        ValueError: not MessagePack, or a field is missing or of the wrong type.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
