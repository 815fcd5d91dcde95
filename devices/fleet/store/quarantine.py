"""The table of the store that keeps what could not be taken: each message once, and no more than there is room for."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from pathlib import Path
from typing import NamedTuple

from ferryman.runtime.contracts.record import Record

log = logging.getLogger(__name__)

WHOLE_MAX_BYTES = (1 << 20) + 4096
"""What quarantine keeps whole: an outbox body and its envelope. Of longer messages it keeps the head."""
HEAD_BYTES = 4096
QUARANTINE_MAX_BYTES = 256 << 20
_QUARANTINE_ROW_BYTES = 512
"""Charged for each beside its bytes."""
_MADE_ROOM = "older messages that made room for newer ones"


class Bad(NamedTuple):
    """A message that could not be taken, whole, and why."""

    topic: str
    raw: bytes
    reason: str


class Quarantined(Record):
    """A message that was not taken; with an empty topic, how many are no more kept."""

    topic: str
    raw: bytes
    reason: str
    received_at_ns: int
    times: int


def keep(connection: sqlite3.Connection, bad: Bad, now_ns: int) -> None:
    """Put a message in, or count it once more."""
    digest = hashlib.sha256(bad.topic.encode() + b"\0" + bad.raw).digest()
    kept, reason = bad.raw, bad.reason
    if len(kept) > WHOLE_MAX_BYTES:
        sha256 = hashlib.sha256(bad.raw).hexdigest()
        reason = f"{reason}; {len(bad.raw)} bytes with sha256 {sha256}, of which the first are kept"
        kept = kept[:HEAD_BYTES]
    connection.execute(
        "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
        (digest, bad.topic, kept, reason, now_ns),
    )


def make_room(connection: sqlite3.Connection, store: Path, now_ns: int) -> None:
    """Drop the oldest of a full quarantine, and count them in a row of its own."""
    query = "SELECT rowid, length(raw) FROM quarantine WHERE topic != '' ORDER BY received_at_ns, rowid"
    rows = [(row, length + _QUARANTINE_ROW_BYTES) for row, length in connection.execute(query)]
    used = sum(size for _, size in rows)
    if used <= QUARANTINE_MAX_BYTES:
        return
    gone = 0
    for row, size in rows:
        if used <= QUARANTINE_MAX_BYTES - QUARANTINE_MAX_BYTES // 16:  # more than needed: not one at a time
            break
        connection.execute("DELETE FROM quarantine WHERE rowid = ?", (row,))
        used -= size
        gone += 1
    log.warning("store %s: quarantine is full; dropped the %d oldest messages in it", store, gone)
    connection.execute(
        "INSERT INTO quarantine VALUES (x'', '', x'', ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET times = times + excluded.times, received_at_ns = excluded.received_at_ns",
        (_MADE_ROOM, now_ns, gone),
    )
