"""A piece as the publisher holds it, and one piece of several runs: copies and small changes between them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ferryman.devices.fleet.repository.alignment import Run
from ferryman.devices.fleet.repository.matching import Match
from ferryman.runtime.pieces.codecs import PREFIX_MIN_BYTES, compress
from ferryman.runtime.pieces.edits import encode_edits
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES, Piece

_AROUND_BYTES = 64 << 10
"""Of the base on either side of where a piece comes from, for what moved a little."""
RUN_MAX_BYTES = PIECE_MAX_BYTES - 2 * _AROUND_BYTES
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


class Joiner:
    """Makes one piece of runs that lie beside each other."""

    def __init__(self, old: bytes, new: bytes, matches: Sequence[Match]) -> None:
        self._old, self._new, self._matches = old, new, matches
        self._starts = [one.start for one in matches]

    @staticmethod
    def fits(runs: Sequence[Run]) -> bool:
        """Whether a piece can hold them, and their bases."""
        first, last = _base(runs)
        return max(runs[-1].end - runs[0].start, last - first) <= RUN_MAX_BYTES

    def edits(self, runs: Sequence[Run]) -> EncodedPiece | None:
        """As edits; None where they are too many, or come from nothing."""
        start, end = runs[0].start, runs[-1].end
        offset, base = self._around(runs)
        if not base:
            return None
        spans = []
        here = self._matches[max(bisect_right(self._starts, start) - 1, 0) : bisect_left(self._starts, end)]
        for match in here:
            first, last = max(match.start, start), min(match.start + match.size, end)
            if first < last and offset <= first - match.shift and last - match.shift <= offset + len(base):
                spans.append((first - start, last - first, match.shift - start + offset))
        if not spans:
            spans = [(0, 0, runs[0].shift - start + offset)]
        try:
            stored = encode_edits(self._new[start:end], base, spans)
        except ValueError:
            return None
        return EncodedPiece(start, end - start, "edits", stored, offset, len(base))

    def joined(self, runs: Sequence[Run], most: float) -> list[EncodedPiece]:
        """All of them as one piece that needs no more than `most` bytes, if there is one."""
        start, end = runs[0].start, runs[-1].end
        edits = self.edits(runs)
        ways = [edits] if edits else []
        least = min((len(way.stored) for way in ways), default=int(most))
        ways += by_zstd(self._new[start:end], start, *self._around(runs), min(least, int(most)))
        return [min(ways, key=lambda way: len(way.stored))] if ways else []

    def _around(self, runs: Sequence[Run]) -> tuple[int, bytes]:
        """What runs come from, and what is around it."""
        return around(self._old, *_base(runs))


def around(old: bytes, start: int, end: int) -> tuple[int, bytes]:
    """That span of the base with what is around it: offset, bytes."""
    first = max(start - _AROUND_BYTES, 0)
    return first, old[first : max(end + _AROUND_BYTES, 0)]


def by_zstd(piece: bytes, start: int, offset: int, base: bytes, least: int) -> Iterator[EncodedPiece]:
    """What zstd makes of a piece, alone and behind a span of the base, unless that is hopeless."""
    for codec, prefix in (("zstd", None), ("patch", base)):
        if prefix is not None and len(prefix) < PREFIX_MIN_BYTES:
            continue
        fast = len(compress(piece, prefix, _FAST))
        if len(piece) <= _SMALL_BYTES or fast < min(least * _HOPELESS, len(piece) * _RANDOM):
            based = (0, 0) if prefix is None else (offset, len(prefix))
            yield EncodedPiece(start, len(piece), codec, compress(piece, prefix), *based)


def _base(runs: Sequence[Run]) -> tuple[int, int]:
    return min(run.start - run.shift for run in runs), max(run.end - run.shift for run in runs)
