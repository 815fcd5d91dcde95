"""Codec `sparse`: a span of float32 weights with few of them changed, each by a number of a short codebook.

    new = float32(base + code) at the coded positions, and base's bytes everywhere else

One addition of two float32 a weight, so every machine gives the same bits. A piece may span several tensors, and what
lies between them; each has a codebook of its own, and one code of positions and one of codebook entries serves all.
Where a codec sends every number by itself, they stand in the piece as float32 instead of codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ferryman.runtime.updates.base import Floats
from ferryman.runtime.updates.kept import Coded, read_coded, read_plain, write_coded, write_plain
from ferryman.runtime.updates.rans import ALPHABET_MAX
from ferryman.runtime.updates.varint import Reader, write_varint

_CODED, _PLAIN = 0, 1
_WORD = 4


class Changed(NamedTuple):
    """One tensor in a span."""

    offset: int
    """In bytes, from the span's beginning; a multiple of 4."""
    added: Floats
    """Flat; zero where nothing changes."""


def add(base: bytes | memoryview, changes: Sequence[Changed]) -> bytes:
    """The span with its changes; the arithmetic that this codec stands for."""
    made = bytearray(base)
    words = np.frombuffer(made, "<f4", count=len(made) // _WORD)
    with np.errstate(all="ignore"):
        for offset, added in changes:
            start = offset // _WORD
            places = np.flatnonzero(added)
            words[start + places] = words[start + places] + added[places]
    return bytes(made)


def encode_sparse(changes: Sequence[Changed]) -> bytes:
    """Write changes of tensors in order of their offsets, none overlapping another."""
    sizes = [one.added.size for one in changes]
    coded = [_code(one.added) for one in changes]
    layout = write_varint(len(changes))
    at = 0
    for one, size in zip(changes, sizes, strict=True):
        layout += write_varint(one.offset // _WORD - at) + write_varint(size)
        at = one.offset // _WORD + size
    plain = bytes([_PLAIN]) + layout + write_plain([one.added for one in changes])
    if any(one is None for one in coded):
        return plain
    return min(bytes([_CODED]) + layout + write_coded([one for one in coded if one is not None], sizes), plain, key=len)


def decode_sparse(stored: bytes, base: memoryview, size: int) -> bytes:
    """See `ferryman.runtime.pieces.codecs.Decode`.

    Raises:
        ValueError: `stored` is of another codec, or of another span.
    """
    if len(base) != size:
        raise ValueError(f"a span of {size} bytes is made of one of as many, found {len(base)}")
    reader = Reader(stored)
    kind = reader.take(1)[0]
    offsets, sizes = _layout(reader, size // _WORD)
    if kind == _CODED:
        added = [_spread(one, count) for one, count in zip(read_coded(reader, sizes), sizes, strict=True)]
    elif kind == _PLAIN:
        added = read_plain(reader, sizes)
    else:
        raise ValueError(f"there is no kind {kind} of it")
    reader.end()
    return add(base, [Changed(offset, one) for offset, one in zip(offsets, added, strict=True)])


def _layout(reader: Reader, words: int) -> tuple[list[int], list[int]]:
    offsets, sizes = [], []
    at = 0
    for _ in range(reader.varint()):
        at += reader.varint()
        offsets.append(_WORD * at)
        sizes.append(reader.varint())
        at += sizes[-1]
        if at > words:
            raise ValueError("a tensor goes beyond its span")
    return offsets, sizes


def _code(added: Floats) -> Coded | None:
    """None: more numbers than a codebook holds."""
    positions = np.flatnonzero(added)
    codes, ids = np.unique(added[positions], return_inverse=True)
    return Coded(positions, ids.astype(np.int64), codes) if len(codes) <= ALPHABET_MAX else None


def _spread(coded: Coded, size: int) -> Floats:
    made = np.zeros(size, np.float32)
    made[coded.positions] = coded.values()
    return made
