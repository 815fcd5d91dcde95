"""An exact delta: pieces that make a newer payload from bounded spans of an older one.

Equal spans are copied, wherever they moved; what changed is coded against the span it came from, by whatever codec
makes it smallest. Every piece is made and compared before it is returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ferryman.devices.fleet.repository.alignment import COPY_MIN_BYTES, MATCH_MIN_BYTES, Run, align
from ferryman.devices.fleet.repository.matching import find_matches
from ferryman.devices.fleet.repository.segments import PIECE_BYTES, WAYS, cut
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.pieces.codecs import CODECS, PREFIX_MIN_BYTES, compress, make
from ferryman.runtime.pieces.elements import encode_elements
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES, Piece

_COPY_MIN_BYTES = (1 << 20, 64 << 10, COPY_MIN_BYTES)
"""Of spans that are copied by pieces of their own; of these plans the best is kept."""
_AROUND_BYTES = 64 << 10
"""Of the base on either side of where a piece comes from, for zstd to find what moved a little."""
_RUN_MAX_BYTES = PIECE_MAX_BYTES - 2 * _AROUND_BYTES
_NEAR = 1.02
"""Ways whose estimates are so near the best are tried."""
_FAST, _HOPELESS, _RANDOM = 3, 1.25, 0.995
"""zstd's slow level is tried where its fast one is so near to the best so far, and finds anything at all."""
_SMALL_BYTES = 16 << 10


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


def _encoded(old: bytes, new: bytes, start: int, end: int) -> list[EncodedPiece]:
    """Pieces of `new[start:end]`: with copies of long spans only, or of short ones too, whichever needs fewer bytes."""
    if start == end:
        return []
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)[start:end]
    matches = find_matches(before, after, MATCH_MIN_BYTES)
    made: dict[Run, list[EncodedPiece]] = {}
    best: list[EncodedPiece] = []
    least = float("inf")
    for copy_min in _COPY_MIN_BYTES:
        runs = align(before, after, matches, copy_min)
        if len(runs) * PIECE_BYTES >= least:
            continue
        for run in runs:
            if run not in made:
                there = Run(run.start + start, run.end + start, run.shift + start, run.equal)
                made[run] = [_copied(there)] if run.equal else list(_changed(old, new, there))
        plan = [piece for run in runs for piece in made[run]]
        if (cost := sum(len(one.stored) + PIECE_BYTES for one in plan)) < least:
            best, least = plan, cost
    return best


def _copied(run: Run) -> EncodedPiece:
    return EncodedPiece(run.start, run.end - run.start, "copy", b"", run.start - run.shift, run.end - run.start)


def _changed(old: bytes, new: bytes, run: Run) -> Iterator[EncodedPiece]:
    """Pieces of a run that changed; what lies outside of the base has none but what is near."""
    inside = (min(max(one, run.start), run.end) for one in (run.shift, run.shift + len(old)))
    bounds = (run.start, *inside, run.end)
    for part, (first, last) in enumerate(pairwise(bounds)):
        for start in range(first, last, _RUN_MAX_BYTES):
            end = min(start + _RUN_MAX_BYTES, last)
            base = old[start - run.shift : end - run.shift] if part == 1 else None
            yield from _cut(old, new, Run(start, end, run.shift, equal=False), base)


def _cut(old: bytes, new: bytes, run: Run, base: bytes | None) -> Iterator[EncodedPiece]:
    data = np.frombuffer(new, np.uint8)[run.start : run.end]
    lead = -run.start % 16
    for segment in cut(data, None if base is None else np.frombuffer(base, np.uint8), lead):
        start, end = run.start + segment.start, run.start + segment.end
        piece = new[start:end]
        ways = [EncodedPiece(start, len(piece), "raw", piece)]
        least = float(segment.costs.min())
        for way, cost in zip(WAYS, segment.costs.tolist(), strict=True):
            if way.kind and cost <= least * _NEAR:
                offset, there = (
                    (start - run.shift, base[segment.start : segment.end]) if base and way.based else (0, None)
                )
                stored = encode_elements(way.kind, piece, there, -start % way.kind.width)
                codec = "entropy" if there is None else "residual"
                ways.append(EncodedPiece(start, len(piece), codec, stored, offset, len(there or b"")))
        ways += _by_zstd(old, piece, start, run.shift, min(len(way.stored) for way in ways))
        yield min(ways, key=lambda way: len(way.stored))


def _by_zstd(old: bytes, piece: bytes, start: int, shift: int, least: int) -> Iterator[EncodedPiece]:
    """What zstd makes of a piece, alone and behind what is around its place in the base, unless that is hopeless."""
    around = min(_AROUND_BYTES, (PIECE_MAX_BYTES - len(piece)) // 2)
    first, last = (min(max(one, 0), len(old)) for one in (start - shift - around, start - shift + len(piece) + around))
    prefix = old[first:last] if last - first >= PREFIX_MIN_BYTES else None
    for codec, before in (("zstd", None), ("patch", prefix)):
        if codec == "patch" and before is None:
            continue
        fast = len(compress(piece, before, _FAST))
        if len(piece) <= _SMALL_BYTES or fast < min(least * _HOPELESS, len(piece) * _RANDOM):
            based = (first, last - first) if before is not None else (0, 0)
            yield EncodedPiece(start, len(piece), codec, compress(piece, before), *based)


def _checked(old: bytes, new: bytes, encoded: EncodedPiece) -> EncodedPiece:
    """With its hash; it was made."""
    data = memoryview(new)[encoded.offset : encoded.offset + encoded.size]
    named = replace(encoded, sha256=hashlib.sha256(data).digest())
    if encoded.codec not in CODECS:
        raise CallerError(f"codec {encoded.codec!r} is not known; there are: {', '.join(CODECS)}")
    base = memoryview(old)[encoded.base_offset : encoded.base_offset + encoded.base_size]
    make(named.piece(0, 0), encoded.stored, base)
    return named
