"""Hours and days of a device, each in the hands of one transaction: see `dirty` in the tables."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Column, ColumnElement, Connection, delete, func, insert, select, text, tuple_

from ferryman.devices.fleet.store.bulk import Span
from ferryman.devices.fleet.store.ranges import join, ranges
from ferryman.devices.fleet.store.tables import SAMPLE, dirty, gone, of_kind, other_kinds, records, sources

_NS = 10**9
_KEY = tuple_(dirty.c.device, dirty.c.span_s, dirty.c.start_s)


def take_dirty(connection: Connection, span_s: int, now_s: int, limit: int, after: tuple[int, str]) -> list[Span]:
    """Strike off some that have ended, and hold them until the commit; those that another process holds are left.

    In order of start and device, those beyond `after`.
    """
    waits = """(start_s + :span_s <= :now_s OR start_s > :now_s + 86400)"""  # the latter: of a clock that is wrong
    skip = "FOR UPDATE SKIP LOCKED" if connection.dialect.name == "postgresql" else ""
    query = text(f"""
        SELECT device, span_s, start_s FROM dirty
        WHERE span_s = :span_s AND {waits} AND (start_s, device) > (:start_s, :device)
        ORDER BY start_s, device LIMIT :limit {skip}""")  # noqa: S608  # ours
    values = {"span_s": span_s, "now_s": now_s, "limit": limit, "start_s": after[0], "device": after[1]}
    found = [tuple(row) for row in connection.execute(query, values)]
    if found:
        connection.execute(delete(dirty).where(_KEY.in_(found)))
    return sorted(found)


def hold(connection: Connection, span: Span) -> bool:
    """Hold an hour or day that nobody has anything new for; `release` it before the commit."""
    clean = text(
        "INSERT INTO dirty (device, span_s, start_s) VALUES (:device, :span_s, :start_s) ON CONFLICT DO NOTHING"
    )
    return connection.execute(clean, dict(zip(("device", "span_s", "start_s"), span, strict=True))).rowcount == 1


def release(connection: Connection, held: Iterable[Span]) -> None:
    """The other end of `hold`."""
    for span in held:
        connection.execute(delete(dirty).where(_KEY.in_([span])))


def samples(connection: Connection, span: Span) -> list[tuple[int, int, str]]:
    """(source, sequence, body) of the samples that count in an hour; those sent again after their end are deleted."""
    _, span_s, start_s = span
    found: list[tuple[int, int, str]] = []
    for source in _sources(connection, span):
        query = select(records.c.sequence, records.c.body).where(*_within(source, span_s, start_s))
        rows = connection.execute(query.order_by(records.c.sequence)).all()
        spent = _gone(connection, source) if rows else []
        again = [sequence for sequence, _ in rows if any(first <= sequence <= last for first, last in spent)]
        for at in range(0, len(again), 500):
            some = records.c.sequence.in_(again[at : at + 500])
            connection.execute(delete(records).where(records.c.source == source, some))
        left = set(again)
        found += [(source, sequence, body) for sequence, body in rows if sequence not in left]
    return found


def last_received_ns(connection: Connection, span: Span) -> int:
    """When the last of the samples of an hour came; 0: there are none."""
    _, span_s, start_s = span
    last = 0
    for source in _sources(connection, span):
        query = select(func.max(records.c.received_ns)).where(*_within(source, span_s, start_s))
        last = max(last, connection.execute(query).scalar() or 0)
    return last


def delete_samples(connection: Connection, span: Span) -> int:
    """Delete the samples of an hour that is held, and remember that they were there; how many."""
    _, span_s, start_s = span
    deleted = 0
    for source in _sources(connection, span):
        within = _within(source, span_s, start_s)
        sequences = connection.execute(select(records.c.sequence).where(*within)).scalars().all()
        if sequences:
            # Records of another kind that lie between are known as well: it keeps the ranges few.
            others = select(records.c.sequence).where(
                records.c.source == source,
                records.c.sequence.between(min(sequences), max(sequences)),
                other_kinds(),
            )
            _remember(connection, source, [*sequences, *connection.execute(others).scalars()])
            deleted += connection.execute(delete(records).where(*within)).rowcount
    return deleted


def _sources(connection: Connection, span: Span) -> list[int]:
    """Those of the device that have samples in an hour; it may have had very many boots."""
    device, span_s, start_s = span
    # Not EXISTS, which PostgreSQL may answer by reading the table of records.
    one = select(records.c.sequence).where(*_within(sources.c.id, span_s, start_s)).limit(1).scalar_subquery()
    query = select(sources.c.id).where(sources.c.device == device, one.is_not(None)).order_by(sources.c.id)
    return list(connection.execute(query).scalars())


def _within(source: int | Column[int], span_s: int, start_s: int) -> tuple[ColumnElement[bool], ...]:
    return (
        records.c.source == source,
        of_kind(SAMPLE),
        records.c.time_ns >= start_s * _NS,
        records.c.time_ns < (start_s + span_s) * _NS,
    )


def _gone(connection: Connection, source: int) -> list[tuple[int, int]]:
    return [
        (first, last)
        for first, last in connection.execute(select(gone.c.first, gone.c.last).where(gone.c.source == source))
    ]


def _remember(connection: Connection, source: int, sequences: Iterable[int]) -> None:
    before = _gone(connection, source)
    after = join([*before, *ranges(sequences)])
    if list(after) != before:
        connection.execute(delete(gone).where(gone.c.source == source))
        connection.execute(insert(gone), [{"source": source, "first": first, "last": last} for first, last in after])
