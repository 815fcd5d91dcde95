"""What each interpreter's way of timing gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ferryman.profiler.operators.node import Node

WARM_UP_RUNS = 3
_NS = 1000


def middle_ns(whole_us: int) -> int:
    """A time that was cut off to whole microseconds, in ns: the middle of its microsecond; 0 stays 0."""
    return whole_us * _NS + (_NS // 2 if whole_us else 0)


@dataclass(frozen=True)
class Timed:
    """Operators, in the order they ran, and whole runs."""

    source: str
    """How the times were had."""
    rows: Sequence[tuple[Node, Sequence[int]]]
    """Each operator's times, ns, one a run."""
    whole: Sequence[int]
    """Of whole runs, ns, timed the same way."""
