"""An exact delta: pieces that make a newer payload from bounded spans of an older one.

Equal spans are copied, wherever they moved; what changed is coded against the span it came from, by whatever codec
makes it smallest. Every piece is made and compared before it is returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ferryman.devices.fleet.repository.alignment import MATCH_MIN_BYTES, Run, align
from ferryman.devices.fleet.repository.joining import RUN_MAX_BYTES, EncodedPiece, Joiner, around, by_zstd
from ferryman.devices.fleet.repository.matching import Match, find_matches
from ferryman.devices.fleet.repository.segments import PIECE_BYTES, WAYS, cut
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.pieces.codecs import CODECS, make
from ferryman.runtime.pieces.elements import encode_elements

_COPY_ALONE_BYTES = 1 << 20
"""A longer equal span is always a piece of its own: it costs the device nothing but reading."""
_LIGHT_BYTES = 64
"""Edits of no more, and a fiftieth of what they make, are not worth trying other ways."""
_NEAR = 1.02
"""Ways whose estimates are so near the best are tried."""

__all__ = ["EncodedPiece", "encode_delta"]


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
    """Pieces of `new[start:end]`; short copies and light changes between them become one piece where that pays."""
    if start == end:
        return []
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)[start:end]
    found = find_matches(before, after, MATCH_MIN_BYTES)
    joiner = Joiner(old, new, [Match(one.start + start, one.size, one.shift + start) for one in found])
    pieces: list[EncodedPiece] = []
    waiting: list[Alone] = []
    for run in _parts(align(before, after, found), start):
        alone = _alone(old, new, run, joiner)
        if waiting and not (alone.light and joiner.fits([*(one.run for one in waiting), run])):
            pieces += _together(old, new, waiting, joiner)
            waiting.clear()
        waiting.append(alone)
        if not alone.light:
            pieces += alone.pieces
            waiting.clear()
    return pieces + _together(old, new, waiting, joiner)


class Alone(NamedTuple):
    """A run, and how it would be stored if it were not joined with others."""

    run: Run
    pieces: list[EncodedPiece]
    light: bool
    """Whether joining may pay."""


def _alone(old: bytes, new: bytes, run: Run, joiner: Joiner) -> Alone:
    size = run.end - run.start
    if run.equal:
        return Alone(run, [_copied(run)], size < _COPY_ALONE_BYTES)
    edits = joiner.edits([run])
    if edits and len(edits.stored) <= _LIGHT_BYTES + size // 50:
        return Alone(run, [edits], light=True)
    pieces = list(_changed(old, new, run))
    return Alone(run, pieces, edits is not None and _cost([edits]) <= _cost(pieces) + 2 * PIECE_BYTES)


def _together(old: bytes, new: bytes, runs: list[Alone], joiner: Joiner) -> list[EncodedPiece]:
    """The pieces of light runs, or one of them all."""
    pieces = [piece for one in runs for piece in one.pieces]
    plans = [pieces, joiner.joined([one.run for one in runs], _cost(pieces))] if pieces else [pieces]
    if len(runs) == 1 and not runs[0].run.equal:
        plans.append(list(_changed(old, new, runs[0].run)))
    return min((plan for plan in plans if plan or not pieces), key=_cost)


def _cost(pieces: Sequence[EncodedPiece]) -> float:
    return sum(len(one.stored) + PIECE_BYTES for one in pieces)


def _parts(runs: Sequence[Run], start: int) -> Iterator[Run]:
    """The same, counted from the payload's beginning, changed ones in parts that pieces can hold."""
    for run in runs:
        step = run.end - run.start if run.equal else RUN_MAX_BYTES
        for first in range(run.start, run.end, step):
            yield Run(first + start, min(first + step, run.end) + start, run.shift + start, run.equal)


def _copied(run: Run) -> EncodedPiece:
    return EncodedPiece(run.start, run.end - run.start, "copy", b"", run.start - run.shift, run.end - run.start)


def _changed(old: bytes, new: bytes, run: Run) -> Iterator[EncodedPiece]:
    """Pieces of a run that changed; what lies outside of the base has none but what is near."""
    inside = (min(max(one, run.start), run.end) for one in (run.shift, run.shift + len(old)))
    bounds = (run.start, *inside, run.end)
    for part, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            base = old[first - run.shift : last - run.shift] if part == 1 else None
            yield from _cut(old, new, Run(first, last, run.shift, equal=False), base)


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
        ways += by_zstd(
            piece, start, *around(old, start - run.shift, end - run.shift), min(len(way.stored) for way in ways)
        )
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
