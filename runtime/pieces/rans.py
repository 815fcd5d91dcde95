"""Entropy coding of symbols whose odds depend on a context that both sides know.

Asymmetric numeral systems (Duda 2013) with a static table of frequencies a context, in lanes: symbol i belongs to lane
i mod lanes, and a step codes one symbol of every lane at once. All of it is arithmetic of unsigned integers.

Stored: u16 lanes, u16 contexts, u32 bytes of the table; the table (u16 frequencies [contexts, 256], in a zstd frame);
u32 states of the lanes; u16 words, in the order a decoder takes them.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from backports import zstd

Symbols = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

SCALE_BITS = 12
"""Frequencies of a context sum to 2^12: a frequency, a position in it and a symbol fit into one 32-bit entry."""
CONTEXTS_MAX = 16
ALPHABET = 256
_SCALE = 1 << SCALE_BITS
_LOW = 1 << 16
"""States are in [2^16, 2^32)."""
_LANES_MAX = 4096
_STEPS_MAX = 16384
"""More would take longer than a piece may."""
_SYMBOLS_A_LANE = 2048
_AT_ONCE = 8
_HEAD = struct.Struct("<HHI")


def encode_symbols(symbols: Symbols, contexts: Symbols, many: int) -> bytes:
    """Code `symbols`, each by the odds of its own context, one of `many`."""
    count = len(symbols)
    table = _normalised(count_symbols(symbols, contexts, many))
    lanes = min(max(count // _SYMBOLS_A_LANE, 1), _LANES_MAX)
    starts = np.cumsum(table, axis=1) - table
    place = contexts.astype(np.int64) * ALPHABET + symbols
    frequencies, starts = table.ravel()[place].astype(np.uint64), starts.ravel()[place].astype(np.uint64)
    states = np.full(lanes, _LOW, np.uint64)
    words = []
    for first in range((count - 1) // lanes * lanes, -1, -lanes):
        step = slice(first, min(first + lanes, count))
        x, f = states[: step.stop - first], frequencies[step]
        full = x >= f << np.uint64(32 - SCALE_BITS)
        words.append(x[full].astype("<u2"))
        x[full] >>= np.uint64(16)
        x[:] = (x // f << np.uint64(SCALE_BITS)) + x % f + starts[step]
    packed = zstd.compress(table.astype("<u2").tobytes(), level=19)
    return b"".join(
        (
            _HEAD.pack(lanes, many, len(packed)),
            packed,
            states.astype("<u4").tobytes(),
            *(w.tobytes() for w in words[::-1]),
        )
    )


def decode_symbols(stored: bytes, contexts: Symbols) -> Symbols:
    """The symbols, one a context.

    Raises:
        ValueError: `stored` does not hold so many.
        ZstdError: its table is no zstd frame.
    """
    count = len(contexts)
    lanes, table, states, words = _parts(stored, count)
    if count and int(contexts.max()) >= len(table) // _SCALE:
        raise ValueError("symbols have contexts without odds")
    symbols = np.empty(count, np.uint8)
    read = 0
    for first in range(0, count, lanes):
        step = slice(first, min(first + lanes, count))
        x = states[: step.stop - first]
        entry = table[(contexts[step].astype(np.uint32) << SCALE_BITS) | (x & (_SCALE - 1))]
        symbols[step] = entry  # its lowest 8 bits
        x[:] = ((entry >> 8 & (_SCALE - 1)) + 1) * (x >> SCALE_BITS) + (entry >> (8 + SCALE_BITS))
        short = np.flatnonzero(x < _LOW)
        taken = words[read : read + len(short)]
        read += len(short)
        if len(taken) != len(short):
            raise ValueError("symbols end early")
        x[short] = x[short] << 16 | taken
    if read != len(words) or (states != _LOW).any():
        raise ValueError("symbols do not end where they should")
    return symbols


def count_symbols(symbols: Symbols, contexts: Symbols, many: int) -> Counts:
    """How often each is there: int64[many, 256]."""
    place = contexts.astype(np.int64) * ALPHABET + symbols
    return np.bincount(place, minlength=many * ALPHABET).reshape(many, ALPHABET)


def _parts(stored: bytes, count: int) -> tuple[int, Any, Any, Any]:
    """Lanes, entries of the table, states, words."""
    if len(stored) < _HEAD.size:
        raise ValueError("symbols have no head")
    lanes, many, size = _HEAD.unpack_from(stored)
    if not 1 <= lanes <= _LANES_MAX or not 1 <= many <= CONTEXTS_MAX or count > lanes * _STEPS_MAX:
        raise ValueError(f"{count} symbols in {lanes} lanes and {many} contexts cannot be")
    packed, rest = stored[_HEAD.size : _HEAD.size + size], stored[_HEAD.size + size :]
    if len(rest) < 4 * lanes or len(rest) % 2:
        raise ValueError("symbols have no states, or half a word")
    plain_size = many * ALPHABET * 2
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 16})
    plain = decompressor.decompress(packed, plain_size + 1)
    if len(plain) != plain_size or not decompressor.eof or decompressor.unused_data:
        raise ValueError("the odds are not a table of their size")
    frequencies = np.frombuffer(plain, "<u2").astype(np.uint32).reshape(many, ALPHABET)
    if (frequencies.sum(axis=1) != _SCALE).any():
        raise ValueError("the odds of a context do not sum to one")
    states = np.frombuffer(rest, "<u4", lanes).astype(np.uint32)
    return lanes, _entries(frequencies), states, np.frombuffer(rest, "<u2", offset=4 * lanes).astype(np.uint32)


def _entries(frequencies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """For each slot of each context: position in its symbol's span (12 bits), frequency less 1 (12 bits), symbol."""
    many = len(frequencies)
    symbol = np.repeat(np.tile(np.arange(ALPHABET, dtype=np.uint32), many), frequencies.ravel())
    starts = (np.cumsum(frequencies, axis=1, dtype=np.uint32) - frequencies).ravel()
    slot = np.tile(np.arange(_SCALE, dtype=np.uint32), many)
    row = np.repeat(np.arange(many, dtype=np.uint32) * ALPHABET, _SCALE) + symbol
    entries: npt.NDArray[np.uint32] = (
        (slot - starts[row]) << (8 + SCALE_BITS) | (frequencies.ravel()[row] - 1) << 8 | symbol
    )
    return entries


def _normalised(counts: Counts) -> Counts:
    """Frequencies that sum to 2^12 a context, at least 1 where a symbol is there, as near as may be."""
    table = np.zeros_like(counts)
    for row, of in zip(table, counts, strict=True):
        total = int(of.sum())
        if not total:
            row[0] = _SCALE
            continue
        row[:] = np.maximum((of * _SCALE + total // 2) // total, of > 0)
        while (over := int(row.sum()) - _SCALE) != 0:
            # One more or less of what that costs least.
            after = row + (1 if over < 0 else -1)
            may = (of > 0) & (after > 0)
            cost = of[may] * np.log2(row[may] / after[may])
            row[np.flatnonzero(may)[np.argsort(cost, kind="stable")[: min(abs(over), _AT_ONCE)]]] -= (
                1 if over > 0 else -1
            )
    return table
