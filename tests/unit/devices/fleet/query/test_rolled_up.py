"""Whatever is rolled up, late, sealed or not yet: each inference counts once in every answer."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, insert, update

from ferryman.devices.fleet.query.compare import compare
from ferryman.devices.fleet.query.devices import device_rows
from ferryman.devices.fleet.query.series import series
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S
from tests.support.seeded import HOUR_BEGIN_NS, HOUR_NS, NOW_NS, join, put, sample, status

DAY_NS = 24 * HOUR_NS
TODAY_NS = NOW_NS // DAY_NS * DAY_NS
DAY = (TODAY_NS - 2 * DAY_NS) // 10**9
SINCE_NS = TODAY_NS - 3 * DAY_NS + 2 * HOUR_NS  # within a day: hours, two whole days, hours


@pytest.fixture
def served(store):
    """Three inferences an hour in all hours of four days."""
    join(store, status("a"), status("b"))
    for hour in range(-3 * 24, 3):
        put(store, "a", "sample", {TODAY_NS + hour * HOUR_NS + 1: sample([1.0, 2.0, 3.0])})
    return store


def counted(store) -> int:
    (row,) = device_rows(store, now_ns=NOW_NS, device="a", since=SINCE_NS).rows
    return row.inferences


def test_before_and_after_rolling_up_the_answer_is_the_same(served):
    hours = 22 + 2 * 24 + 3
    assert counted(served) == 3 * hours
    roll_up(served, NOW_NS)
    assert counted(served) == 3 * hours
    (row,) = device_rows(served, now_ns=NOW_NS, device="a", since=SINCE_NS).rows
    assert (row.latency_p50_ms, row.latency_p95_ms) == (2.0, 3.0)
    assert sum(point.count for point in hourly(served)) == 3 * hours


def test_what_comes_late_counts_before_it_is_rolled_up(served):
    roll_up(served, NOW_NS)
    before = counted(served)
    put(served, "a", "sample", {TODAY_NS - 30 * HOUR_NS: sample([9.0] * 7), HOUR_BEGIN_NS - HOUR_NS: sample([9.0])})
    assert counted(served) == before + 8
    roll_up(served, NOW_NS)
    assert counted(served) == before + 8


def test_hours_that_wait_while_their_day_does_not(served):
    """An hour is rolled up, and the process ends before its day is."""
    roll_up(served, NOW_NS)
    before = counted(served)
    put(served, "a", "sample", {TODAY_NS - 30 * HOUR_NS: sample([9.0])})
    roll_up(served, NOW_NS)
    change(served, insert(tables.dirty).values(device="a", span_s=DAY_S, start_s=DAY))
    change(served, delete(tables.rollups).where(tables.rollups.c.span_s == DAY_S, tables.rollups.c.start_s == DAY))
    assert counted(served) == before + 1


def test_what_comes_after_samples_were_deleted_is_added_to_what_is_sealed(served):
    roll_up(served, NOW_NS)
    before = counted(served)
    rollups, times = tables.rollups.c, tables.records.c.time_ns
    change(served, update(tables.rollups).values(sealed=1).where(rollups.span_s == DAY_S, rollups.start_s == DAY))
    hours = rollups.span_s == HOUR_S, rollups.start_s.between(DAY, DAY + DAY_S - 1)
    change(served, delete(tables.rollups).where(*hours))
    change(served, delete(tables.records).where(times.between(DAY * 10**9, (DAY + DAY_S) * 10**9 - 1)))
    assert counted(served) == before
    put(served, "a", "sample", {TODAY_NS - 30 * HOUR_NS: sample([9.0] * 5)})
    assert counted(served) == before + 5
    roll_up(served, NOW_NS)
    assert counted(served) == before + 5


@pytest.fixture
def without_old_hours(served):
    """Of the first two days nothing is left but the days."""
    roll_up(served, NOW_NS)
    retain(served, Policy(samples_days=1, hours_days=4), NOW_NS + 3 * DAY_NS)
    return served


def test_hours_that_were_deleted_are_said_to_be_left_out(without_old_hours):
    """Of a window's first day, and of every day where hours are compared."""
    found = device_rows(without_old_hours, now_ns=NOW_NS, device="a", since=SINCE_NS)
    assert found.rows[0].inferences == 3 * (2 * 24 + 3)
    assert found.left_out[0].startswith("hours of 1 days of devices (2026-11-21), of which")
    by_hour = compare(without_old_hours, now_ns=NOW_NS, by="device", metrics=["latency_ms"], since=SINCE_NS)
    assert by_hour.rows[0].samples == 3 * (24 + 3)
    assert by_hour.left_out[0].startswith("hours of 2 days of devices (2026-11-21 to 2026-11-22), of which")
    assert series(without_old_hours, "a", "latency_ms", now_ns=NOW_NS, since=SINCE_NS, span_s=3600).left_out


def test_whole_days_leave_nothing_out(without_old_hours):
    found = device_rows(without_old_hours, now_ns=NOW_NS, device="a", since=TODAY_NS - 3 * DAY_NS)
    assert (found.rows[0].inferences, found.left_out) == (3 * (3 * 24 + 3), ())
    other = device_rows(without_old_hours, now_ns=NOW_NS, device="b", since=SINCE_NS)
    assert other.left_out == ()


def change(store, statement):
    store.write(lambda connection: connection.execute(statement))


def hourly(store):
    return series(store, "a", "latency_ms", now_ns=NOW_NS, since=SINCE_NS, span_s=3600).points


def test_days_are_points_too(served):
    roll_up(served, NOW_NS)
    points = series(served, "a", "latency_ms", now_ns=NOW_NS, since=TODAY_NS - 2 * DAY_NS, span_s=86400).points
    assert [(point.time_ns, point.count) for point in points] == [
        (TODAY_NS - 2 * DAY_NS, 72), (TODAY_NS - DAY_NS, 72), (TODAY_NS, 9),
    ]  # fmt: skip
