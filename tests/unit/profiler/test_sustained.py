"""A long run in intervals, each with the device's state."""

from __future__ import annotations

import numpy as np
import pytest

from ferryman.profiler.conditions import State
from ferryman.profiler.stats import summarize
from ferryman.profiler.sustained import INTERVALS, sustain
from ferryman.runtime.contracts.measurement import Reading
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.test_steady import MS, Device

NO = Unavailable(reason="none")


def heating(device):
    """Throttles to half its clock after two minutes."""

    def state(_):
        hot = device.now_ns > 120e9
        temperature = Reading(value=85.0 if hot else 60.0, source="cpu")
        return State((600.0,) if hot else (1200.0,), (temperature,), ("throttled",) if hot else (), NO, NO)

    return state


def test_minutes_are_told_in_intervals_with_clock_heat_and_throttling():
    device = Device(lambda _: 0)
    device._duration_ns = lambda _: 20 * MS if device.now_ns > 120e9 else 10 * MS
    found = sustain(device.run, 240, kept_max=40_000, clock_ns=device.clock_ns, state=heating(device))
    assert len(found) == INTERVALS
    medians = np.array([summarize(interval.samples).p50_ns for interval in found])
    assert set(medians[:29]) == {10 * MS}
    assert set(medians[31:]) == {20 * MS}
    assert (found[0].throttled, found[-1].throttled) == ((), ("throttled",))
    assert (found[0].clocks_mhz, found[-1].clocks_mhz) == ((1200.0,), (600.0,))
    starts = [interval.start_s for interval in found]
    assert starts == sorted(starts)
    assert starts[-1] + found[-1].seconds == pytest.approx(240, abs=0.1)
    assert sum(interval.samples.count for interval in found) == device.runs
    assert sum(len(interval.samples) for interval in found) <= 40_000


def test_a_short_one_has_intervals_of_a_second():
    device = Device(lambda _: 7 * MS)
    found = sustain(device.run, 5, kept_max=600, clock_ns=device.clock_ns, state=lambda _: State(NO, NO, NO, NO, NO))
    assert [round(interval.seconds) for interval in found] == [1] * 5
    assert all(interval.throttled == NO for interval in found)
    assert found[0].rss_bytes > 10**6


def test_a_model_slower_than_an_interval_is_one_run_in_each():
    device = Device(lambda _: 4000 * MS)
    found = sustain(device.run, 10, kept_max=600, clock_ns=device.clock_ns, state=lambda _: State(NO, NO, NO, NO, NO))
    assert [list(interval.samples) for interval in found] == [[4000 * MS]] * 3
