"""What a device process knows to have appended: the truth that the store is judged by.

A line before each append and one after it, each written at once, so that it stands whenever the process is killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

BEGUN, DONE, FAILED = "B", "D", "F"


class Append(NamedTuple):
    """One call of `append_all`, with the records `first` to `first + count - 1`."""

    first: int
    count: int
    state: str
    """BEGUN: the process was killed in it, so that it may be either way, but whole."""
    recorded_ns: int = 0
    """By the device's clock."""
    at_ns: int = 0
    """By a clock that nobody put wrong, before it began."""
    sequences: Sequence[int] = ()


class Journal:
    """Appends lines; use one at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.next = max((append.first + append.count for append in read(path) if append.state != FAILED), default=1)
        """The first number that was never begun, or failed."""
        if not _is_whole(path):
            os.write(self._file, b"\n")

    def begin(self, first: int, count: int) -> None:
        self._line(BEGUN, first, count, time.clock_gettime_ns(time.CLOCK_REALTIME))

    def done(self, first: int, recorded_ns: int, sequences: Sequence[int]) -> None:
        self._line(DONE, first, recorded_ns, *_spans(sequences))

    def failed(self, first: int) -> None:
        self._line(FAILED, first)
        self.next = first

    def _line(self, *fields: object) -> None:
        os.write(self._file, (" ".join(map(str, fields)) + " .\n").encode())


def read(path: Path) -> Iterator[Append]:
    """All appends, in order."""
    begun: Append | None = None
    with path.open() as file:
        for line in file:
            what, *fields, end = line.split() or ["", ""]
            if end != ".":
                continue  # cut short by a kill: what it tells of stays begun
            if what == BEGUN:
                if begun:
                    yield begun
                first, count, at_ns = map(int, fields)
                begun = Append(first, count, BEGUN, at_ns=at_ns)
            elif begun and what == FAILED:
                yield begun._replace(state=FAILED)
                begun = None
            elif begun and what == DONE:
                spans = (tuple(map(int, span.split("-"))) for span in fields[2:])
                sequences = [sequence for first, last in spans for sequence in range(first, last + 1)]
                yield begun._replace(state=DONE, recorded_ns=int(fields[1]), sequences=sequences)
                begun = None
    if begun:
        yield begun


def reached(path: Path) -> int:
    """The number that was begun last, without reading it all."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        begun = [line.split() for line in file.read().splitlines() if line.startswith(b"B ") and line.endswith(b" .")]
    return int(begun[-1][1]) + int(begun[-1][2]) - 1 if begun else 0


def _is_whole(path: Path) -> bool:
    data = path.read_bytes()
    return not data or data.endswith(b"\n")


def _spans(sequences: Sequence[int]) -> list[str]:
    spans: list[list[int]] = []
    for sequence in sequences:
        if spans and spans[-1][1] == sequence - 1:
            spans[-1][1] = sequence
        else:
            spans.append([sequence, sequence])
    return [f"{first}-{last}" for first, last in spans]
