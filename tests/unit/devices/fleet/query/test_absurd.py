"""What cannot be is left out and said, wherever a stored body is read."""

from __future__ import annotations

import json
import math

import pytest
from sqlalchemy import update

from ferryman.devices.fleet.query.alerts import alerts
from ferryman.devices.fleet.query.compare import compare
from ferryman.devices.fleet.query.devices import device_rows
from ferryman.devices.fleet.query.logs import logs
from ferryman.devices.fleet.query.runs import runs
from ferryman.devices.fleet.query.series import samples, series
from ferryman.devices.fleet.query.status import fleet_status
from ferryman.devices.fleet.store import tables
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import encode
from tests.support.measurements import measurement
from tests.support.seeded import HOUR_BEGIN_NS, NOW_NS, join, put, roll_up, sample, status

HUGE = 10**30
MINUTE = 60 * 10**9
HOUR_S = HOUR_BEGIN_NS // 10**9
LINE = {"level": "ERROR", "logger": "l", "message": "m"}


@pytest.fixture
def absurd(store):
    """A good device, and one that sends nonsense beside what is good."""
    join(store, status("good"), status("bad"), status("owes"), status("boasts"))
    for name, key, value in (("owes", "outbox_dropped", -1), ("boasts", "outbox_pending", HUGE)):
        body = json.dumps({**json.loads(encode(status(name))), key: value})
        table = tables.devices
        change = update(table).where(table.c.device == name).values(status=body)
        store.write(lambda connection, change=change: connection.execute(change))
    for name in ("good", "bad"):
        put(store, name, "sample", {NOW_NS - 9 * MINUTE: sample([2.0, 4.0], temperature_c=50.0)})
    nonsense = [
        sample([1.0], errors=1e308), sample([1.0], inferences=-1e300), sample([-5.0]), sample([1e308, 1e308]),
        sample(temperature_c=1e16), {**sample(), "period_s": 1e300},
    ]  # fmt: skip
    put(store, "bad", "sample", {NOW_NS - MINUTE - at: body for at, body in enumerate(nonsense)})
    put(store, "bad", "log", {NOW_NS - 2: {**LINE, "times": HUGE}, NOW_NS - 1: {**LINE, "times": 3}})
    put(store, "bad", "dropped", {NOW_NS - 2: {"records": HUGE}, NOW_NS - 1: {"records": 5}})
    return store


def test_a_status_adds_up_what_can_be(absurd):
    found = fleet_status(absurd, now_ns=NOW_NS, since=0)
    assert (found.inferences, found.errors, found.drops, found.devices) == (4, 0, 5, 2)
    assert found.latency_ms is not None
    assert found.latency_ms.most == 4.0
    assert (found.waiting, found.worst_error_percent) == (0, ())
    said = " ".join(found.left_out)
    assert "6 damaged samples; the first: bad" in said
    assert "2 damaged statuses; the first: boasts" in said
    assert "1 damaged drop report" in said
    assert max(map(len, encode(found).decode().split(","))) < 300


def test_series_and_samples_have_what_can_be(absurd):
    for span_s in (0, 60, 3600):
        found = series(absurd, "bad", "latency_ms", now_ns=NOW_NS, span_s=span_s)
        assert max(point.most for point in found.points) == 4.0
        assert min(point.least for point in found.points) == 2.0
        assert "6 damaged samples" in found.left_out[0]
    assert len(samples(absurd, now_ns=NOW_NS, device="bad").rows) == 1


def test_rollups_that_hold_nonsense_are_left_out(store):
    join(store, status("a"))
    for at, (metric, value, row) in enumerate((
        ("inferences", 1.0, {"total": 1e308}), ("errors", 1.0, {"least": -1e300}), ("latency_ms", 3.4e38, {}),
        ("latency_ms", 3.4e38, {"least": 1.0, "total": 1.0, "most": 1.0}),
        ("latency_ms", 1.0, {"total": math.inf}), ("latency_ms", 3.0, {"count": 0}),
    )):  # fmt: skip
        roll_up(store, "a", metric, HOUR_S - 3600 * at, [value], **row)
    roll_up(store, "a", "latency_ms", HOUR_S - 3600 * 9, [1.0, 2.0])
    since_ns = (HOUR_S - 3600 * 9) * 10**9
    found = fleet_status(store, now_ns=NOW_NS, since=since_ns)
    assert (found.inferences, found.errors, found.latency_ms.count) == (0, 0, 2)
    assert found.left_out[0].startswith("6 damaged rollups; the first: ")
    (row,) = device_rows(store, now_ns=NOW_NS, since=since_ns).rows
    assert row.latency_p95_ms == 2.0
    assert compare(store, now_ns=NOW_NS, since=since_ns).rows[0].median == 1.0


