"""Records of a clock that was not sure get their true time, once the device knows it, whichever came first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select, text, tuple_

from ferryman.devices.fleet.store.bulk import insert_many, mark_dirty
from ferryman.devices.fleet.store.tables import CORRECTED, HOUR_S, SURE, clocks, sources
from ferryman.runtime.contracts.envelope import TIME_MAX_NS
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.telemetry import ClockFix

if TYPE_CHECKING:
    from ferryman.devices.fleet.store.insert import Arrived

_STEP_MIN_NS = 10**6
"""A fix that says the same but for this, a millisecond, changes nothing: correcting costs every record of the boot."""
_HOUR_NS = HOUR_S * 10**9
_LOCK = 0x66657272  # "ferr": of advisory locks
_Boot = tuple[str, str]

_MOVED = f"""source = :source AND clock <> {SURE} AND uptime_ns <= :room AND time_ns <> uptime_ns + :offset"""
_MOVE = text(f"UPDATE records SET time_ns = uptime_ns + :offset, clock = {CORRECTED} WHERE {_MOVED}")  # noqa: S608  # ours
_HOURS = text(f"""
    SELECT time_ns / {_HOUR_NS} FROM records WHERE {_MOVED} AND kind = 'sample'
    UNION SELECT (uptime_ns + :offset) / {_HOUR_NS} FROM records WHERE {_MOVED} AND kind = 'sample'""")  # noqa: S608  # ours


def learn(connection: Connection, arrived: Sequence[Arrived], ids: dict[tuple[str, str], int]) -> dict[int, int]:
    """Take in the fixes among what arrived, correct what is stored, and tell the offset (ns) of each unsure source."""
    fixes: dict[_Boot, tuple[int, int]] = {}
    unsure: dict[int, _Boot] = {}
    for one in arrived:
        for row in one.rows:
            if row.kind == "clock" and (fix := _read(row.body)) is not None:
                key = (one.device, fix.kernel_boot)
                fixes[key] = max(fixes.get(key, (0, 0)), (row.uptime_ns or 0, fix.offset_ns))
            if not row.sure:
                unsure[ids[one.device, one.boot]] = (one.device, kernel_boot(one.boot))
    if not (fixes or unsure):
        return {}
    if connection.dialect.name == "postgresql":
        # A fix must not pass by an unsure record that another process is about to commit.
        kind = "" if fixes else "_shared"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{kind}({_LOCK})")
    known = _offsets(connection, {*unsure.values(), *fixes})
    if fixes:
        _keep(connection, fixes)
        now = _offsets(connection, set(fixes))
        _correct(connection, {key: offset for key, offset in now.items() if offset != known.get(key)})
        known |= now
    return {source: known[boot] for source, boot in unsure.items() if boot in known}


def kernel_boot(boot: str) -> str:
    """The kernel's part of `Envelope.boot`."""
    return boot.partition(".")[2]


def _read(body: bytes) -> ClockFix | None:
    try:
        return decode(body, ClockFix)
    except ValueError:
        return None


def _keep(connection: Connection, fixes: dict[_Boot, tuple[int, int]]) -> None:
    rows = [(*key, offset, uptime) for key, (uptime, offset) in sorted(fixes.items())]
    newer = f"""ON CONFLICT (device, kernel_boot) DO UPDATE SET uptime_ns = excluded.uptime_ns,
                offset_ns = CASE WHEN abs(excluded.offset_ns - clocks.offset_ns) < {_STEP_MIN_NS}
                                 THEN clocks.offset_ns ELSE excluded.offset_ns END
                WHERE excluded.uptime_ns >= clocks.uptime_ns"""
    insert_many(connection, clocks, ("device", "kernel_boot", "offset_ns", "uptime_ns"), rows, newer)


def _offsets(connection: Connection, boots: set[_Boot]) -> dict[_Boot, int]:
    wanted = sorted(boots)
    found = {}
    for start in range(0, len(wanted), 400):
        query = select(clocks.c.device, clocks.c.kernel_boot, clocks.c.offset_ns)
        some = tuple_(clocks.c.device, clocks.c.kernel_boot).in_(wanted[start : start + 400])
        for device, boot, offset in connection.execute(query.where(some)):
            found[device, boot] = offset
    return found


def _correct(connection: Connection, offsets: dict[_Boot, int]) -> None:
    for device in sorted({device for device, _ in offsets}):
        query = select(sources.c.id, sources.c.boot).where(sources.c.device == device).order_by(sources.c.id)
        for source, whole in connection.execute(query).all():
            if (offset_ns := offsets.get((device, kernel_boot(whole)))) is not None:
                values = {"source": source, "offset": offset_ns, "room": TIME_MAX_NS - offset_ns}
                hours = connection.execute(_HOURS, values).all()
                mark_dirty(connection, ((device, HOUR_S, hour * HOUR_S) for (hour,) in hours))
                connection.execute(_MOVE, values)
