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
_ALONE_SYMBOLS = 16 * _LANE_SYMBOLS
"""Fewer go in one lane, without arrays of a few elements a step."""


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


def read_symbols(reader: Reader, count: int, alphabet: int = ALPHABET_MAX) -> Symbols:
    """Read `count` symbols below `alphabet`; so many are held, and the caller has found that to be few enough.

    Raises:
        ValueError: the bytes are no such code.
    """
    if not count:
        return np.zeros(0, np.int64)
    size = reader.varint_to(alphabet)
    shares = np.array([reader.varint() for _ in range(size)], np.int64)
    if shares.sum() != _WHOLE or shares.max(initial=0) > _WHOLE:
        raise ValueError("shares of symbols do not add up")
    return _decode(reader, count, shares)


def entropy_bits(symbols: Symbols) -> float:
    """What symbols are worth, by their shares alone: no code that looks at one at a time takes less."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of `_WHOLE`, none of a symbol that occurs less than one."""
    shares: npt.NDArray[np.int64] = np.maximum(counts * _WHOLE // counts.sum(), counts > 0).astype(np.int64)
    while surplus := int(shares.sum()) - _WHOLE:
        # Where one step costs or wins the most bits, of those that can give.
        step = -1 if surplus > 0 else 1
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = counts * np.log2((shares + step) / shares)
        gain[(shares + step < 1) | (counts == 0)] = -np.inf
        shares[int(np.argmax(gain))] += step
    return shares


def _lanes(count: int) -> int:
    return 1 if count < _ALONE_SYMBOLS else min(_LANES_MAX, count // _LANE_SYMBOLS)


def _encode(symbols: Symbols, shares: npt.NDArray[np.int64]) -> bytes:
    lanes = _lanes(len(symbols))
    if lanes == 1:
        return _encode_alone(symbols, shares)
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
    if lanes == 1:
        return _decode_alone(reader, count, shares.tolist(), starts.tolist(), of_slot.tolist())
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


def _encode_alone(symbols: Symbols, shares: npt.NDArray[np.int64]) -> bytes:
    """The same for one lane: Python's own numbers are faster than arrays of one."""
    share_of, start_of = shares.tolist(), (np.cumsum(shares) - shares).tolist()
    state, words = _LOW, []
    for symbol in reversed(symbols.tolist()):
        share = share_of[symbol]
        if state >= share << (2 * _WORD_BITS - _BITS):
            words.append(state & (_LOW - 1))
            state >>= _WORD_BITS
        state = (state // share << _BITS) + state % share + start_of[symbol]
    return state.to_bytes(4, "little") + np.array(words[::-1], "<u2").tobytes()


def _decode_alone(reader: Reader, count: int, shares: list[int], starts: list[int], of_slot: list[int]) -> Symbols:
    state = int.from_bytes(reader.take(4), "little")
    if state < _LOW:
        raise ValueError("a state lies below its range")
    made = []
    for _ in range(count):
        slot = state & (_WHOLE - 1)
        symbol = of_slot[slot]
        made.append(symbol)
        state = shares[symbol] * (state >> _BITS) + slot - starts[symbol]
        if state < _LOW:
            state = state << _WORD_BITS | int.from_bytes(reader.take(2), "little")
    if state != _LOW:
        raise ValueError("coded symbols do not end where they should")
    return np.array(made, np.int64)
