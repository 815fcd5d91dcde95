"""Fields of 0 to 32 bits, one after the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16
"""Values at a time, so that what is held on the way stays small."""
_SPILL = 5
"""A field of 32 bits that does not begin with a byte reaches into so many."""


def write_bits(values: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint8]) -> bytes:
    """The lowest `counts` bits of every value."""
    size = (int(counts.sum(dtype=np.int64)) + 7) // 8
    if not size:
        return b""
    packed = np.zeros(size + _SPILL, np.uint8)
    done = 0
    for start in range(0, len(values), _BLOCK):
        count = counts[start : start + _BLOCK].astype(np.uint64)
        ends = np.cumsum(count) + np.uint64(done % 8)
        begins = ends - count
        field = (values[start : start + _BLOCK] & ((np.uint64(1) << count) - np.uint64(1))) << (begins & np.uint64(7))
        place = (begins >> np.uint64(3)).astype(np.int64)
        there = packed[done // 8 :]
        for byte in range(_SPILL):
            part = (field >> np.uint64(8 * byte) & np.uint64(255)).astype(np.float64)
            added = np.bincount(place + byte, part).astype(np.uint8)  # fields share bytes, never bits
            there[: len(added)] |= added[: len(there)]
        done += int(count.sum())
    return packed[:size].tobytes()


def read_bits(data: bytes, counts: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """The fields again.

    Raises:
        ValueError: `data` has more or fewer bytes than they need.
    """
    if len(data) != (int(counts.sum(dtype=np.int64)) + 7) // 8:
        raise ValueError("fields of bits do not fill their bytes")
    if not data:
        return np.broadcast_to(np.uint32(0), len(counts))
    padded = np.frombuffer(data + bytes(7), np.uint8)
    words = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    values = np.empty(len(counts), np.uint32)
    done = 0
    for start in range(0, len(counts), _BLOCK):
        count = counts[start : start + _BLOCK].astype(np.uint64)
        begins = np.cumsum(count) - count + np.uint64(done)
        # A field of no bits may begin behind the last byte.
        place = np.minimum(begins >> np.uint64(3), np.uint64(len(words) - 1)).astype(np.int64)
        field = words[place] >> (begins & np.uint64(7))
        values[start : start + _BLOCK] = field & ((np.uint64(1) << count) - np.uint64(1))
        done += int(count.sum())
    return values
