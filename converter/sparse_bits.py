"""Where the weights of a pruned layer are, and what they are: `native/kernels/sparse.h`, undone and done.

Weights are rows [out, depth], depth by tap, then by channel. `index_bits` says how their places are held: 0 all are
there, 1 a bitmap, 4 or 8 the gaps between them; the smallest is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferryman.converter.quant_bits import Bytes, Integers, Numbers, by_depth, from_depth, halves

DEPTH_MAX = 65535
"""Weights of an output channel."""
ALL, BITMAP = 0, 1
GAPS = (4, 8)


@dataclass(frozen=True)
class Places:
    """Which weights have a value in the artifact."""

    held: NDArray[np.bool_]
    """[out, depth]; of gaps, some weights of zero as well, to bridge those that are too long."""
    index_bits: int
    index: Bytes
    """As stored; empty where all are held."""

    @property
    def count(self) -> int:
        """Of values."""
        return int(np.count_nonzero(self.held))


def find_places(weight: NDArray[Numbers], value_bits: int, *, may_hold_all: bool) -> Places:
    """The smallest way to hold the weights that are not zero.

    Args:
        weight: [out, depth], at most DEPTH_MAX deep.
        value_bits: of a weight in the artifact.
        may_hold_all: also as they are, without an index.
    """
    nonzero = np.asarray(weight != 0)
    if not nonzero.any():
        nonzero[0, 0] = True  # no artifact has constants without elements
    ways = [_bitmap(nonzero), *(_gaps(nonzero, bits) for bits in GAPS)]
    if may_hold_all:
        ways.insert(0, Places(np.ones_like(nonzero), ALL, np.zeros(0, np.uint8)))
    return min(ways, key=lambda way: way.index.nbytes + way.count * value_bits / 8)


def read_places(index: Bytes, index_bits: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Undo `find_places`: which weights are held, bool[out, depth]."""
    out, depth = shape
    if index_bits == ALL:
        return np.ones(shape, np.bool_)
    if index_bits == BITMAP:
        row = -(-depth // 8)
        return np.unpackbits(index[: out * row].reshape(out, row), axis=1, bitorder="little")[:, :depth].astype(
            np.bool_
        )
    counts = index[: 2 * out].view("<u2").astype(np.int64)
    held = np.zeros(shape, np.bool_)
    at = 2 * out
    for channel, count in enumerate(counts):
        size = -(-int(count) * index_bits // 8)
        gaps = _take(index[at : at + size], index_bits)[:count].astype(np.int64)
        held[channel, np.cumsum(gaps + 1) - 1] = True
        at += size
    return held


def pack_sparse(weight: Integers, bits: int) -> tuple[Bytes, int]:
    """Whole numbers as quantized operators take them, index and values, and the index's bits.

    Args:
        weight: [out, channels, ...], -2^(bits - 1) to 2^(bits - 1) - 1.
        bits: of a weight.
    """
    rows = by_depth(weight)
    places = find_places(rows, bits, may_hold_all=False)
    stored = (rows + halves(bits)).astype(np.uint8)
    values = _rows([row[held] for row, held in zip(stored, places.held, strict=True)], bits)
    return np.concatenate([places.index, values]), places.index_bits


def unpack_sparse(packed: Bytes, shape: tuple[int, ...], bits: int, index_bits: int) -> Integers:
    """Undo `pack_sparse`: int32 of that shape."""
    rows = (shape[0], int(np.prod(shape[1:], dtype=int)))
    held = read_places(packed, index_bits, rows)
    weight = np.zeros(rows, np.int32)
    at = _index_bytes(packed, index_bits, rows)
    for row, places in zip(weight, held, strict=True):
        count = int(np.count_nonzero(places))
        size = -(-count * bits // 8)
        row[places] = _take(packed[at : at + size], bits)[:count].astype(np.int32) - halves(bits)
        at += size
    return from_depth(weight, shape)


def _index_bytes(packed: Bytes, index_bits: int, shape: tuple[int, int]) -> int:
    """How much of it is the index."""
    out, depth = shape
    if index_bits == BITMAP:
        return out * -(-depth // 8)
    counts = packed[: 2 * out].view("<u2").astype(np.int64)
    return int(2 * out + (-(-counts * index_bits // 8)).sum())


def _bitmap(nonzero: NDArray[np.bool_]) -> Places:
    return Places(nonzero, BITMAP, np.packbits(nonzero, axis=1, bitorder="little").reshape(-1))


def _gaps(nonzero: NDArray[np.bool_], bits: int) -> Places:
    most = 1 << bits
    held = nonzero.copy()
    rows = []
    for row in held:
        at = np.flatnonzero(row)
        steps = np.diff(at, prepend=-1)
        bridges = [
            begin + most * (k + 1)
            for begin, step in zip((at - steps)[steps > most], steps[steps > most], strict=True)
            for k in range((step - 1) // most)
        ]
        row[bridges] = True
        rows.append((np.diff(np.flatnonzero(row), prepend=-1) - 1).astype(np.uint8))
    counts = np.array([len(row) for row in rows], "<u2").view(np.uint8)
    return Places(held, bits, np.concatenate([counts, _rows(rows, bits)]))


def _rows(rows: list[Bytes], bits: int) -> Bytes:
    """Each from a byte on."""
    per = 8 // bits
    packed = []
    for row in rows:
        parts = np.pad(row, (0, -len(row) % per)).reshape(-1, per)
        joined = np.zeros(len(parts), np.uint8)
        for place in range(per):
            joined |= parts[:, place] << np.uint8(bits * place)
        packed.append(joined)
    return np.concatenate(packed) if packed else np.zeros(0, np.uint8)


def _take(packed: Bytes, bits: int) -> Bytes:
    mask = np.uint8((1 << bits) - 1)
    return np.stack([(packed >> np.uint8(bits * place)) & mask for place in range(8 // bits)], axis=1).reshape(-1)
