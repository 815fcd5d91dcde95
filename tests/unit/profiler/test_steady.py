"""Warm-up and stop rule, against a clock that the model of a run moves."""

from __future__ import annotations

import numpy as np
import pytest

from ferryman.profiler.steady import (
    SINGLE_STREAM_RUNS,
    STEADY_MAX_S,
    WARMUP_MAX_RUNS,
    WARMUP_MAX_S,
    steady,
    timed_runs,
    warm_up,
)
from ferryman.runtime.contracts.measurement import ProfileSpec

MS = 1_000_000


class Device:
    """Its runs take what `durations_ns` says of the nth, and the clock stands still otherwise."""

    def __init__(self, duration_ns):
        self.now_ns = 0
        self.runs = 0
        self._duration_ns = duration_ns

    def run(self):
        self.now_ns += int(self._duration_ns(self.runs))
        self.runs += 1

    def clock_ns(self):
        return self.now_ns


def noisy(mean_ns, spread):
    random = np.random.default_rng(0)
    return Device(lambda _: mean_ns * (1 + spread * random.standard_normal()))


def test_every_run_is_timed():
    device = Device(lambda n: (n + 1) * MS)
    assert timed_runs(device.run, 3, device.clock_ns) == [MS, 2 * MS, 3 * MS]


def test_warm_up_ends_once_runs_get_no_faster():
    device = Device(lambda n: 10 * MS * (1 + 3 * 0.9**n))  # a cold start that fades
    samples_ns, settled = warm_up(device.run, ProfileSpec(), device.clock_ns)
    assert settled
    assert 20 < len(samples_ns) < 120
    assert samples_ns[-1] < 1.05 * 10 * MS


def test_a_clock_that_is_raised_late_is_waited_for():
    device = Device(lambda n: MS if n > 80 else 2 * MS)
    samples_ns, settled = warm_up(device.run, ProfileSpec(), device.clock_ns)
    assert settled
    assert samples_ns[-1] == MS or len(samples_ns) >= 50  # two windows of 50 ms were alike before


def test_runs_that_never_settle_are_told_and_do_not_take_for_ever():
    device = Device(lambda n: 200 * MS * 0.97**n)
    samples_ns, settled = warm_up(device.run, ProfileSpec(), device.clock_ns)
    assert not settled
    assert sum(samples_ns) < 2 * WARMUP_MAX_S * 1e9


def test_the_quickest_runs_bound_the_warm_up_too():
    device = Device(lambda n: 20 if n % 2 else 15)
    samples_ns, _ = warm_up(device.run, ProfileSpec(), device.clock_ns)
    assert len(samples_ns) < 10**7
    assert len(samples_ns) >= WARMUP_MAX_RUNS


@pytest.mark.parametrize(("runs", "settled"), [(0, False), (1, False), (20, True)])
def test_a_given_number_of_warm_up_runs_is_made(runs, settled):
    device = Device(lambda _: MS)
    samples_ns, said = warm_up(device.run, ProfileSpec(warmup_runs=runs), device.clock_ns)
    assert (len(samples_ns), said) == (runs, settled)


def test_given_warm_up_runs_that_were_too_few_are_told():
    device = Device(lambda n: MS * 0.9**n)
    assert warm_up(device.run, ProfileSpec(warmup_runs=10), device.clock_ns)[1] is False


def test_a_steady_model_needs_few_runs_and_a_noisy_one_more():
    quiet, loud = noisy(MS, 0.01), noisy(MS, 0.3)
    few, many = (steady(one.run, ProfileSpec(error=0.005), one.clock_ns) for one in (quiet, loud))
    assert 60 <= len(few) < 120 < len(many)
    assert quiet.runs == len(few)


def test_what_cannot_be_known_well_ends_with_the_time():
    device = noisy(100 * MS, 0.5)
    samples_ns = steady(device.run, ProfileSpec(error=1e-6), device.clock_ns)
    assert STEADY_MAX_S <= sum(samples_ns) / 1e9 < 1.5 * STEADY_MAX_S


def test_a_slow_model_is_run_five_times_at_least():
    device = Device(lambda _: 3000 * MS)
    assert len(steady(device.run, ProfileSpec(), device.clock_ns)) == 5


def test_single_stream_takes_the_runs_and_the_minute():
    slow, quick = Device(lambda _: 80 * MS), Device(lambda _: 2 * MS)
    spec = ProfileSpec(single_stream=True)
    assert SINGLE_STREAM_RUNS <= len(steady(slow.run, spec, slow.clock_ns)) < 1.11 * SINGLE_STREAM_RUNS
    assert 30_000 <= len(steady(quick.run, spec, quick.clock_ns)) < 33_100


def test_a_given_number_of_runs_is_made():
    device = noisy(MS, 0.5)
    assert len(steady(device.run, ProfileSpec(runs=7), device.clock_ns)) == 7
