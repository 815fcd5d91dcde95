"""What the devices of a chaos run record: number n of a device is always the same kind and body."""

from __future__ import annotations

import zlib

from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.telemetry import LogLine, Sample

LOG_EVERY, NOTE_EVERY = 25, 1999
NOTE_MAX_CHARS = 20_000
MARK = "chaos_number"
"""A value that no real sample has."""


class Note(Record):
    """Body of kind `note`, which the collector does not know: longer than others, and sent before them by priority."""

    number: int
    text: str


def record(device: str, number: int) -> tuple[str, Record]:
    """Kind and body."""
    mixed = zlib.crc32(f"{device}/{number}".encode())
    if number % NOTE_EVERY == 0:
        return "note", Note(number=number, text=f"{mixed:08x}" * (mixed % NOTE_MAX_CHARS // 8))
    if number % LOG_EVERY == 0:
        return "log", LogLine(level="WARNING", logger="chaos", message=f"{number} of {device}: \u00fc\n\t\\{mixed:08x}")
    values = {MARK: float(number), "latency_ms": mixed % 9973 / 64, "cpu_percent": mixed % 6400 / 64, "errors": 0.0}
    return "sample", Sample(period_s=1.0, values=values, latencies_ms=(mixed % 997 / 8, mixed % 1009 / 4))
