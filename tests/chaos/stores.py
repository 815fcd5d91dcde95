"""What the collectors of a chaos run write to, read with no help of ferryman's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_RECORDS = """
    SELECT s.boot, r.sequence, r.kind, r.recorded_ns, r.received_ns, r.body
    FROM records r JOIN sources s ON s.id = r.source WHERE s.device = {mark} ORDER BY s.boot, r.sequence"""
_DEVICES = "SELECT DISTINCT device FROM sources ORDER BY device"
_QUARANTINE = "SELECT reason, topic FROM quarantine LIMIT 20"


class Stored(NamedTuple):
    """A row of the records of one device."""

    boot: str
    sequence: int
    kind: str
    recorded_ns: int
    received_ns: int
    body: str


class Reader:
    """Reads a SQLite file, or a PostgreSQL database by its URL."""

    def __init__(self, where: str) -> None:
        self._connection: Any
        self._sqlite = not where.startswith("postgresql:")
        if self._sqlite:
            self._connection = sqlite3.connect(f"{Path(where).absolute().as_uri()}?mode=rw", uri=True, timeout=60)
        else:
            import psycopg

            self._connection = psycopg.connect(where)

    def devices(self) -> list[str]:
        return [device for (device,) in self._rows(_DEVICES)]

    def records(self, device: str) -> Iterator[Stored]:
        """In order of boot and sequence."""
        return map(Stored._make, self._rows(_RECORDS.format(mark="?" if self._sqlite else "%s"), device))

    def quarantine(self) -> list[str]:
        return [f"{topic}: {reason}" for reason, topic in self._rows(_QUARANTINE)]

    def damage(self) -> str:
        """What the database says of its own integrity; empty: nothing is wrong."""
        if not self._sqlite:
            return ""  # its primary keys are read in order above, and checksums on each page
        found = [str(row[0]) for row in self._rows("PRAGMA integrity_check(5)")]
        return "" if found == ["ok"] else "; ".join(found)

    def close(self) -> None:
        self._connection.close()

    def _rows(self, query: str, *arguments: str) -> Iterator[Any]:
        cursor = self._connection.cursor()
        cursor.execute(query, arguments)
        yield from cursor
        cursor.close()
