"""Where to cut what changed into pieces: where the odds of its elements change so much that new tables pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ferryman.devices.fleet.repository.matching import Bytes
from ferryman.runtime.pieces.codecs import PREFIX_MIN_BYTES, compress
from ferryman.runtime.pieces.elements import KINDS, Kind, span_of, split
from ferryman.runtime.pieces.rans import Counts, count_symbols

PIECE_BYTES = 60.0
"""What a piece costs of itself: its place in the index, most of it a hash, and heads."""
_ODDS_BYTES = 1.2
"""What a symbol costs in a table."""
_BLOCKS, _BLOCK_MIN, _BLOCK_MAX = 256, 1024, 8192
_FAST = 3
_AROUND = 1024
Costs = npt.NDArray[np.float64]


class Way(NamedTuple):
    """How a piece may be stored; without a kind it is zstd's matter."""

    kind: Kind | None
    based: bool


WAYS = (Way(None, based=True), *(Way(kind, based) for based in (True, False) for kind in KINDS))


class Segment(NamedTuple):
    """`start` to `end` of a run, and what each of `WAYS` is estimated to cost: bytes."""

    start: int
    end: int
    costs: Costs


def cut(new: Bytes, base: Bytes | None, lead: int) -> list[Segment]:
    """Segments of a changed run that are to be pieces.

    Args:
        new: the run.
        base: as many bytes that it comes from; None: from nothing.
        lead: bytes before the first that lies at a multiple of 16 in its payload.
    """
    block = min(max(len(new) // _BLOCKS // 16 * 16, _BLOCK_MIN), _BLOCK_MAX)
    starts = [0, *range(lead + block, len(new) - block // 2, block)]
    bounds = list(zip(starts, [*starts[1:], len(new)], strict=True))
    blocks = _Blocks(new, base, lead, bounds)
    costs = blocks.costs()
    while len(bounds) > 1:
        together = blocks.joined().costs()
        gains = costs[:-1].min(axis=1) + costs[1:].min(axis=1) - together.min(axis=1)
        pairs = _apart(gains)
        if not len(pairs):
            break
        blocks.join(pairs)
        costs[pairs] = together[pairs]
        costs = np.delete(costs, pairs + 1, axis=0)
        for pair in pairs[::-1].tolist():
            bounds[pair : pair + 2] = [(bounds[pair][0], bounds[pair + 1][1])]
    return [Segment(start, end, cost) for (start, end), cost in zip(bounds, costs, strict=True)]


def _apart(gains: Costs) -> npt.NDArray[np.intp]:
    """Pairs of neighbours that gain, those that gain most first, none over another."""
    taken = np.zeros(len(gains) + 1, bool)
    chosen = []
    for pair in np.argsort(-gains, kind="stable").tolist():
        if gains[pair] > 0 and not taken[pair] and not taken[pair + 1]:
            taken[pair : pair + 2] = True
            chosen.append(pair)
    return np.array(sorted(chosen), np.intp)


class _Blocks:
    """How often each symbol is in each of adjacent blocks, in every way."""

    def __init__(self, new: Bytes, base: Bytes | None, lead: int, bounds: Sequence[tuple[int, int]]) -> None:
        self.counts: list[Counts | None] = []
        self.plain: list[Costs] = []
        for kind, based in WAYS:
            counts: Counts | None = None
            if kind is None:
                plain = np.array([_zstd_bytes(new, base, *one) for one in bounds])
            elif based and base is None:
                plain = np.full(len(bounds), np.inf)
            else:
                counts, plain = _counted(kind, new, base if based else None, lead, bounds)
            self.counts.append(counts)
            self.plain.append(plain)

    def joined(self) -> _Blocks:
        """Of every block and the next."""
        made = object.__new__(_Blocks)
        made.counts = [None if one is None else one[:-1] + one[1:] for one in self.counts]
        made.plain = [one[:-1] + one[1:] for one in self.plain]
        return made

    def join(self, pairs: npt.NDArray[np.intp]) -> None:
        """Make one block of each of `pairs` and the next."""
        for one in (*self.counts, *self.plain):
            if one is not None:
                one[pairs] += one[pairs + 1]
        self.counts = [None if one is None else np.delete(one, pairs + 1, axis=0) for one in self.counts]
        self.plain = [np.delete(one, pairs + 1, axis=0) for one in self.plain]

    def costs(self) -> Costs:
        """Bytes [block, way]."""
        return PIECE_BYTES + np.stack(
            [
                plain if counts is None else plain + _bytes(counts)
                for counts, plain in zip(self.counts, self.plain, strict=True)
            ],
            axis=1,
        )


def _bytes(counts: Counts) -> Costs:
    """Entropy and tables, of [block, context, symbol]."""
    totals = counts.sum(axis=2)
    bits = _plogp(totals).sum(axis=1) - _plogp(counts.reshape(len(counts), -1)).sum(axis=1)
    coded: Costs = bits / 8 + _ODDS_BYTES * np.count_nonzero(counts, axis=(1, 2))
    return coded


def _plogp(counts: Counts) -> Costs:
    logs: Costs = np.log2(np.maximum(counts, 1))
    return counts * logs


def _counted(
    kind: Kind, new: Bytes, base: Bytes | None, lead: int, bounds: Sequence[tuple[int, int]]
) -> tuple[Counts, Costs]:
    """Symbols [block, context, symbol], and bytes that are no symbols."""
    parts = []
    for start, end in bounds:
        first = start or lead % kind.width  # only the first may begin within an element, and the last end in one
        last = first + (end - first) // kind.width * kind.width
        parts.append(split(kind, new[first:last], None if base is None else base[first:last]))
    lowest, many = span_of(np.sum([np.bincount(part.contexts, minlength=256) for part in parts], axis=0))
    counts = np.stack(
        [
            count_symbols(part.symbols, np.clip(part.contexts, lowest, lowest + many - 1) - np.uint8(lowest), many)
            for part in parts
        ]
    )
    return counts, np.array([part.counts.sum(dtype=np.int64) / 8 for part in parts])


def _zstd_bytes(new: Bytes, base: Bytes | None, start: int, end: int) -> float:
    prefix = b"" if base is None else base[max(start - _AROUND, 0) : end + _AROUND].tobytes()
    return float(len(compress(new[start:end].tobytes(), prefix if len(prefix) >= PREFIX_MIN_BYTES else None, _FAST)))
