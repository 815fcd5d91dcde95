"""How quantized weights lie in artifacts: `native/kernels/quantized.h`, undone and done."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ferryman.converter.bits import LANES

BITS = (8, 4, 2)
"""Of a weight."""
_FOUR = 4
"""Depths side by side, what a processor multiplies and adds in one lane."""
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Numbers = TypeVar("Numbers", bound=np.generic)


def halves(bits: int) -> int:
    """What is added to a weight to store it: 2^(bits - 1)."""
    return int(1 << (bits - 1))


def pack_weights(weight: Integers, groups: int, bits: int) -> Bytes:
    """Weights of a convolution or linear layer.

    Args:
        weight: [out, in / groups, kh, kw], or [out, in]; -2^(bits - 1) to 2^(bits - 1) - 1.
        groups: of the convolution.
        bits: of a weight.

    Returns:
        As stored: [groups, blocks, vectors, 16, 4], or [blocks, vectors, 16] of a depthwise convolution.
    """
    channels = weight.shape[1]
    rows = by_depth(weight)
    if _is_depthwise(channels, groups):
        lanes = _padded(rows, LANES, 8 // bits)
        return _joined(lanes.reshape(-1, LANES, lanes.shape[1]).transpose(0, 2, 1), bits)
    packed = []
    for group in np.split(rows, groups):
        lanes = _padded(group, LANES, _FOUR * 8 // bits)
        quads = lanes.reshape(lanes.shape[0] // LANES, LANES, -1, _FOUR).transpose(0, 2, 1, 3)
        packed.append(_joined(quads, bits))
    return np.stack(packed)


def unpack_weights(packed: Bytes, shape: tuple[int, ...], groups: int, bits: int) -> Integers:
    """Undo `pack_weights`: int32 of that shape."""
    out, channels = shape[:2]
    taps = int(np.prod(shape[2:], dtype=int))
    values = packed.reshape(-1)
    if _is_depthwise(channels, groups):
        vectors = -(-taps * bits // 8)
        lanes = _split(values.reshape(-1, vectors, LANES), bits).transpose(0, 2, 1)
        rows = lanes.reshape(-1, lanes.shape[2])[:out, :taps]
    else:
        blocks = -(-(out // groups) // LANES)
        fours = -(-taps * channels // _FOUR)
        vectors = -(-fours * bits // 8)
        quads = _split(values.reshape(groups * blocks, vectors, LANES, _FOUR), bits).transpose(0, 2, 1, 3)
        rows = quads.reshape(groups, blocks * LANES, -1)[:, : out // groups, : taps * channels].reshape(out, -1)
    return from_depth(rows, shape)


def pack_rows(table: Integers, bits: int) -> Bytes:
    """An embedding table: [rows, channels] -> [rows, ceil(channels * bits / 8)]."""
    padded = _padded(table, 1, 8 // bits)
    return _joined(padded.reshape(len(table), -1, 8 // bits).transpose(0, 2, 1), bits)[:, 0]


def unpack_rows(packed: Bytes, channels: int, bits: int) -> Integers:
    """Undo `pack_rows`: int32[rows, channels]."""
    values = _split(packed[:, None, :], bits)
    return values.transpose(0, 2, 1).reshape(len(packed), -1)[:, :channels]


def pack_groups(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Scales or zero points of a linear layer: [out, groups] -> [blocks, groups, 16]; beyond the last output 0."""
    padded = np.pad(values, ((0, -len(values) % LANES), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, LANES, values.shape[1]).transpose(0, 2, 1))


def unpack_groups(packed: NDArray[np.generic], out: int) -> NDArray[np.generic]:
    """Undo `pack_groups`: [out, groups]."""
    return packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:out]


def by_depth(weight: NDArray[Numbers]) -> NDArray[Numbers]:
    """[out, channels, ...] -> [out, depth]: by tap, then by channel."""
    out, channels = weight.shape[:2]
    return np.ascontiguousarray(np.moveaxis(weight.reshape(out, channels, -1), 1, 2).reshape(out, -1))


def from_depth(rows: NDArray[Numbers], shape: tuple[int, ...]) -> NDArray[Numbers]:
    """Undo `by_depth`."""
    out, channels = shape[:2]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(out, -1, channels), 1, 2).reshape(shape))


def _is_depthwise(channels: int, groups: int) -> bool:
    return channels == 1 and groups > 1


def _padded(rows: Integers, height: int, width: int) -> Integers:
    return np.pad(rows, ((0, -rows.shape[0] % height), (0, -rows.shape[1] % width)))


def _joined(values: Integers, bits: int) -> Bytes:
    """Several along the second axis to a byte, low bits first."""
    per = 8 // bits
    stored = (values + halves(bits)).astype(np.uint8)
    parts = stored.reshape(stored.shape[0], -1, per, *stored.shape[2:])
    joined = np.zeros((parts.shape[0], parts.shape[1], *parts.shape[3:]), np.uint8)
    for place in range(per):
        joined |= parts[:, :, place] << np.uint8(bits * place)
    return joined


def _split(packed: Bytes, bits: int) -> Integers:
    per = 8 // bits
    mask = np.uint8((1 << bits) - 1)
    parts = np.stack([(packed >> np.uint8(bits * place)) & mask for place in range(per)], axis=2)
    return parts.reshape(packed.shape[0], -1, *packed.shape[2:]).astype(np.int32) - halves(bits)
