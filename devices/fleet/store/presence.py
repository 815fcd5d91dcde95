"""Who is there: the last status of each device, so that a late message of an earlier connection changes nothing.

A death says little more than that, so what the device last told stays beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, select, update

from ferryman.devices.fleet.store.bulk import insert_many
from ferryman.devices.fleet.store.tables import devices
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode

log = logging.getLogger(__name__)
_CHUNK = 400
_STAYS = (
    *("ferryman", "package_sha256", "package_name", "release", "answers", "interpreters", "standing"),
    *("labels", "model", "outbox_pending", "outbox_dropped", "storage", "mode"),
)
"""What a death that leaves it empty does not change."""
_COLUMNS = ("device", "status", "online", "birth", "changed_ns", "seen_ns")


def take(connection: Connection, statuses: Sequence[Status], now_ns: int, retained: Sequence[Status] = ()) -> None:
    """Keep each status unless it is older news than the one that is kept.

    What the broker had `retained` and tells again is no sign of life: a device that died with its broker has no death.
    """
    newest: dict[str, Status] = {}
    changed: dict[str, int] = {}
    for device, text, changed_ns in _kept(connection, sorted({one.device for one in (*retained, *statuses)})):
        try:
            newest[device] = decode(text.encode(), Status)
        except ValueError as error:  # of a version that took more: the next one replaces it
            log.warning("the status that is kept of %s cannot be read: %s", device, error)
        else:
            changed[device] = changed_ns
    news: set[str] = set()
    for at, status in enumerate((*retained, *statuses)):
        kept, again = newest.get(status.device), at < len(retained)
        if kept is not None and _is_stale(status, kept, again=again):
            continue
        new = status if kept is None or status.online else _with_last(status, kept)
        if again and new == kept:
            continue
        if kept is None or kept.online != status.online:
            changed[status.device] = now_ns
        newest[status.device] = new
        news.add(status.device)
    rows = [
        (name, encode(newest[name]).decode(), newest[name].online, newest[name].birth, changed[name], now_ns)
        for name in sorted(news)
    ]
    values = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
    insert_many(connection, devices, _COLUMNS, rows, f"ON CONFLICT (device) DO UPDATE SET {values}")


def seen(connection: Connection, names: Sequence[str], now_ns: int) -> None:
    """Something of these devices, in order of name, has come."""
    for start in range(0, len(names), _CHUNK):
        some = select(devices.c.device).where(devices.c.device.in_(names[start : start + _CHUNK]))
        # In order: two collectors that wait for each other's rows would be a deadlock.
        found = connection.execute(some.order_by(devices.c.device).with_for_update()).scalars().all()
        if found:
            later = devices.c.device.in_(found) & (devices.c.seen_ns < now_ns)
            connection.execute(update(devices).where(later).values(seen_ns=now_ns))


def _kept(connection: Connection, names: Sequence[str]) -> list[tuple[str, str, int]]:
    if connection.dialect.name == "postgresql" and names:
        # Another collector may be about to insert the same; then this waits for it.
        empty = encode(Status(device="", online=False)).decode()
        blank = [(name, empty, False, -1, 0, 0) for name in names]
        insert_many(connection, devices, _COLUMNS, blank, "ON CONFLICT DO NOTHING")
    found: list[tuple[str, str, int]] = []
    for start in range(0, len(names), _CHUNK):
        query = select(devices.c.device, devices.c.status, devices.c.changed_ns, devices.c.birth)
        query = query.where(devices.c.device.in_(names[start : start + _CHUNK])).order_by(devices.c.device)
        rows = connection.execute(query.with_for_update()).all()
        found += [(row.device, row.status, row.changed_ns) for row in rows if row.birth >= 0]
    return found


def _with_last(death: Status, kept: Status) -> Status:
    """The death, with what was known."""
    last = {name: getattr(kept, name) for name in _STAYS if not getattr(death, name)}
    if kept.mode == "offline" and death.birth > kept.birth:
        last.pop("mode", None)  # it was back meanwhile, whatever was heard of that
    if death.package_sha256 is not None:
        last |= {"package_name": death.package_name, "release": death.release, "answers": death.answers}
    return msgspec.structs.replace(death, **last)


def _is_stale(new: Status, kept: Status, *, again: bool) -> bool:
    """Births count the connections of one outbox: within one the higher wins, and in it the end.

    Where no outbox could be opened they are not counted over a restart, and what comes last counts. So does what the
    broker told `again` of another outbox: it would have kept what was said later.
    """
    if new.birth == 0 or kept.birth == 0:  # an agent that does not tell
        return new.birth == 0 < kept.birth and not new.online
    outboxes = {status.boot.partition(".")[0] for status in (new, kept) if status.boot}
    if outboxes == {""}:
        return False
    if len(outboxes) <= 1:
        return (new.birth, not new.online) < (kept.birth, not kept.online)
    return not new.online and not again  # of the outbox before
