"""Weights, element by element: what is uncertain of each becomes a symbol, the rest are bits as they are.

With a base, an element is coded against the one at the same place of the base. Integers of 8 bits are subtracted. Of
floats the difference is counted in steps between neighbouring floats; its sign, its length in bits and its next two
bits are the symbol, and the context is the exponent of the base's value: a weight of a given size changes by about as
much as others of that size. Of weights packed in nibbles (four bits, two of two, four of one) the symbol is the new
nibble and the context the old one.

From nothing, the symbol of a float is its exponent, of an integer or a nibble itself.

Stored: u8 kind, u8 bytes before the first whole element, u8 the lowest context, u8 contexts, u32 bytes of the symbols;
the symbols (see `rans`); the bits (see `bits`); the bytes before the first element and behind the last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ferryman.runtime.pieces.bits import read_bits, write_bits
from ferryman.runtime.pieces.numbers import Values, count_rest, join_numbers, split_numbers
from ferryman.runtime.pieces.rans import CONTEXTS_MAX, Symbols, decode_symbols, encode_symbols

Bytes = npt.NDArray[np.uint8]

_HEAD = struct.Struct("<BBBBI")
_BLOCK = 1 << 16
_ONE, _ONE_BIT = np.uint32(1), np.uint8(1)


@dataclass(frozen=True)
class Kind:
    """What elements are."""

    name: str
    bits: int
    """Of an element."""
    exponent_at: int = 0
    """The lowest bit of a float's exponent."""

    @property
    def packed(self) -> bool:
        """Whether a byte holds two."""
        return self.bits < 8  # noqa: PLR2004  # bits of a byte

    @property
    def width(self) -> int:
        """Bytes that hold whole elements."""
        return max(self.bits // 8, 1)


KINDS = (Kind("nibble", 4), Kind("int8", 8), Kind("float16", 16, 10), Kind("float32", 32, 23))
"""Their places are stored; new ones go behind."""


@dataclass(frozen=True)
class Split:
    """Elements as symbols, the contexts of these, and bits."""

    symbols: Symbols
    contexts: Symbols
    """As they are, not yet counted from the lowest that matters."""
    rest: Values
    counts: Symbols


def split(kind: Kind, new: Bytes, base: Bytes | None) -> Split:
    """Of whole elements."""
    values = _values(kind, new)
    if base is None:
        symbols, rest, counts = _alone(kind, values)
        return Split(symbols, np.zeros(len(symbols), np.uint8), rest, counts)
    old = _values(kind, base)
    contexts = _contexts(kind, old)
    nothing = np.broadcast_to(np.uint8(0), len(values))
    if not kind.exponent_at:
        coded = values if kind.packed else values - old
        return Split(coded.astype(np.uint8), contexts, values, nothing)
    apart = _ordered(kind, values) - _ordered(kind, old)
    negative = apart >> (kind.bits - 1) & 1
    size = np.where(negative, ~apart + 1, apart) & _mask(kind)
    levels, counts = split_numbers(size)
    return Split((levels.astype(np.uint32) << 1 | negative).astype(np.uint8), contexts, size, counts)


def span_of(counts: npt.NDArray[np.int64]) -> tuple[int, int]:
    """The lowest context and how many to tell apart: as many as may be, where most elements are."""
    within = np.convolve(counts, np.ones(CONTEXTS_MAX, np.int64))[CONTEXTS_MAX - 1 :]
    lowest = int(within.argmax())
    there = np.flatnonzero(counts[lowest : lowest + CONTEXTS_MAX])
    return (lowest + int(there[0]), int(there[-1] - there[0]) + 1) if len(there) else (0, 1)


def encode_elements(kind: Kind, new: bytes, base: bytes | None, lead: int = 0) -> bytes:
    """Code a piece as elements.

    Args:
        kind: what they are.
        new: the piece.
        base: as many bytes it is coded against; None: from nothing.
        lead: bytes before the first whole element.
    """
    end = lead + (len(new) - lead) // kind.width * kind.width
    body = np.frombuffer(new, np.uint8)[lead:end]
    parts = split(kind, body, None if base is None else np.frombuffer(base, np.uint8)[lead:end])
    lowest, many = span_of(np.bincount(parts.contexts, minlength=256))
    symbols = encode_symbols(parts.symbols, np.clip(parts.contexts, lowest, lowest + many - 1) - np.uint8(lowest), many)
    head = _HEAD.pack(KINDS.index(kind), lead, lowest, many, len(symbols))
    return b"".join((head, symbols, write_bits(parts.rest, parts.counts), new[:lead], new[end:]))


def decode_elements(stored: bytes, base: memoryview | None, size: int) -> bytes:
    """The piece of `size` bytes.

    Raises:
        ValueError: it is not stored so, or the base is not as long as the piece.
        ZstdError: the same.
    """
    if len(stored) < _HEAD.size:
        raise ValueError("elements have no head")
    number, lead, lowest, many, length = _HEAD.unpack_from(stored)
    if number >= len(KINDS) or lead >= KINDS[number].width or size < lead:
        raise ValueError(f"elements of kind {number} behind {lead} bytes are not known here")
    if base is not None and len(base) != size:
        raise ValueError(f"a base of {len(base)} bytes for elements of {size}")
    kind = KINDS[number]
    whole = (size - lead) // kind.width * kind.width
    edges = size - whole
    symbols_end, rest_end = _HEAD.size + length, len(stored) - edges
    if symbols_end > rest_end:
        raise ValueError("elements end early")
    old = None if base is None else np.frombuffer(base, np.uint8)[lead : lead + whole]
    contexts = _lowered(kind, old, whole * 8 // kind.bits, lowest, many)
    symbols = decode_symbols(stored[_HEAD.size : symbols_end], contexts)
    counts = _counts(kind, symbols, alone=old is None)
    rest = read_bits(stored[symbols_end:rest_end], counts)
    made = bytearray(size)
    made[:lead], made[lead + whole :] = stored[rest_end : rest_end + lead], stored[rest_end + lead :]
    body = np.frombuffer(made, np.uint8)[lead : lead + whole]
    for start in range(0, len(symbols), _BLOCK):
        there = slice(start * kind.bits // 8, (start + _BLOCK) * kind.bits // 8)
        part = slice(start, start + _BLOCK)
        body[there] = _joined(kind, symbols[part], rest[part], None if old is None else old[there])
    return bytes(made)


def _joined(kind: Kind, symbols: Symbols, rest: Values, base: Bytes | None) -> Bytes:
    """The bytes of elements."""
    if base is None:
        return _bytes(kind, _unalone(kind, symbols, rest))
    wide = symbols.astype(np.uint32)
    if kind.packed:
        return _bytes(kind, wide)
    old = _values(kind, base)
    if not kind.exponent_at:
        return _bytes(kind, old + wide)
    size, negative = join_numbers(np.right_shift(symbols, _ONE_BIT), rest), wide & 1
    apart = np.where(negative, ~size + 1, size)
    return _bytes(kind, _unordered(kind, _ordered(kind, old) + apart))


def _lowered(kind: Kind, old: Bytes | None, count: int, lowest: int, many: int) -> Symbols:
    """Contexts, counted from the lowest that matters."""
    highest = lowest + many - 1
    if not lowest <= highest <= 255:  # noqa: PLR2004  # a byte
        raise ValueError(f"{many} contexts from {lowest} on cannot be")
    contexts = np.zeros(count, np.uint8)
    if old is not None:
        for start in range(0, count, _BLOCK):
            part = old[start * kind.bits // 8 : (start + _BLOCK) * kind.bits // 8]
            there = _contexts(kind, _values(kind, part))
            contexts[start : start + _BLOCK] = np.clip(there, lowest, highest) - np.uint8(lowest)
    return contexts


def _counts(kind: Kind, symbols: Symbols, *, alone: bool) -> Symbols:
    """How many bits go with each symbol."""
    if alone:
        return np.broadcast_to(np.uint8(max(kind.bits - 8, 0)), len(symbols))
    if not kind.exponent_at:
        return np.broadcast_to(np.uint8(0), len(symbols))
    return count_rest(np.right_shift(symbols, _ONE_BIT), kind.bits)


def _alone(kind: Kind, values: Values) -> tuple[Symbols, Values, Symbols]:
    """Of elements from nothing: all bits but the sign and the lowest ones, or all."""
    counts = np.full(len(values), max(kind.bits - 8, 0), np.uint8)
    if not kind.exponent_at:
        return values.astype(np.uint8), values, counts
    low, sign = np.uint32(kind.bits - 9), np.uint32(kind.bits - 1)
    rest = (values & ((_ONE << low) - _ONE)) | values >> sign << low
    return (values >> low).astype(np.uint8), rest, counts


def _unalone(kind: Kind, symbols: Symbols, rest: Values) -> Values:
    if not kind.exponent_at:
        return symbols.astype(np.uint32)
    low, sign = np.uint32(kind.bits - 9), np.uint32(kind.bits - 1)
    whole: Values = (rest & ((_ONE << low) - _ONE)) | symbols.astype(np.uint32) << low | rest >> low << sign
    return whole


def _contexts(kind: Kind, old: Values) -> Symbols:
    if kind.exponent_at:
        return (old >> kind.exponent_at & ((1 << (kind.bits - 1 - kind.exponent_at)) - 1)).astype(np.uint8)
    return (old if kind.packed else (old ^ 0x80) >> 4).astype(np.uint8)


def _values(kind: Kind, data: Bytes) -> Values:
    if kind.packed:
        values = np.empty(2 * len(data), np.uint32)
        values[::2], values[1::2] = data & 15, data >> 4
        return values
    return np.ascontiguousarray(data).view(f"<u{kind.width}").astype(np.uint32)


def _bytes(kind: Kind, values: Values) -> Bytes:
    if kind.packed:
        return ((values[::2] & 15) | (values[1::2] & 15) << 4).astype(np.uint8)
    return values.astype(f"<u{kind.width}").view(np.uint8)


def _mask(kind: Kind) -> np.uint32:
    return np.uint32((1 << kind.bits) - 1)


def _ordered(kind: Kind, values: Values) -> Values:
    """Floats as unsigned integers in the same order."""
    sign = np.uint32(1 << (kind.bits - 1))
    return np.where(values & sign, ~values & _mask(kind), values | sign)


def _unordered(kind: Kind, ordered: Values) -> Values:
    sign = np.uint32(1 << (kind.bits - 1))
    return np.where(ordered & sign, ordered ^ sign, ~ordered & _mask(kind))
