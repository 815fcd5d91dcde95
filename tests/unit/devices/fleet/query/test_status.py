"""A fleet on one screen."""

from __future__ import annotations

import pytest

from ferryman.devices.fleet.query.records import Worst
from ferryman.devices.fleet.query.status import fleet_status
from ferryman.runtime.contracts.errors import CallerError
from tests.support.seeded import HOUR_BEGIN_NS, HOUR_NS, NOW_NS, SHA, alert, join, put, roll_up, sample, status

MINUTE = 60 * 10**9


def test_an_empty_store_has_no_devices_and_no_numbers(store):
    found = fleet_status(store, now_ns=NOW_NS)
    assert (found.devices, found.online, found.inferences, found.samples_per_minute) == (0, 0, 0, 0)
    assert found.latency_ms is None
    assert found.worst_latency_ms == ()
    assert found.left_out == ()


def test_what_devices_say_of_themselves_is_counted(store):
    join(
        store,
        status("a", model="Pi 5", labels={"site": "lab"}, release="digits/1"),
        status("b", model="Pi 5", ferryman="0.1.0", outbox_pending=3, outbox_dropped=5),
        status("c", package=None, online=False, birth=0),
    )
    alert(store, "a", severity="critical")
    alert(store, "b")
    alert(store, "b", rule="errors", until_ns=NOW_NS)
    found = fleet_status(store, now_ns=NOW_NS)
    assert (found.devices, found.online, found.silent) == (3, 2, 0)
    assert fleet_status(store, now_ns=NOW_NS + 1801 * 10**9).silent == 2
    assert found.ferryman == {"0.2.0": 2, "0.1.0": 1}
    assert found.models == {"Pi 5": 2, "unknown": 1}
    assert found.packages == {f"one ({SHA['one'][:12]})": 2, "-": 1}
    assert found.releases == {"-": 2, "digits/1": 1}
    assert found.open_alerts == {"critical": 1, "warning": 1}
    assert (found.waiting, found.dropped_total) == (3, 5)
    lab = fleet_status(store, now_ns=NOW_NS, query="site=lab")
    assert (lab.devices, lab.open_alerts) == (1, {"critical": 1})


def test_samples_that_are_in_no_rollup_yet_count_too(store):
    join(store, status("a"), status("b"))
    put(store, "a", "sample", {NOW_NS - 2 * MINUTE: sample([1.0, 2.0, 3.0], errors=1), NOW_NS - MINUTE: sample([9.0])})
    put(store, "b", "sample", {HOUR_BEGIN_NS - MINUTE: sample([5.0] * 60)})
    found = fleet_status(store, now_ns=NOW_NS)
    assert found.since_ns == HOUR_BEGIN_NS - HOUR_NS
    assert (found.inferences, found.errors) == (64, 1)
    assert found.samples_per_minute == pytest.approx(2 / 5)
    assert found.latency_ms.count == 64
    assert (found.latency_ms.p50, found.latency_ms.most) == (5.0, 9.0)
    only = fleet_status(store, now_ns=NOW_NS, device="a")
    assert (only.devices, only.latency_ms.count, only.samples_per_minute) == (1, 4, pytest.approx(2 / 5))


def test_rollups_of_devices_are_merged_and_not_counted_twice(store):
    join(store, status("a"), status("b"))
    hour_s = HOUR_BEGIN_NS // 10**9
    put(store, "a", "sample", {HOUR_BEGIN_NS + MINUTE: sample([7.0])})
    roll_up(store, "a", "latency_ms", hour_s, [7.0])  # the same sample
    put(store, "b", "sample", {HOUR_BEGIN_NS + MINUTE: sample([8.0, 8.0])})
    roll_up(store, "b", "latency_ms", hour_s - 3600, [1.0, 2.0])
    found = fleet_status(store, now_ns=NOW_NS)
    assert found.latency_ms.count == 5
    assert found.latency_ms.most == 8.0


def test_the_worst_are_by_the_newest_sample_and_stale_ones_are_no_present(store):
    join(store, *(status(f"d{n}") for n in range(8)))
    for n in range(8):
        put(store, f"d{n}", "sample", {NOW_NS - MINUTE: sample([float(n + 1)], temperature_c=50.0 + n, errors=n)})
    put(store, "d7", "sample", {NOW_NS: sample([0.5], temperature_c=40.0)})
    put(store, "gone", "sample", {NOW_NS - 3 * HOUR_NS: sample([99.0], temperature_c=99.0)})
    found = fleet_status(store, now_ns=NOW_NS, worst=2)
    assert [one.device for one in found.worst_latency_ms] == ["d6", "d5"]
    assert found.worst_temperature_c[0] == Worst(device="d6", value=56.0, time_ns=NOW_NS - MINUTE)
    assert found.worst_error_percent[0] == Worst(device="d6", value=pytest.approx(100 * 6 / 7), time_ns=NOW_NS - MINUTE)


def test_drops_are_those_that_devices_reported_in_the_window(store):
    join(store, status("a", outbox_dropped=30))
    dropped = {"records": 10, "first": 1, "last": 10, "total": 10}
    put(store, "a", "dropped", {NOW_NS - 9 * HOUR_NS: dropped, NOW_NS - MINUTE: dropped | {"total": 20}})
    found = fleet_status(store, now_ns=NOW_NS)
    assert (found.drops, found.dropped_total) == (10, 30)


def test_what_is_damaged_is_left_out_and_said(store):
    join(store, status("a"), status("b"))
    put(store, "a", "sample", {NOW_NS - MINUTE: b'{"period_s": "x"}', NOW_NS: sample([1.0])})
    put(store, "a", "dropped", {NOW_NS: b"[]"})
    store.write(lambda c: c.exec_driver_sql("UPDATE devices SET status = 'nonsense' WHERE device = 'b'"))
    found = fleet_status(store, now_ns=NOW_NS)
    assert (found.devices, found.latency_ms.count) == (1, 1)
    assert [words.split(";")[0] for words in found.left_out] == [
        "1 damaged status",
        "1 damaged sample",
        "1 damaged drop report",
    ]


def test_bad_questions_are_told_what_is_wrong(store):
    join(store, status("a"))
    with pytest.raises(CallerError, match="no device 'x' in this store; there are: a"):
        fleet_status(store, now_ns=NOW_NS, device="x")
    with pytest.raises(CallerError, match="query, character 1"):
        fleet_status(store, now_ns=NOW_NS, query="=")
    with pytest.raises(CallerError, match="'yesterday' is no time"):
        fleet_status(store, now_ns=NOW_NS, since="yesterday")
