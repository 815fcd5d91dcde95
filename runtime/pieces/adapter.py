"""Codec `adapter`: a whole tensor of weights, made of the one a device has and a few thin factors.

See `ferryman.runtime.updates.adapters` for the arithmetic.
"""

from __future__ import annotations

import math

import numpy as np

from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import pack, unpack
from ferryman.runtime.updates.adapters import Adapter, check, merge_weight


class Laid(Record):
    """An adapter, and how the artifact lays its tensor out."""

    adapter: Adapter
    axes: tuple[int, ...]
    """The artifact's tensor is the model's with its axes in this order."""


def encode_adapter(adapter: Adapter, axes: tuple[int, ...]) -> bytes:
    """Write a piece's stored bytes."""
    return pack(Laid(adapter=adapter, axes=axes))


def decode_adapter(stored: bytes, base: memoryview, size: int) -> bytes:
    """See `ferryman.runtime.pieces.codecs.Decode`.

    Raises:
        ValueError: `stored` is of another codec, or of another tensor.
    """
    laid = unpack(stored, Laid)
    shape, axes = laid.adapter.shape, laid.axes
    for reason in check(laid.adapter):
        raise ValueError(reason)
    if sorted(axes) != list(range(len(shape))) or not 4 * math.prod(shape) == size == len(base):
        raise ValueError(f"an adapter of {shape} in the order {axes} for {len(base)} bytes that become {size}")
    there = np.frombuffer(base, "<f4").reshape([shape[axis] for axis in axes])
    merged = merge_weight(there.transpose(np.argsort(axes)), laid.adapter)
    return np.ascontiguousarray(merged.transpose(axes), "<f4").tobytes()
