"""Runs, logs, alerts, samples and series."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import update

from ferryman.devices.fleet.query.alerts import alerts
from ferryman.devices.fleet.query.logs import Following, logs
from ferryman.devices.fleet.query.runs import runs
from ferryman.devices.fleet.query.series import samples, series
from ferryman.devices.fleet.store import tables
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Unavailable, encode
from tests.support.measurements import measurement
from tests.support.seeded import HOUR_BEGIN_NS, HOUR_NS, NOW_NS, alert, join, put, roll_up, sample, status

MINUTE = 60 * 10**9


def line(message: str, level: str = "WARNING", logger: str = "agent") -> dict[str, object]:
    return {"level": level, "logger": logger, "message": message, "times": 1}


def said(found) -> list[str]:
    return [row.message for row in found.rows]


def test_runs_are_the_newest_first_with_a_number_a_quantity(store):
    for n, device in enumerate(("a", "b", "a")):
        put(store, device, "measurement", {NOW_NS - 9 + n: encode(measurement(f"p{n}", str(n) * 64))})
    put(store, "a", "measurement", {NOW_NS: b'{"schema": 99}'})
    found = runs(store, now_ns=NOW_NS)
    assert [(row.device, row.package) for row in found.rows] == [("a", "p2"), ("b", "p1"), ("a", "p0")]
    assert found.rows[0].latency_ms > 0
    assert isinstance(found.rows[0].energy_mj, Unavailable)
    assert found.total == 3
    assert found.left_out[0].startswith("1 damaged measurement; the first: a, boot b.k, sequence 3: ")
    assert [row.package for row in runs(store, now_ns=NOW_NS, package="22222222").rows] == ["p2"]
    assert [row.package for row in runs(store, now_ns=NOW_NS, package="p0").rows] == ["p0"]
    assert [row.package for row in runs(store, now_ns=NOW_NS, device="b").rows] == ["p1"]
    first = runs(store, now_ns=NOW_NS, limit=1)
    assert (len(first.rows), first.total) == (1, None)
    assert "all but the newest 1 measurements" in first.left_out[0]


def test_logs_are_the_newest_last(store):
    join(store, status("a", labels={"site": "lab"}), status("b"))
    put(store, "a", "log", {NOW_NS - 5: line("one"), NOW_NS - 3: line("three", "ERROR"), NOW_NS - 1: line("five")})
    put(store, "b", "log", {NOW_NS - 4: line("two", "CRITICAL"), NOW_NS - 2: line("four", logger="disk")})
    assert said(logs(store, now_ns=NOW_NS)) == ["one", "two", "three", "four", "five"]
    assert said(logs(store, now_ns=NOW_NS, limit=2)) == ["four", "five"]
    assert "older than these 2" in logs(store, now_ns=NOW_NS, limit=2).left_out[0]
    assert said(logs(store, now_ns=NOW_NS, level="error")) == ["two", "three"]
    assert said(logs(store, now_ns=NOW_NS, grep="^f|disk")) == ["four", "five"]
    assert said(logs(store, now_ns=NOW_NS, query="site=lab")) == ["one", "three", "five"]
    assert said(logs(store, now_ns=NOW_NS, device="b")) == ["two", "four"]
    assert said(logs(store, now_ns=NOW_NS, since=NOW_NS - 3, until=NOW_NS - 1)) == ["three", "four"]
    with pytest.raises(CallerError, match="no level 'DEBUG'; there are: WARNING, ERROR"):
        logs(store, now_ns=NOW_NS, level="DEBUG")
    with pytest.raises(CallerError, match="is no regular expression"):
        logs(store, now_ns=NOW_NS, grep="(")


def test_who_follows_logs_is_told_each_line_once(store):
    put(store, "a", "log", {NOW_NS - 5: line("before")})
    follow = Following(store, from_ns=NOW_NS)
    store.write(lambda c: c.execute(update(tables.records).values(received_ns=NOW_NS - HOUR_NS)))
    assert [row.message for row in follow()] == []
    put(store, "a", "log", {NOW_NS - 4: line("late"), NOW_NS + 1: line("new")})
    assert [row.message for row in follow()] == ["late", "new"]
    assert [row.message for row in follow()] == []
    put(store, "b", "log", {NOW_NS + 2: line("newer")})
    assert [row.message for row in follow()] == ["newer"]
    put(store, "b", "log", {NOW_NS + 3: line("newest"), NOW_NS + 4: b"[]"})
    follow.seen(logs(store, now_ns=NOW_NS))
    assert [row.message for row in follow()] == []


def test_alerts_that_hold_come_first(store):
    join(store, status("a"), status("b"))
    alert(store, "a", "one", since_ns=1)
    alert(store, "a", "two", since_ns=5, until_ns=6)
    alert(store, "b", "three", since_ns=2, value=3.5, bound=2.0)
    found = alerts(store, now_ns=NOW_NS, past=True)
    assert [row.rule for row in found.rows] == ["three", "one", "two"]
    assert (found.rows[0].value, found.rows[0].bound, found.rows[0].until_ns) == (3.5, 2.0, None)
    assert [row.rule for row in alerts(store, now_ns=NOW_NS).rows] == ["three", "one"]
    assert [row.rule for row in alerts(store, now_ns=NOW_NS, past=True, since=7).rows] == ["three", "one"]
    assert [row.rule for row in alerts(store, now_ns=NOW_NS, past=True, until=2).rows] == ["one"]
    assert [row.rule for row in alerts(store, now_ns=NOW_NS, device="b").rows] == ["three"]
    few = alerts(store, now_ns=NOW_NS, limit=1)
    assert (few.total, few.left_out) == (2, ("1 of 2 alerts; raise the limit, or narrow them down",))


def test_samples_are_the_newest_in_order_of_time(store):
    put(store, "b", "sample", {NOW_NS - 1: sample([1.0], "9" * 64, temperature_c=5.0)}, sure=False)
    put(store, "a", "sample", {NOW_NS - 3: sample([2.0]), NOW_NS - 2: {**sample(), "unavailable": {"power_w": "none"}}})
    found = samples(store, now_ns=NOW_NS)
    assert [(row.device, row.sequence, row.clock) for row in found.rows] == [
        ("a", 1, "sure"), ("a", 2, "sure"), ("b", 1, "unsure"),
    ]  # fmt: skip
    assert found.rows[1].unavailable == {"power_w": "none"}
    assert found.rows[2].values["temperature_c"] == 5.0
    assert [row.device for row in samples(store, now_ns=NOW_NS, limit=1).rows] == ["b"]
    assert "older than these 1" in samples(store, now_ns=NOW_NS, limit=1).left_out[0]


def test_a_series_of_samples_and_of_spans(store):
    bodies = {HOUR_BEGIN_NS + n * MINUTE: sample([1.0 + n, 3.0 + n], temperature_c=50.0 + n) for n in range(4)}
    put(store, "a", "sample", bodies)
    put(store, "b", "sample", {HOUR_BEGIN_NS: sample(temperature_c=99.0)})
    each = series(store, "a", "temperature_c", now_ns=NOW_NS)
    assert [(point.time_ns, point.mean, point.count) for point in each.points] == [
        (HOUR_BEGIN_NS + n * MINUTE, 50.0 + n, 1) for n in range(4)
    ]
    pairs = series(store, "a", "latency_ms", now_ns=NOW_NS, span_s=120)
    begin_ns = HOUR_BEGIN_NS // (2 * MINUTE) * 2 * MINUTE
    assert [point.time_ns for point in pairs.points] == [begin_ns, begin_ns + 2 * MINUTE]
    first = pairs.points[0]
    assert (first.count, first.least, first.mean, first.p50, first.p95, first.most) == (4, 1.0, 2.5, 2.0, 4.0, 4.0)
    roll_up(store, "a", "temperature_c", HOUR_BEGIN_NS // 10**9 - 3600, [40.0, 41.0, 42.0])
    hourly = series(store, "a", "temperature_c", now_ns=NOW_NS, span_s=3600)
    assert [(point.time_ns, point.count, point.p50) for point in hourly.points] == [
        (HOUR_BEGIN_NS - HOUR_NS, 3, 41.0), (HOUR_BEGIN_NS, 4, 51.0),
    ]  # fmt: skip
    assert series(store, "a", "power_w", now_ns=NOW_NS).points == ()
    with pytest.raises(CallerError, match="no device 'x'"):
        series(store, "x", "temperature_c", now_ns=NOW_NS)


def test_a_series_of_too_many_points_is_refused(store, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.query.series.POINTS_MAX", 2)
    put(store, "a", "sample", {NOW_NS - n: sample(temperature_c=1.0) for n in range(3)})
    with pytest.raises(CallerError, match="at most 2 points"):
        series(store, "a", "temperature_c", now_ns=NOW_NS)


def test_answers_are_json_and_come_back_the_same(store):
    put(store, "a", "log", {NOW_NS: line("one")})
    found = logs(store, now_ns=NOW_NS)
    assert msgspec.json.decode(encode(found))["type"] == "fleet-logs"
    assert msgspec.json.decode(encode(found), type=type(found)) == found
