"""Rollups against the exact values, in both databases."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from ferryman.devices.fleet.store import rollup
from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.sketches import RANK_ERROR, WEIGHT_MAX, merge, summarise
from ferryman.devices.fleet.store.store import Arrived, Batch, Row
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S, dirty, gone, records, rollups
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import ClockFix, Sample

H = HOUR_S * 10**9
DAY = DAY_S * 10**9
NOON = 20_000 * DAY + 12 * H
BOOT = "outbox.kernel"


def sample(value: float, **more) -> bytes:
    return encode(Sample(period_s=10, values={"cpu_percent": value}, **more))


def put(store, rows, *, device="pi", boot=BOOT, now_ns=NOON):
    return store.insert(Batch([Arrived(device, boot, rows, "t", b"raw")]), now_ns)


def row(sequence: int, time_ns: int, value: float, **more) -> Row:
    return Row(
        sequence, "sample", time_ns, more.pop("uptime_ns", sequence), more.pop("sure", True), sample(value, **more)
    )


def hours(store, span_s=HOUR_S, device="pi"):
    query = select(rollups).where(rollups.c.span_s == span_s, rollups.c.device == device).order_by(rollups.c.start_s)
    with store._opened.reading() as connection:
        return [
            (found["start_s"] * 10**9, found["count"], found["total"], found["least"], found["most"])
            for found in connection.execute(query).mappings()
        ]


def count(store, table) -> int:
    return store.read(select(func.count()).select_from(table))[0][0]


def test_ended_hours_and_days_are_rolled_up_once_and_the_current_hour_later(both):
    put(both, [row(n, NOON + n * H // 4, float(n)) for n in range(1, 9)])
    assert roll_up(both, NOON + 2 * H) == 2
    assert hours(both) == [(NOON, 3, 6.0, 1.0, 3.0), (NOON + H, 4, 22.0, 4.0, 7.0)]
    assert roll_up(both, NOON + 2 * H) == 0
    assert hours(both, DAY_S) == []
    assert roll_up(both, NOON + DAY) == 2  # the last hour, and the day
    assert hours(both, DAY_S) == [(NOON - 12 * H, 8, 36.0, 1.0, 8.0)]
    assert count(both, dirty) == 0


def test_what_comes_late_is_in_its_hour_and_day_and_what_comes_again_is_not(both):
    put(both, [row(1, NOON, 1.0), row(3, NOON + 1, 3.0)])
    roll_up(both, NOON + DAY)
    put(both, [row(1, NOON, 1.0), row(2, NOON + 1, 2.0)])
    put(both, [row(1, NOON, 10.0)], boot="outbox.another")
    roll_up(both, NOON + DAY)
    assert hours(both) == [(NOON, 4, 16.0, 1.0, 10.0)]
    assert hours(both, DAY_S) == [(NOON - 12 * H, 4, 16.0, 1.0, 10.0)]


def test_a_corrected_clock_moves_samples_from_hour_to_hour(both):
    put(both, [row(1, H, 1.0, uptime_ns=5, sure=False), row(2, NOON, 2.0, uptime_ns=6)])
    roll_up(both, NOON + DAY)
    assert [start for start, *_ in hours(both)] == [H, NOON]
    fix = Row(3, "clock", NOON, 7, True, encode(ClockFix(kernel_boot="kernel", offset_ns=NOON)))
    put(both, [fix])
    put(both, [row(4, H, 4.0, uptime_ns=8, sure=False)])
    roll_up(both, NOON + DAY)
    assert hours(both) == [(NOON, 3, 7.0, 1.0, 4.0)]
    assert hours(both, DAY_S) == [(NOON - 12 * H, 3, 7.0, 1.0, 4.0)]
    assert {r.recorded_ns for r in both.read(select(records))} == {H, NOON}


def test_after_retention_late_samples_are_merged_and_repeated_ones_are_not(both):
    """At each of the three ages: samples there, samples deleted, hours deleted."""
    put(both, [row(1, NOON, 1.0), row(2, NOON + 1, 2.0), row(3, NOON + 2, 3.0)])
    roll_up(both, NOON + DAY)
    policy = Policy(samples_days=30, hours_days=60)
    assert retain(both, policy, NOON + 29 * DAY).samples == 0
    assert retain(both, policy, NOON + 31 * DAY).samples == 3
    assert count(both, gone) == 1
    later = NOON + 31 * DAY
    put(both, [row(2, NOON + 1, 2.0), row(4, NOON + 3, 4.0)], now_ns=later)
    roll_up(both, later)
    assert hours(both) == [(NOON, 4, 10.0, 1.0, 4.0)]
    assert hours(both, DAY_S) == [(NOON - 12 * H, 4, 10.0, 1.0, 4.0)]
    assert count(both, records) == 0
    assert retain(both, policy, NOON + 62 * DAY).hours == 1
    later = NOON + 62 * DAY
    for _ in range(2):
        put(both, [row(4, NOON + 3, 4.0), row(5, NOON + 4, 5.0)], now_ns=later)
        roll_up(both, later)
        assert hours(both) == []
        assert hours(both, DAY_S) == [(NOON - 12 * H, 5, 15.0, 1.0, 5.0)]
        assert count(both, records) == 0


def test_samples_are_never_deleted_before_they_are_rolled_up(both):
    put(both, [row(1, NOON, 1.0)])
    assert retain(both, Policy(), NOON + 100 * DAY).samples == 0
    roll_up(both, NOON + 100 * DAY)
    assert retain(both, Policy(), NOON + 100 * DAY).samples == 1


def test_latency_is_weighted_to_the_inferences(both):
    latencies = tuple(float(n) for n in range(64))
    body = Sample(period_s=10, values={"inferences": 6400.0, "latency_ms": 31.5}, latencies_ms=latencies)
    few = Sample(period_s=10, values={"inferences": 2.0, "latency_ms": 1000.0}, latencies_ms=(1000.0, 1000.0))
    summary = summarise([body, few])["latency_ms", ""]
    assert summary.count == 6402
    assert summary.most == 1000.0
    assert summary.mean == pytest.approx((31.5 * 6400 + 2000) / 6402)
    assert summary.quantiles([0.5])[0] == pytest.approx(32, abs=2)


def test_a_sample_that_claims_no_end_of_inferences_weighs_no_more_than_the_bound():
    body = Sample(period_s=1, values={"inferences": 1e300}, latencies_ms=(1.0,))
    assert summarise([body])["latency_ms", ""].count == WEIGHT_MAX


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 3000), st.integers(0, 2**32), st.sampled_from(["normal", "lognormal", "steps"])
)
def test_merged_sketches_keep_the_rank_error(parts, size, seed, shape):
    chance = np.random.default_rng(seed)
    values = {
        "normal": lambda n: chance.normal(50, 10, n),
        "lognormal": lambda n: chance.lognormal(3, 2, n),
        "steps": lambda n: chance.integers(0, 5, n).astype(float),
    }[shape]
    chunks = [values(int(chance.integers(1, size + 1))).astype(np.float32).astype(float) for _ in range(parts)]
    made = [summarise(Sample(period_s=1, values={"x": float(v)}) for v in chunk)["x", ""] for chunk in chunks]
    merged = merge(made)
    everything = np.sort(np.concatenate(chunks))
    assert merged.count == len(everything)
    assert merged.total == pytest.approx(everything.sum())
    assert (merged.least, merged.most) == (everything[0], everything[-1])
    for rank, value in zip(ranks := [0.01, 0.25, 0.5, 0.9, 0.99], merged.quantiles(ranks), strict=True):
        below, upto = (np.searchsorted(everything, value, side) / len(everything) for side in ("left", "right"))
        # Three times the bound, which holds with 99 % confidence: hypothesis tries hard.
        assert below - 3 * RANK_ERROR - 1 / len(everything) <= rank <= upto + 3 * RANK_ERROR + 1 / len(everything)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_comes_late_again_and_between_roll_ups_and_retention_counts_once(both, seed):
    chance = random.Random(seed)  # noqa: S311
    everything = [row(n, NOON + chance.randrange(3 * DAY), float(n)) for n in range(1, 200)]
    sent, now_ns = set(), NOON + 3 * DAY
    for _ in range(12):
        some = chance.sample(everything, 40)
        sent |= {one.sequence for one in some}
        put(both, some, now_ns=now_ns)
        if chance.random() < 0.7:
            roll_up(both, now_ns)
        retain(both, Policy(samples_days=10, hours_days=20), now_ns)
        now_ns += chance.randrange(6 * DAY)
    roll_up(both, now_ns)
    days = hours(both, DAY_S)
    assert (sum(day[1] for day in days), sum(day[2] for day in days)) == (len(sent), sum(sent))


def test_a_damaged_sample_is_left_out_and_said(both, caplog):
    put(both, [row(1, NOON, 1.0), Row(2, "sample", NOON, 2, True, b'{"values": 7}')])
    roll_up(both, NOON + DAY)
    assert hours(both) == [(NOON, 1, 1.0, 1.0, 1.0)]
    assert "sequence 2 is no sample" in caplog.text


def test_summaries_of_rows_merge_over_devices_and_time(both):
    for device in ("a", "b"):
        put(both, [row(n, NOON + n * H, float(n)) for n in range(1, 4)], device=device)
    roll_up(both, NOON + DAY)
    with both._opened.reading() as connection:
        found = connection.execute(select(rollups).where(rollups.c.span_s == HOUR_S)).mappings().all()
    merged = merge(rollup.summary(one) for one in found)
    assert (merged.count, merged.mean, merged.least, merged.most) == (6, 2.0, 1.0, 3.0)
    assert merged.quantiles([0, 0.5, 1]) == [1.0, 2.0, 3.0]
    assert json.dumps(merged.mean)
