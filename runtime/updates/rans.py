"""Entropy coding of small numbers: rANS (Duda, arXiv:1311.2540), interleaved so that numpy decodes many at once.

A Huffman code spends a whole number of bits on each symbol; this spends what its share is worth, to a few thousandths
of a bit. All arithmetic is of whole numbers, so every machine reads the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ferryman.runtime.updates.varint import Reader, write_varint

Symbols = npt.NDArray[np.int64]
ALPHABET_MAX = 256
_BITS = 12
_WHOLE = 1 << _BITS
_WORD_BITS = 16
_LOW = 1 << _WORD_BITS
"""A state stays at or above it."""
_LANE_SYMBOLS = 1024
_LANES_MAX = 4096


def write_symbols(symbols: Symbols) -> bytes:
    """Code symbols of 0 to 255; how many there are is the reader's to know."""
    counts = np.bincount(symbols)
    if len(counts) > ALPHABET_MAX:
        raise ValueError(f"symbols go up to {len(counts) - 1}, more than {ALPHABET_MAX - 1}")
    if not len(symbols):
        return b""
    shares = _shares(counts)
    head = write_varint(len(shares)) + b"".join(write_varint(int(share)) for share in shares)
    return head + _encode(symbols, shares)


def read_symbols(reader: Reader, count: int) -> Symbols:
    """Read `count` symbols, which the caller has found to be few enough to hold.

    Raises:
        ValueError: the bytes are no such code.
    """
    if not count:
        return np.zeros(0, np.int64)
    size = reader.varint()
    if not 0 < size <= ALPHABET_MAX:
        raise ValueError(f"an alphabet of {size} symbols")
    shares = np.array([reader.varint() for _ in range(size)], np.int64)
    if shares.sum() != _WHOLE or shares.max() > _WHOLE:
        raise ValueError("shares of symbols do not add up")
    return _decode(reader, count, shares)


def entropy_bits(symbols: Symbols) -> float:
    """What symbols are worth, by their shares alone: no code that looks at one at a time takes less."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of `_WHOLE`, none of a symbol that occurs less than one."""
    total = counts.sum()
    shares = np.maximum(counts * _WHOLE // total, counts > 0)
    while surplus := int(shares.sum()) - _WHOLE:
        # Where one step costs or wins the most bits, of those that can give.
        step = -1 if surplus > 0 else 1
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = counts * np.log2((shares + step) / shares)
        gain[(shares + step < 1) | (counts == 0)] = -np.inf
        shares[int(np.argmax(gain))] += step
    return shares.astype(np.int64)


def _lanes(count: int) -> int:
    return max(1, min(_LANES_MAX, count // _LANE_SYMBOLS))


def _encode(symbols: Symbols, shares: npt.NDArray[np.int64]) -> bytes:
    lanes = _lanes(len(symbols))
    starts = np.concatenate(([0], np.cumsum(shares)[:-1]))
    states = np.full(lanes, _LOW, np.int64)
    words: list[npt.NDArray[np.int64]] = []
    for begin in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        row = symbols[begin : begin + lanes]
        now = states[: len(row)]
        share = shares[row]
        full = now >= share << (2 * _WORD_BITS - _BITS)
        if full.any():
            words.append((now[full] & (_LOW - 1))[::-1])
            now[full] >>= _WORD_BITS
        now[:] = (now // share << _BITS) + now % share + starts[row]
    stream = np.concatenate(words)[::-1] if words else np.zeros(0, np.int64)
    return states.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def _decode(reader: Reader, count: int, shares: npt.NDArray[np.int64]) -> Symbols:
    lanes = _lanes(count)
    starts = np.concatenate(([0], np.cumsum(shares)[:-1]))
    of_slot = np.repeat(np.arange(len(shares)), shares)
    states = np.frombuffer(reader.take(4 * lanes), "<u4").astype(np.int64)
    if states.min() < _LOW:
        raise ValueError("a state lies below its range")
    words = np.frombuffer(reader.rest(), "<u1")
    words = words[: len(words) & ~1].view("<u2")
    used = 0
    made = np.empty(count, np.int64)
    for begin in range(0, count, lanes):
        row = made[begin : begin + lanes]
        now = states[: len(row)]
        slot = now & (_WHOLE - 1)
        row[:] = of_slot[slot]
        now[:] = shares[row] * (now >> _BITS) + slot - starts[row]
        empty = np.flatnonzero(now < _LOW)
        if len(empty):
            more = words[used : used + len(empty)]
            if len(more) < len(empty):
                raise ValueError("coded symbols end early")
            now[empty] = now[empty] << _WORD_BITS | more
            used += len(empty)
    if (states != _LOW).any():
        raise ValueError("coded symbols do not end where they should")
    reader.take(2 * used)
    return made
