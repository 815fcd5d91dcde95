"""The table of the store that keeps what could not be taken: each message once, and no more than there is room for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, select

from ferryman.devices.fleet.store.engine import upsert
from ferryman.devices.fleet.store.tables import quarantine
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


def keep(connection: Connection, messages: Iterable[Bad], now_ns: int) -> None:
    """Put messages in, or count them once more, and make room if need be."""
    rows: dict[bytes, dict[str, Any]] = {}
    for bad in messages:
        row = _row(bad, now_ns)
        rows.setdefault(row["sha256"], row | {"times": 0})["times"] += 1
    if rows:
        _put(connection, [rows[digest] for digest in sorted(rows)])
        make_room(connection, now_ns)


def make_room(connection: Connection, now_ns: int, max_bytes: int | None = None) -> int:
    """Drop the oldest of a full quarantine, and count them in a row of its own; how many."""
    room = QUARANTINE_MAX_BYTES if max_bytes is None else max_bytes
    length = func.length(quarantine.c.raw) + _QUARANTINE_ROW_BYTES
    used = connection.execute(select(func.sum(length)).where(quarantine.c.topic != "")).scalar() or 0
    if used <= room:
        return 0
    oldest = select(quarantine.c.sha256, length).where(quarantine.c.topic != "")
    gone: list[bytes] = []
    for digest, size in connection.execute(oldest.order_by(quarantine.c.received_ns, quarantine.c.sha256)):
        if used <= room - room // 16:  # more than needed: not one at a time
            break
        used -= size
        gone.append(digest)
    for start in range(0, len(gone), 500):
        connection.execute(delete(quarantine).where(quarantine.c.sha256.in_(gone[start : start + 500])))
    log.warning("quarantine is full; dropped the %d oldest messages in it", len(gone))
    _put(connection, [_row(Bad("", b"", _MADE_ROOM), now_ns) | {"sha256": b"", "times": len(gone)}], renew=True)
    return len(gone)


def _row(bad: Bad, now_ns: int) -> dict[str, Any]:
    kept, reason = bad.raw, bad.reason
    if len(kept) > WHOLE_MAX_BYTES:
        sha256 = hashlib.sha256(bad.raw).hexdigest()
        reason = f"{reason}; {len(bad.raw)} bytes with sha256 {sha256}, of which the first are kept"
        kept = kept[:HEAD_BYTES]
    return {
        "sha256": hashlib.sha256(bad.topic.encode(errors="replace") + b"\0" + bad.raw).digest(),
        "topic": _storable(bad.topic),
        "raw": kept,
        "reason": _storable(reason),
        "received_ns": now_ns,
        "times": 1,
    }


def _put(connection: Connection, rows: list[dict[str, Any]], *, renew: bool = False) -> None:
    statement = upsert(connection)(quarantine)
    changed = {"times": quarantine.c.times + statement.excluded.times}
    if renew:
        changed["received_ns"] = statement.excluded.received_ns
    connection.execute(statement.on_conflict_do_update(index_elements=["sha256"], set_=changed), rows)


def _storable(text: str) -> str:
    """PostgreSQL takes no NUL, and neither database half a surrogate pair."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()
