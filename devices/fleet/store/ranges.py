"""Sequences as (first, last) spans, both included."""

from __future__ import annotations

from collections.abc import Iterable


def ranges(sequences: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Join sequences into spans, in order."""
    return join((sequence, sequence) for sequence in set(sequences))


def join(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join spans that touch or overlap, in order."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)
