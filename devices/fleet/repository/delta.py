"""An exact delta: pieces that make a newer payload from bounded spans of an older one.

Equal spans are copied, wherever they moved; what changed is coded against the span it came from, by whatever codec
makes it smallest. Every piece is made and compared before it is returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ferryman.devices.fleet.repository.matching import Match, find_matches
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.pieces.codecs import CODECS, compress, make
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES, Piece

_COPY_MIN_BYTES = 4096
"""A shorter equal span is not worth a piece of its own."""
_AROUND_BYTES = 64 << 10
"""Of the base on either side of where a piece comes from."""

_BASE_MIN_BYTES = 8
"""zstd takes no shorter prefix."""


@dataclass(frozen=True)
class EncodedPiece:
    """The next bytes of a payload and what makes them."""

    offset: int
    """In the new payload."""
    size: int
    codec: str
    stored: bytes = b""
    base_offset: int = 0
    base_size: int = 0
    sha256: bytes = b""
    """Of the piece; a hint may leave it out."""

    def piece(self, pack: int, offset: int) -> Piece:
        """As an index holds it; its stored bytes lie at `offset` of the index's pack number `pack`."""
        held = bool(self.stored)
        return Piece(
            size=self.size,
            sha256=self.sha256,
            codec=self.codec,
            pack=pack if held else -1,
            offset=offset if held else 0,
            length=len(self.stored),
            base_offset=self.base_offset,
            base_size=self.base_size,
        )


def encode_delta(old: bytes, new: bytes, hints: Sequence[EncodedPiece] = ()) -> list[EncodedPiece]:
    """Pieces that make `new` of `old`, in order.

    Args:
        old: the payload a device has; empty: none.
        new: the payload it is to have.
        hints: pieces that somebody who knows what changed has already made; they are placed as they are.

    Raises:
        CallerError: hints overlap or lie outside of `new`.
        PackageError: a hint does not make the bytes it should.
    """
    pieces: list[EncodedPiece] = []
    at = 0
    for hint in sorted(hints, key=lambda one: one.offset):
        if hint.offset < at or hint.offset + hint.size > len(new):
            raise CallerError(f"a hint of {hint.size} bytes at {hint.offset} lies over another or outside the payload")
        pieces += _encoded(old, new, at, hint.offset)
        pieces.append(hint)
        at = hint.offset + hint.size
    pieces += _encoded(old, new, at, len(new))
    return [_checked(old, new, one) for one in pieces]


def _encoded(old: bytes, new: bytes, start: int, end: int) -> Iterator[EncodedPiece]:
    """Pieces of `new[start:end]`."""
    if start == end:
        return
    matches = find_matches(np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)[start:end], _COPY_MIN_BYTES)
    at, shift = start, 0
    for match in (*(Match(one.start + start, one.size, one.shift + start) for one in matches), Match(end, 0, 0)):
        if match.start > at:
            yield from _changed(old, new, at, match.start, shift)
        if match.size:
            yield EncodedPiece(match.start, match.size, "copy", b"", match.start - match.shift, match.size)
        at, shift = match.start + match.size, match.shift


def _changed(old: bytes, new: bytes, start: int, end: int, shift: int) -> Iterator[EncodedPiece]:
    """Pieces of `new[start:end]`, which lay `shift` bytes before in `old` when it was something else."""
    for at in range(start, end, PIECE_MAX_BYTES):
        size = min(PIECE_MAX_BYTES, end - at)
        around = min(_AROUND_BYTES, (PIECE_MAX_BYTES - size) // 2)
        first = min(max(at - shift - around, 0), len(old))
        last = min(max(at - shift + size + around, 0), len(old))
        piece = new[at : at + size]
        ways = [
            EncodedPiece(at, size, "raw", piece),
            EncodedPiece(at, size, "zstd", compress(piece)),
        ]
        if last - first >= _BASE_MIN_BYTES:
            stored = compress(piece, old[first:last])
            ways.append(EncodedPiece(at, size, "patch", stored, first, last - first))
        yield min(ways, key=lambda way: len(way.stored))


def _checked(old: bytes, new: bytes, encoded: EncodedPiece) -> EncodedPiece:
    """With its hash; it was made."""
    data = memoryview(new)[encoded.offset : encoded.offset + encoded.size]
    named = replace(encoded, sha256=hashlib.sha256(data).digest())
    if encoded.codec not in CODECS:
        raise CallerError(f"codec {encoded.codec!r} is not known; there are: {', '.join(CODECS)}")
    base = memoryview(old)[encoded.base_offset : encoded.base_offset + encoded.base_size]
    make(named.piece(0, 0), encoded.stored, base)
    return named
