"""A row for each device."""

from __future__ import annotations

import pytest

from ferryman.devices.fleet.query.devices import device_rows
from ferryman.runtime.contracts.errors import CallerError
from tests.support.seeded import HOUR_BEGIN_NS, HOUR_NS, NOW_NS, SHA, join, put, roll_up, sample, status

MINUTE = 60 * 10**9
HOUR_S = HOUR_BEGIN_NS // 10**9


def names(found) -> list[str]:
    return [row.device for row in found.rows]


def test_a_row_tells_what_the_device_said_last_and_how_it_did(store):
    join(
        store, status("a", model="Pi 5", labels={"site": "lab"}, release="digits/1", outbox_pending=2, outbox_dropped=4)
    )
    put(store, "a", "sample", {NOW_NS - 2 * MINUTE: sample([1.0, 2.0, 3.0], errors=2, temperature_c=70.0)})
    put(
        store,
        "a",
        "sample",
        {NOW_NS - MINUTE: sample([4.0], temperature_c=60.0, throttled=1, memory_used_mb=512.5, outbox_records=7)},
        sure=False,
    )
    (row,) = device_rows(store, now_ns=NOW_NS).rows
    assert (row.device, row.online, row.model, row.labels) == ("a", True, "Pi 5", {"site": "lab"})
    assert (row.package, row.package_sha256, row.release) == ("one", SHA["one"], "digits/1")
    assert (row.inferences, row.errors, row.latency_p50_ms, row.latency_p95_ms) == (4, 2, 2.0, 4.0)
    assert (row.temperature_c, row.throttled, row.memory_used_mb, row.sample_ns) == (60.0, True, 512.5, NOW_NS - MINUTE)
    assert (row.waiting, row.dropped, row.clock_sure) == (7, 4, False)


def test_what_a_device_does_not_tell_is_none(store):
    join(store, status("quiet", package=None, outbox_pending=3))
    (row,) = device_rows(store, now_ns=NOW_NS).rows
    assert (row.latency_p50_ms, row.temperature_c, row.throttled, row.sample_ns, row.clock_sure) == (None,) * 5
    assert (row.inferences, row.errors, row.waiting) == (0, 0, 3)


def test_rows_come_in_the_order_asked_for_and_beyond_the_limit_they_are_said_to_be_left_out(store):
    join(store, *(status(f"d{n}", outbox_dropped=n) for n in range(5)), now_ns=NOW_NS - MINUTE)
    join(store, status("d2", outbox_dropped=2))
    for n in range(5):
        body = sample([float(n)], errors=(n * 3) % 5, temperature_c=float(n * 2 % 5), outbox_records=4 - n)
        put(store, f"d{n}", "sample", {NOW_NS - MINUTE - n: body})
    orders = {
        "name": "d0 d1", "latency": "d4 d3", "errors": "d3 d1", "temperature": "d2 d4", "waiting": "d0 d1",
        "dropped": "d4 d3",
    }  # fmt: skip
    for sort, expected in orders.items():
        found = device_rows(store, now_ns=NOW_NS, sort=sort, limit=2)
        assert names(found) == expected.split(), sort
        assert (found.total, found.left_out) == (5, ("3 of 5 devices; raise the limit, or narrow them down",))
        assert found.rows[0].latency_p50_ms == float(found.rows[0].device[1]), sort
        assert found.rows[0].temperature_c is not None
    assert len(device_rows(store, now_ns=NOW_NS, limit=None).rows) == 5
    with pytest.raises(CallerError, match="not sorted by 'beauty', but by one of: name, seen"):
        device_rows(store, now_ns=NOW_NS, sort="beauty")


def test_queries_and_names_narrow_them_down(store):
    join(store, status("a", model="Pi 5", labels={"site": "lab"}), status("b", model="Pi 5"), status("c"))
    assert names(device_rows(store, now_ns=NOW_NS, query="model~pi 5")) == ["a", "b"]
    assert names(device_rows(store, now_ns=NOW_NS, query="model~pi 5,site=lab")) == ["a"]
    assert names(device_rows(store, now_ns=NOW_NS, device="b")) == ["b"]
    for beside in ({"query": "site=lab", "device": "b"}, {"query": "site=nowhere"}):
        with pytest.raises(CallerError, match="no device is meant by"):
            device_rows(store, now_ns=NOW_NS, **beside)


def test_a_window_counts_whole_hours_and_days_come_from_rollups_of_days(store):
    join(store, status("a"))
    day_s = HOUR_S // 86400 * 86400
    roll_up(store, "a", "latency_ms", day_s - 2 * 86400, [1.0] * 10, span_s=86400)
    roll_up(store, "a", "latency_ms", day_s - 2 * 86400 + 3600, [1.0] * 4)  # in the day already
    roll_up(store, "a", "latency_ms", day_s, [2.0] * 3)
    roll_up(store, "a", "inferences", day_s, [2.0] * 3)
    put(store, "a", "sample", {NOW_NS - MINUTE: sample([3.0])})
    (row,) = device_rows(store, now_ns=NOW_NS, since=(day_s - 2 * 86400) * 10**9).rows
    assert (row.latency_p50_ms, row.latency_p95_ms, row.inferences) == (1.0, 3.0, 7)
    hour = device_rows(store, now_ns=NOW_NS, since=HOUR_BEGIN_NS + 5, until=HOUR_BEGIN_NS + 6)
    assert (hour.since_ns, hour.rows[0].latency_p50_ms) == (HOUR_BEGIN_NS, 3.0)
    before = device_rows(store, now_ns=NOW_NS, since=HOUR_BEGIN_NS - 9 * HOUR_NS, until=HOUR_BEGIN_NS - 8 * HOUR_NS)
    assert before.rows[0].latency_p50_ms is None


def test_a_damaged_sketch_is_left_out_and_said(store):
    join(store, status("a"), status("b"))
    roll_up(store, "a", "latency_ms", HOUR_S, [1.0], sketch=b"nonsense")
    roll_up(store, "b", "latency_ms", HOUR_S, [1.0])
    found = device_rows(store, now_ns=NOW_NS)
    assert [row.latency_p50_ms for row in found.rows] == [None, 1.0]
    assert found.left_out[0].startswith("1 damaged rollup; the first: latency_ms of a")


def test_hours_that_are_in_no_rollup_are_said_where_they_are_too_many_to_read(store, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.query.parts.FRESH_MAX", 1)
    join(store, status("a"), status("b"))
    for name in "ab":
        put(store, name, "sample", {NOW_NS - MINUTE: sample([3.0])})
    roll_up(store, "a", "latency_ms", HOUR_S, [1.0])
    put(store, "a", "sample", {NOW_NS: sample([4.0])})
    found = device_rows(store, now_ns=NOW_NS)
    assert [row.latency_p50_ms for row in found.rows] == [1.0, None]
    assert found.left_out[0].startswith("samples of 2 hours of devices that are not rolled up yet")
