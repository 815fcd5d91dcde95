"""Where the few things are that changed: gaps between them, their sizes entropy-coded, their low bits as they are.

A gap is a power of two, up to two further bits, and the rest: gaps of places that are strewn at random then take what
they are worth to a hundredth of a bit, and those that gather take less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ferryman.runtime.updates.rans import Symbols, entropy_bits, read_symbols, write_symbols
from ferryman.runtime.updates.varint import Reader

Positions = npt.NDArray[np.int64]
_FINE_MAX = 2
_SIZE_BITS_MAX = 40
_TABLE_BITS = 12
"""Of a symbol's share, about."""


def write_positions(positions: Positions) -> bytes:
    """Code positions, ascending and each once; how many there are is the reader's to know."""
    if not len(positions):
        return b""
    gaps = np.diff(positions, prepend=-1)
    return _write(gaps, min(range(_FINE_MAX + 1), key=lambda fine: _worth(gaps, fine)))


def read_positions(reader: Reader, count: int, size: int) -> Positions:
    """Read `count` positions below `size`, which bounds what is held.

    Raises:
        ValueError: the bytes are no such code, or a position lies elsewhere.
    """
    if not 0 <= count <= size:
        raise ValueError(f"{count} positions of {size}")
    if not count:
        return np.zeros(0, np.int64)
    fine = reader.take(1)[0]
    if fine > _FINE_MAX:
        raise ValueError(f"gaps with {fine} further bits")
    symbols = read_symbols(reader, count)
    powers, further = symbols >> fine, symbols & ((1 << fine) - 1)
    if powers.max() > _SIZE_BITS_MAX:
        raise ValueError("a gap beyond any size")
    shown = np.minimum(powers, fine)
    lengths = powers - shown
    gaps = ((1 << shown) + (further >> (fine - shown)) << lengths) + read_bits(reader, lengths)
    if gaps.max() > size or gaps.sum() > size:  # the first holds, so the sum cannot wrap
        raise ValueError(f"a position beyond {size}")
    return np.cumsum(gaps) - 1


def _split(gaps: Positions, fine: int) -> tuple[Symbols, Positions]:
    """What is coded of each gap, and how many of its low bits are not."""
    powers = _bit_lengths(gaps) - 1
    shown = np.minimum(powers, fine)
    lengths = powers - shown
    further = ((gaps >> lengths) - (1 << shown)) << (fine - shown)
    return powers << fine | further, lengths


def _worth(gaps: Positions, fine: int) -> float:
    """Bits, with those of the table."""
    symbols, lengths = _split(gaps, fine)
    return entropy_bits(symbols) + float(lengths.sum()) + _TABLE_BITS * len(np.unique(symbols))


def _write(gaps: Positions, fine: int) -> bytes:
    symbols, lengths = _split(gaps, fine)
    return bytes([fine]) + write_symbols(symbols) + write_bits(gaps & ((1 << lengths) - 1), lengths)


def _bit_lengths(values: Positions) -> Positions:
    """Exact: float64 holds every whole number below 2^53."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def write_bits(values: Positions, lengths: Positions) -> bytes:
    """The low `lengths` bits of each value, high ones first."""
    ends = np.cumsum(lengths)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(lengths.max(initial=0))):
        some = lengths > place
        bits[ends[some] - 1 - place] = values[some] >> place & 1
    return np.packbits(bits).tobytes()


def read_bits(reader: Reader, lengths: Positions) -> Positions:
    """What `write_bits` wrote.

    Raises:
        ValueError: the bytes end early.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    bits = np.unpackbits(np.frombuffer(reader.take(-(-total // 8)), np.uint8))
    values = np.zeros(len(lengths), np.int64)
    for place in range(int(lengths.max(initial=0))):
        some = lengths > place
        values[some] |= bits[ends[some] - 1 - place].astype(np.int64) << place
    return values
