"""Few and scattered changes: bytes copied from where the base has them, and single ones that differ.

A piece is a row of edits: go so many bytes on in the base (or back), take so many as they are, then so many that
differ, each a difference of bytes to the base's at its place (0 where there is none). All distances, all lengths of the
one and of the other, and all differences are coded together, each sort by its own odds. Differences that are as good
as random stay bytes.

Stored: u32 edits, u32 differences, u32 bytes of the symbols, u8 whether differences are among these; the symbols (see
`rans`); the differences if they are not; bits (see `bits`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ferryman.runtime.pieces.bits import read_bits, write_bits
from ferryman.runtime.pieces.numbers import count_rest, join_numbers, split_numbers
from ferryman.runtime.pieces.rans import Symbols, decode_symbols, encode_symbols

Span = tuple[int, int, int]
"""(start, size, shift): `new[start:start + size] == base[start - shift:...]`."""
_HEAD = struct.Struct("<III?")
_BLOCK = 1 << 16
_BETWEEN = 4
"""Equal bytes between two that differ, which cost more as an edit of their own."""
_SORTS = 4
_INT32 = 1 << 31


def encode_edits(new: bytes, base: bytes, spans: Sequence[Span]) -> bytes:
    """Code a piece.

    Args:
        new: the piece.
        base: what it is made from.
        spans: where they are equal, in order, none over another; what is between is compared with what lies there in
            the base, going on from the span before.

    Raises:
        ValueError: they are so many that this is not the codec for it.
    """
    shifts = _shifts(len(new), spans)
    taken, differ, sources = _edits(np.frombuffer(new, np.uint8), np.frombuffer(base, np.uint8), shifts)
    if len(taken) > _edits_max(len(new)):
        raise ValueError(f"{len(taken)} edits of {len(new)} bytes")
    ends = np.cumsum(taken + differ)
    starts = ends - taken - differ
    jumps = sources - np.concatenate(([0], sources[:-1] + taken[:-1] + differ[:-1]))
    numbers = np.concatenate((np.where(jumps < 0, -2 * jumps - 1, 2 * jumps), taken, differ)).astype(np.uint32)
    changed = np.repeat(starts + taken, differ) + _within(differ)
    place = changed - shifts[changed]
    there = (place >= 0) & (place < len(base))
    old = np.zeros(len(changed), np.uint8)
    old[there] = np.frombuffer(base, np.uint8)[place[there]]
    symbols, counts = split_numbers(numbers)
    differences = np.frombuffer(new, np.uint8)[changed] - old
    plain = encode_symbols(symbols, _sorts(len(taken), 0), _SORTS - 1)
    coded = encode_symbols(np.concatenate((symbols, differences)), _sorts(len(taken), len(changed)), _SORTS)
    among = len(coded) < len(plain) + len(differences)
    head = _HEAD.pack(len(taken), len(changed), len(coded if among else plain), among)
    return b"".join((head, coded if among else plain + differences.tobytes(), write_bits(numbers, counts)))


def decode_edits(stored: bytes, base: memoryview | bytes, size: int) -> bytes:
    """The piece of `size` bytes.

    Raises:
        ValueError: it is not stored so.
        ZstdError: the same.
    """
    if len(stored) < _HEAD.size:
        raise ValueError("edits have no head")
    many, differences, length, among = _HEAD.unpack_from(stored)
    if not 0 < many <= _edits_max(size) or differences > size or length > len(stored) - _HEAD.size:
        raise ValueError(f"{many} edits with {differences} differences of {size} bytes cannot be")
    end = _HEAD.size + length
    symbols = decode_symbols(stored[_HEAD.size : end], _sorts(many, differences if among else 0))
    counts = count_rest(symbols[: 3 * many])
    plain = 0 if among else differences
    if len(stored) < end + plain:
        raise ValueError("edits end early")
    rest = read_bits(stored[end + plain :], counts)
    numbers = join_numbers(symbols[: 3 * many], rest).astype(np.int64)
    jumps, taken, differ = numbers[:many], numbers[many : 2 * many], numbers[2 * many :]
    jumps = np.where(jumps & 1, -(jumps + 1) // 2, jumps // 2)
    if int(taken.sum() + differ.sum()) != size or int(differ.sum()) != differences:
        raise ValueError("edits do not make a piece of its size")
    added = symbols[3 * many :] if among else np.frombuffer(stored, np.uint8, differences, end)
    return _made(base, size, np.cumsum(jumps), taken, differ, added)


def _edits_max(size: int) -> int:
    """Of a piece, so that memory stays in proportion to it."""
    return 64 + size // 16


def _made(
    base: memoryview | bytes,
    size: int,
    apart: npt.NDArray[np.int64],
    taken: npt.NDArray[np.int64],
    differ: npt.NDArray[np.int64],
    differences: Symbols,
) -> bytes:
    """Bytes of edits that lie `apart` from their places in the base."""
    old, made = np.frombuffer(base, np.uint8), np.zeros(size, np.uint8)
    done = used = at = 0
    ends = np.cumsum(taken + differ)
    while at < len(ends):
        # As many edits as make a block, at least one; a long one is a copy of its own.
        last = max(int(np.searchsorted(ends, done + _BLOCK, "right")), at + 1)
        lengths = np.stack((taken[at:last], differ[at:last]), axis=1).ravel()
        if last == at + 1:
            _take(old, made[done : int(ends[at])], done + int(apart[at]))
        else:
            shift = np.repeat(apart[at:last], taken[at:last] + differ[at:last])
            place = np.arange(done, int(ends[last - 1])) + shift
            there = (place >= 0) & (place < len(old))
            made[done : int(ends[last - 1])][there] = old[place[there]]
        changed = done + np.flatnonzero(np.repeat(np.arange(len(lengths)) & 1, lengths)) if len(lengths) else lengths
        made[changed] += differences[used : used + len(changed)]
        used, done, at = used + len(changed), int(ends[last - 1]), last
    return made.tobytes()


def _take(old: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8], source: int) -> None:
    """Fill `part` with the base from `source` on; 0 where there is none."""
    first, last = min(max(-source, 0), len(part)), min(max(len(old) - source, 0), len(part))
    if first < last:
        part[first:last] = old[source + first : source + last]


def _sorts(many: int, differences: int) -> Symbols:
    return np.repeat(np.arange(_SORTS, dtype=np.uint8), (many, many, many, differences))


def _shifts(size: int, spans: Sequence[Span]) -> npt.NDArray[np.int64]:
    """Of every byte."""
    starts = np.array([0, *(start for start, _, _ in spans), size])
    values = np.array([spans[0][2] if spans else 0, *(shift for _, _, shift in spans)])
    return np.repeat(values, np.diff(starts))


def _within(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... for each length."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _edits(
    new: npt.NDArray[np.uint8], base: npt.NDArray[np.uint8], shifts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Bytes taken, bytes that differ, place in the base; of every edit."""
    place = np.arange(len(new)) - shifts
    there = (place >= 0) & (place < len(base))
    differs = np.ones(len(new), bool)
    differs[there] = new[there] != base[place[there]]
    # Bytes that differ form a group where fewer than some equal ones are between; an edit ends behind a group, and
    # where the shift changes.
    changed = np.flatnonzero(differs)
    jumps = np.flatnonzero(np.diff(shifts)) + 1
    groups = np.flatnonzero((np.diff(changed) > _BETWEEN) | (np.diff(np.searchsorted(jumps, changed, "right")) > 0))
    firsts = changed[np.concatenate(([0], groups + 1))] if len(changed) else changed
    lasts = changed[np.concatenate((groups, [len(changed) - 1]))] + 1 if len(changed) else changed
    ends = np.unique(np.concatenate((lasts, jumps, [len(new)])))
    starts = np.concatenate(([0], ends[:-1]))
    differ = np.zeros(len(ends), np.int64)
    differ[np.searchsorted(ends, lasts)] = lasts - firsts
    return ends - starts - differ, differ, place[starts]
