"""The few numbers of an update that are sent: positions in all of its tensors, and what lies there.

`Coded` tensors hold numbers of a short codebook each; plain ones hold float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ferryman.runtime.updates.base import Floats
from ferryman.runtime.updates.positions import Positions, read_positions, write_positions
from ferryman.runtime.updates.rans import ALPHABET_MAX, Symbols, read_symbols, write_symbols
from ferryman.runtime.updates.varint import Reader, write_varint


class Coded(NamedTuple):
    """What is sent of one tensor."""

    positions: Positions
    """Ascending, each once."""
    ids: Symbols
    """Which code lies at each."""
    codes: Floats

    def values(self) -> Floats:
        """What lies at each position."""
        return self.codes[self.ids]


def write_coded(tensors: Sequence[Coded], sizes: Sequence[int]) -> bytes:
    """All tensors of an update, of `sizes` numbers each."""
    starts = np.cumsum([0, *sizes])
    positions = np.concatenate([one.positions + start for one, start in zip(tensors, starts[:-1], strict=True)])
    books = b"".join(write_varint(len(one.codes)) + one.codes.astype("<f4").tobytes() for one in tensors)
    ids = np.concatenate([one.ids for one in tensors])
    return books + write_varint(len(positions)) + write_positions(positions) + write_symbols(ids)


def read_coded(reader: Reader, sizes: Sequence[int]) -> list[Coded]:
    """What `write_coded` wrote.

    Raises:
        ValueError: the bytes are none of such tensors.
    """
    books = [_book(reader) for _ in sizes]
    positions = read_positions(reader, reader.varint(), sum(sizes))
    ids = read_symbols(reader, len(positions))
    found = []
    start = 0
    for size, codes in zip(sizes, books, strict=True):
        low, high = np.searchsorted(positions, (start, start + size))
        mine = ids[low:high]
        if len(mine) and mine.max() >= len(codes):
            raise ValueError("a number that its codebook has not")
        found.append(Coded(positions[low:high] - start, mine, codes))
        start += size
    return found


def write_plain(tensors: Sequence[Floats]) -> bytes:
    """Numbers other than zero, as they are."""
    whole = np.concatenate(tensors) if tensors else np.zeros(0, np.float32)
    positions = np.flatnonzero(whole)
    return write_varint(len(positions)) + write_positions(positions) + whole[positions].astype("<f4").tobytes()


def read_plain(reader: Reader, sizes: Sequence[int]) -> list[Floats]:
    """What `write_plain` wrote.

    Raises:
        ValueError: the bytes are none of such tensors.
    """
    positions = read_positions(reader, reader.varint(), sum(sizes))
    whole = np.zeros(sum(sizes), np.float32)
    whole[positions] = read_floats(reader, len(positions))
    return np.split(whole, np.cumsum(sizes)[:-1]) if sizes else []


def read_floats(reader: Reader, count: int) -> Floats:
    """The next finite numbers.

    Raises:
        ValueError: there are fewer, or one is not finite.
    """
    values = np.frombuffer(reader.take(4 * count), "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a number is not finite")
    return values


def _book(reader: Reader) -> Floats:
    return read_floats(reader, reader.varint_to(ALPHABET_MAX))
