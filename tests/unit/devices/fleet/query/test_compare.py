"""Groups of devices held against each other."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from ferryman.devices.fleet.query.compare import compare
from ferryman.runtime.contracts.errors import CallerError
from tests.support.seeded import HOUR_BEGIN_NS, HOUR_NS, NOW_NS, SHA, join, put, sample, status


def serve(store, device: str, package: str, latency_ms: float, *, hours_ago: int = 0, count: int = 20) -> None:
    latencies = latency_ms * np.random.default_rng(zlib.crc32(f"{device}{package}{hours_ago}".encode())).lognormal(
        0, 0.01, count
    )
    put(store, device, "sample", {HOUR_BEGIN_NS - hours_ago * HOUR_NS + 1: sample(map(float, latencies), SHA[package])})


def test_packages_that_the_same_devices_served_are_held_against_each_other_device_by_device(store):
    for n in range(8):
        serve(store, f"d{n}", "one", 10.0 * (n + 1), hours_ago=2, count=30)
        serve(store, f"d{n}", "two", 11.5 * (n + 1))
    found = compare(store, now_ns=NOW_NS, metrics=("latency_ms",))
    assert found.baseline == SHA["one"]
    base, other = found.rows
    assert (base.devices, base.units, base.samples, base.ratio, base.verdict) == (8, 8, 240, None, None)
    assert (other.group, other.pairs, other.verdict) == (SHA["two"], 8, "more")
    assert other.low < 1.15 < other.high  # devices differ eightfold, and that does not blur it
    assert found.left_out == ()


def test_packages_have_the_names_that_devices_say(store):
    join(store, status("a", package="one"))
    serve(store, "a", "one", 10.0)
    serve(store, "a", "two", 10.0)
    assert compare(store, now_ns=NOW_NS).names == {SHA["one"]: "one"}
    assert compare(store, now_ns=NOW_NS, by="device").names == {}


def test_groups_of_different_devices_are_compared_as_they_are(store):
    for n in range(12):
        join(store, status(f"d{n}", labels={"site": "lab" if n % 2 else "roof"}))
        serve(store, f"d{n}", "one", 10.0 if n % 2 else 20.0)
    found = compare(store, now_ns=NOW_NS, by="site", metrics=("latency_ms", "power_w"), baseline="lab")
    lab, roof = found.rows
    assert (lab.group, roof.group, roof.units, roof.pairs, roof.verdict) == ("lab", "roof", 6, None, "more")
    assert roof.low < 2.0 < roof.high


def test_too_few_devices_say_nothing_for_sure(store):
    serve(store, "a", "one", 10.0)
    serve(store, "b", "two", 20.0)
    (_, other) = compare(store, now_ns=NOW_NS, metrics=("latency_ms",)).rows
    assert (other.ratio == pytest.approx(2.0, rel=0.1) or other.ratio == pytest.approx(0.5, rel=0.1), other.low) == (
        True,
        None,
    )
    assert other.verdict == "unclear"


def test_devices_are_compared_hour_by_hour(store):
    for hour in range(10):
        serve(store, "a", "one", 10.0 + hour, hours_ago=hour)
        serve(store, "b", "one", 10.0 + hour, hours_ago=hour)
    found = compare(store, now_ns=NOW_NS, by="device", metrics=("latency_ms",), margin=0.05, baseline="a")
    base, other = found.rows
    assert (base.group, other.group, other.units, other.pairs, other.verdict) == ("a", "b", 10, 10, "same")


def test_medians_of_zero_have_no_ratio(store):
    for n in range(2):
        join(store, status(f"d{n}", model=f"m{n}"))
        put(store, f"d{n}", "sample", {NOW_NS - 1: sample(cpu_percent=0.0)})
    found = compare(store, now_ns=NOW_NS, by="model", metrics=("cpu_percent",))
    assert [(row.median, row.ratio, row.verdict) for row in found.rows] == [(0.0, None, None)] * 2
    assert found.left_out == ("ratios of cpu_percent, of which some medians are not above zero",)


def test_many_devices_are_compared_by_evenly_chosen_ones(store, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.query.compare.UNITS_MAX", 10)
    for n in range(30):
        join(store, status(f"d{n}", model="new" if n % 2 else "old"))
        serve(store, f"d{n}", "one", 10.0 if n % 2 else 20.0)
    found = compare(store, now_ns=NOW_NS, by="model", metrics=("latency_ms",), baseline="old")
    assert found.rows[1].verdict == "less"
    assert "beyond 10 values" in found.left_out[0]


def test_bad_questions_are_told_what_is_wrong(store):
    with pytest.raises(CallerError, match="no samples in the window"):
        compare(store, now_ns=NOW_NS)
    serve(store, "a", "one", 10.0)
    serve(store, "a", "two", 10.0)
    with pytest.raises(CallerError, match="'3' is no group; there are: "):
        compare(store, now_ns=NOW_NS, baseline="3")
    with pytest.raises(CallerError, match="begins 2 groups"):
        compare(store, now_ns=NOW_NS, baseline="")
    with pytest.raises(CallerError, match="a margin is"):
        compare(store, now_ns=NOW_NS, margin=float("nan"))
    assert compare(store, now_ns=NOW_NS, baseline="22").baseline == SHA["two"]
