"""Which bytes of an older payload those of a newer one come from: runs that are equal, and runs that changed."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ferryman.devices.fleet.repository.matching import Bytes, Match, find_matches

MATCH_MIN_BYTES = 48
"""Enough to say where bytes around it came from."""
COPY_MIN_BYTES = 4096
"""A shorter equal span is not worth a piece of its own."""
_BLOCK = 4096
"""Of a changed run; each gets the shift at which most of it is as it was."""
_SHIFTS_MAX = 8
_SWITCH = 512
"""Equal half bytes that a change of shift must win."""
_FLOAT_BYTES = 4
_WINDOW = 512 << 10
"""Of a changed run, what is looked at together."""
_MOVED_MIN_BYTES = 64 << 10
"""Floats that all changed a little, and moved, are looked for in changed runs at least so long."""


class Run(NamedTuple):
    """`new[start:end]` is, or was before it changed, `old[start - shift:end - shift]`."""

    start: int
    end: int
    shift: int
    equal: bool


def align(old: Bytes, new: Bytes, matches: Sequence[Match]) -> list[Run]:
    """Runs of `new`, one after the other; those that are equal are at least `COPY_MIN_BYTES` long.

    Args:
        old: the older payload.
        new: the newer.
        matches: as `find_matches` finds them, of `MATCH_MIN_BYTES` or more.
    """
    runs: list[Run] = []
    at, shift, small = 0, 0, Counter[int]()
    for match in (*matches, Match(len(new), 0, len(new) - len(old))):
        if match.size and match.size < COPY_MIN_BYTES:
            small[match.shift] += match.size
            continue
        if match.start > at:
            shifts = dict.fromkeys((shift, match.shift, *(one for one, _ in small.most_common(_SHIFTS_MAX))))
            runs += _changed(old, new, at, match.start, list(shifts))
        if match.size:
            runs.append(Run(match.start, match.start + match.size, match.shift, equal=True))
        at, shift = match.start + match.size, match.shift
        small.clear()
    return runs


def _changed(old: Bytes, new: Bytes, start: int, end: int, shifts: list[int]) -> list[Run]:
    """Runs of `new[start:end]`, each at the shift that suits it best."""
    moved = _moved_floats(old, new, start, end) if end - start >= _MOVED_MIN_BYTES else []
    runs: list[Run] = []
    for first in range(start, end, _WINDOW):
        last = min(first + _WINDOW, end)
        for run in _settled(old, new, first, last, list(dict.fromkeys((*shifts, 0, *_most(moved, first, last))))):
            if runs and runs[-1].shift == run.shift:
                run = Run(runs.pop().start, *run[1:])  # noqa: PLW2901  # goes on
            runs.append(run)
    return runs


def _settled(old: Bytes, new: Bytes, start: int, end: int, shifts: list[int]) -> list[Run]:
    """Runs of `new[start:end]` with each block at the best of `shifts`."""
    if len(shifts) == 1:
        return [Run(start, end, shifts[0], equal=False)]
    best = _cheapest(np.array([_alike(old, new[start:end], start - shift) for shift in shifts]))
    cuts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
    return [
        Run(start + first * _BLOCK, min(start + last * _BLOCK, end), shifts[int(best[first])], equal=False)
        for first, last in pairwise(cuts)
    ]


def _alike(old: Bytes, part: Bytes, source: int) -> npt.NDArray[np.int64]:
    """How many half bytes of each block are those of `old` from `source` on."""
    first, last = max(0, -source), min(len(part), len(old) - source)
    same = np.zeros(len(part), np.uint8)
    if first < last:
        apart = part[first:last] ^ old[source + first : source + last]
        same[first:last] = (apart & 15 == 0).astype(np.uint8) + (apart >> 4 == 0)
    return np.add.reduceat(same, np.arange(0, len(part), _BLOCK), dtype=np.int64)


def _cheapest(alike: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row for every column that adds up to most, where a change of row costs something."""
    rows, columns = alike.shape
    total = alike[:, 0].copy()
    came = np.zeros((columns, rows), np.int64)
    for column in range(1, columns):
        top = int(total.argmax())
        stay = total >= total[top] - _SWITCH
        came[column] = np.where(stay, np.arange(rows), top)
        total = np.where(stay, total, total[top] - _SWITCH) + alike[:, column]
    best = np.empty(columns, np.int64)
    best[-1] = total.argmax()
    for column in range(columns - 1, 0, -1):
        best[column - 1] = came[column, best[column]]
    return best


def _moved_floats(old: Bytes, new: Bytes, start: int, end: int) -> list[Match]:
    """Spans of floats that have the signs and exponents of others before: these hardly change in training."""
    top = _FLOAT_BYTES - 1  # the byte of sign and exponent
    skip = start + -start % _FLOAT_BYTES + top
    found = find_matches(old[top::_FLOAT_BYTES], new[skip:end:_FLOAT_BYTES], MATCH_MIN_BYTES)
    return [Match(skip + one.start * _FLOAT_BYTES, one.size, one.shift * _FLOAT_BYTES + skip - top) for one in found]


def _most(matches: list[Match], start: int, end: int) -> list[int]:
    """The shifts of most of what begins between `start` and `end`."""
    found = Counter[int]()
    for match in matches[bisect_left(matches, (start,)) : bisect_left(matches, (end,))]:
        found[match.shift] += match.size
    return [shift for shift, _ in found.most_common(_SHIFTS_MAX)]