def test_logs_and_runs_have_what_can_be(absurd):
    found = logs(absurd, now_ns=NOW_NS)
    assert [row.times for row in found.rows] == [3]
    assert found.left_out[1].startswith("1 damaged log line; the first: bad, ")
    good = json.loads(encode(measurement()))
    put(absurd, "bad", "measurement", {NOW_NS - 2: {**good, "artifact_bytes": HUGE}, NOW_NS - 1: good})
    found = runs(absurd, now_ns=NOW_NS)
    assert len(found.rows) == 1
    assert found.left_out[1].startswith("1 damaged measurement; the first: bad, ")


@pytest.mark.parametrize(
    ("ask", "argument", "words"),
    [
        (device_rows, {"sort": None}, "not sorted by None"),
        (device_rows, {"sort": []}, r"not sorted by \[\]"),
        (device_rows, {"limit": "x"}, "limit is a whole number of 0 or more, or None for all; found 'x'"),
        (device_rows, {"limit": -1}, "found -1"),
        (device_rows, {"limit": True}, "found True"),
        (device_rows, {"device": ["a"]}, r"device is a text, found \['a'\]"),
        (device_rows, {"device": "\udc80"}, "device has characters that are none"),
        (device_rows, {"query": 5}, "query is a text, found 5"),
        (alerts, {"limit": -1}, "limit is"),
        (logs, {"limit": 1.5}, "limit is"),
        (logs, {"grep": 5}, "grep is a text, found 5"),
        (logs, {"level": 5}, "level is a text, found 5"),
        (logs, {"until": 1.5}, "until=1.5 is no time"),
        (runs, {"package": 5}, "package is a text, found 5"),
        (fleet_status, {"since": 2**80}, "since=1208925819614629174706176 is no time that a device can have"),
        (fleet_status, {"since": 10**5000}, "since=a int is no time"),
        (fleet_status, {"since": -1}, "since=-1 is no time"),
        (fleet_status, {"since": True}, "since=True is no time"),
        (compare, {"metrics": "latency_ms"}, "metrics are texts in a list, found 'latency_ms'"),
        (compare, {"metrics": [None]}, r"metrics\[0\] is a text, found None"),
        (compare, {"by": None}, "by is a text, found None"),
        (compare, {"baseline": 5}, "baseline is a text, found 5"),
        (compare, {"margin": "x"}, "a margin is more than 0 and less than 1"),
        (series, {"device": ["a"], "metric": "latency_ms"}, "device is a text"),
        (series, {"device": "a", "metric": None}, "metric is a text, found None"),
    ],
)
def test_a_wrong_argument_is_named(store, ask, argument, words):
    join(store, status("a"))
    with pytest.raises(CallerError, match=words):
        ask(store, now_ns=NOW_NS, **argument)


@pytest.mark.parametrize("limit", [2**63 - 1, 2**63, 2**80])
def test_a_limit_beyond_all_is_none(absurd, limit):
    for ask in (device_rows, logs, runs, alerts, samples):
        assert ask(absurd, now_ns=NOW_NS, limit=limit).total is not None


def test_a_device_that_only_sent_records_is_one(store):
    join(store, status("told"))
    put(store, "silent", "sample", {NOW_NS - MINUTE: sample([2.0])}, received_ns=NOW_NS - 5)
    put(store, "silent", "log", {NOW_NS: LINE}, received_ns=NOW_NS - 3)
    (row,) = device_rows(store, now_ns=NOW_NS, device="silent").rows
    assert (row.device, row.online, row.model, row.seen_ns, row.inferences) == ("silent", False, "", NOW_NS - 3, 1)
    assert [row.device for row in device_rows(store, now_ns=NOW_NS).rows] == ["silent", "told"]
    assert [row.device for row in device_rows(store, now_ns=NOW_NS, query="sil*").rows] == ["silent"]
    assert fleet_status(store, now_ns=NOW_NS).devices == 2
    with pytest.raises(CallerError, match="no device 'x' in this store; there are: silent, told"):
        device_rows(store, now_ns=NOW_NS, device="x")


def test_a_slip_is_told_what_there_is(store):
    join(store, status("a", labels={"site": "lab"}))
    put(store, "a", "sample", {NOW_NS - 1: sample([1.0], my_v=3.0)})
    with pytest.raises(CallerError, match="no device is meant by 'site=nosuch'; there are: a; labels are: site"):
        device_rows(store, now_ns=NOW_NS, query="site=nosuch")
    with pytest.raises(CallerError, match="character 6: site=value has one ="):
        device_rows(store, now_ns=NOW_NS, query="site==lab")
    with pytest.raises(CallerError, match="no device has the label 'nosuch'; labels are: site; or by package"):
        compare(store, now_ns=NOW_NS, by="nosuch")
    with pytest.raises(CallerError, match=r"a tells no metric 'foo' in this window; there are: .*my_v"):
        series(store, "a", "foo", now_ns=NOW_NS)
    assert series(store, "a", "my_v", now_ns=NOW_NS).points
    assert not series(store, "a", "power_w", now_ns=NOW_NS).points
