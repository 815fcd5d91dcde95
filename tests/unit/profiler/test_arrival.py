"""Open loop: the wait counts, and a rate that cannot be kept is told."""

from __future__ import annotations

import numpy as np
import pytest

from ferryman.profiler.arrival import ARRIVALS_S, arrive
from ferryman.profiler.stats import summarize
from tests.unit.profiler.test_steady import MS, Device


class Sleeping(Device):
    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9)

    def clock_ns(self):
        self.now_ns += 10_000  # watching the clock takes time
        return self.now_ns


def arrivals(duration_ns, rate_hz):
    device = Sleeping(duration_ns)
    return arrive(device.run, rate_hz, kept_max=10**6, clock_ns=device.clock_ns, sleep=device.sleep), device


def test_a_device_that_keeps_up_answers_in_its_own_time():
    found, device = arrivals(lambda _: 2 * MS, 100)
    assert found.latency.count == found.service.count == device.runs == 1000
    assert summarize(found.latency).p99_ns == pytest.approx(2 * MS, rel=0.05)
    assert device.now_ns / 1e9 == pytest.approx(ARRIVALS_S, rel=0.01)
    assert not found.behind


def test_one_stall_counts_for_all_who_would_have_asked_meanwhile():
    found, _ = arrivals(lambda n: 500 * MS if n == 200 else MS, 100)
    assert (np.array(list(found.service)) > 10 * MS).sum() == 1
    waited = (np.array(list(found.latency)) > 10 * MS).sum()
    assert 45 <= waited <= 60  # a closed loop would see one
    assert max(found.latency) == pytest.approx(500 * MS, rel=0.01)
    assert not found.behind


def test_a_rate_beyond_the_device_is_told():
    found, _ = arrivals(lambda _: 11 * MS, 100)
    assert found.behind
    assert found.latency[-1] > 20 * found.service[-1]


def test_a_line_of_ten_seconds_is_not_waited_for():
    found, device = arrivals(lambda _: 1000 * MS, 1000)
    assert found.behind
    assert device.now_ns / 1e9 < 13
    assert found.latency.count < 13


def test_a_slow_rate_still_asks_a_hundred_times():
    found, _ = arrivals(lambda _: MS, 2)
    assert found.latency.count == 100
