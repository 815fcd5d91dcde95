"""Where bytes of an older payload are found in a newer one: equal spans of any size, wherever they moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

_WINDOW = 32
"""Bytes that an anchor looks at."""
_ONE_IN = 6
"""Of 2^6 positions one is an anchor, wherever its bytes lie."""
_TIMES = 4
_BLOCK = 1 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)
_OTHER = np.uint64(0xC2B2AE3D27D4EB4F)


class Match(NamedTuple):
    """`new[start:start + size] == old[start - shift:...]`."""

    start: int
    size: int
    shift: int


def find_matches(old: Bytes, new: Bytes, size_min: int) -> list[Match]:
    """Equal spans of at least `size_min` bytes, in the order of `new`, none over another.

    Of two as long, the one that goes on where its neighbour ended wins: what did not move is found unmoved.
    """
    found: list[Match] = []
    end = shift = 0
    for position, source in _common_anchors(old, new):
        if position < end:
            continue
        candidates = dict.fromkeys((shift, 0, position - source))
        matches = [_extended(old, new, position, one, end) for one in candidates]
        best = max(matches, key=lambda match: match.size)
        if best.size >= size_min:
            found.append(best)
            end, shift = best.start + best.size, best.shift
    return found


def equal_bytes(one: Bytes, other: Bytes) -> int:
    """How many of the first bytes are equal."""
    most = min(len(one), len(other))
    step, at = 256, 0
    while at < most:
        differ = one[at : min(at + step, most)] != other[at : min(at + step, most)]
        first = int(differ.argmax())
        if differ[first]:
            return at + first
        at, step = min(at + step, most), min(step * 4, _BLOCK)
    return most


def _extended(old: Bytes, new: Bytes, at: int, shift: int, floor: int) -> Match:
    """The equal span around `new[at]`, not before `floor`; of 0 bytes where they differ."""
    source = at - shift
    ahead = equal_bytes(new[at:], old[source:]) if 0 <= source < len(old) else 0
    if not ahead:
        return Match(at, 0, shift)
    back = min(at - floor, source)
    behind = equal_bytes(new[at - back : at][::-1], old[source - back : source][::-1])
    return Match(at - behind, ahead + behind, shift)


def _common_anchors(old: Bytes, new: Bytes) -> Iterator[tuple[int, int]]:
    """(position in new, first in old) of equal anchors; those that are many times in `old` say nothing."""
    keys, places = _anchors(old)
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    known, first, count = np.unique(keys, return_index=True, return_counts=True)
    known, first = known[count <= _TIMES], first[count <= _TIMES]
    wanted, positions = _anchors(new)
    if not len(known) or not len(wanted):
        return
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    hit = known[at] == wanted
    yield from zip(positions[hit].tolist(), places[first[at[hit]]].tolist(), strict=True)


def _anchors(data: Bytes) -> tuple[npt.NDArray[np.uint64], Positions]:
    """Keys and positions of the anchors: chosen by what follows them, so insertions before do not matter."""
    keys: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    places: list[Positions] = [np.empty(0, np.int64)]
    for start in range(0, len(data) - _WINDOW + 1, _BLOCK):
        part = np.ascontiguousarray(data[start : start + _BLOCK + _WINDOW - 1])
        words = np.ndarray((len(part) - 7,), "<u8", part, strides=(1,))
        many = len(part) - _WINDOW + 1
        chosen = np.flatnonzero((words[:many] * _MIX) >> np.uint64(64 - _ONE_IN) == 0)
        key = np.zeros(len(chosen), np.uint64)
        for word in range(0, _WINDOW, 8):
            key = (key ^ words[chosen + word]) * _OTHER
            key ^= key >> np.uint64(29)
        keys.append(key)
        places.append(chosen + start)
    return np.concatenate(keys), np.concatenate(places)
