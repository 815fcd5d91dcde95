from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.verdict import (
    MARGIN,
    ROUNDS,
    ROUNDS_LEAST,
    Interval,
    _rank_sum,
    _signed_rank,
    judge,
    log_ratio,
    ratios,
    rounds_to_settle,
)
from ferryman.runtime.contracts.energy import Energy, EnergySource, EnergyWindow
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.record import Unavailable
from tests.support.measurements import measurement, start

NO = Unavailable(reason="none")


def medians(noise, count: int, *, level: float = 1.0, runs: int = 200, scatter: float = 0.01) -> np.ndarray:
    """Medians of processes whose runs are autocorrelated and heavy-tailed; one process in twenty was disturbed."""
    processes = level * np.exp(noise.normal(0, scatter, count))
    processes *= np.exp(np.where(noise.random(count) < 0.05, noise.exponential(0.1, count), 0))
    latent = np.empty((count, runs))
    latent[:, 0] = noise.standard_normal(count)
    for run in range(1, runs):
        latent[:, run] = 0.9 * latent[:, run - 1] + math.sqrt(1 - 0.9**2) * noise.standard_normal(count)
    times = processes[:, None] * np.exp(0.03 * latent)
    times *= 1 + np.where(noise.random(times.shape) < 0.02, noise.pareto(1.5, times.shape), 0)
    return np.median(times, axis=1)


@pytest.fixture(scope="module")
def pool():
    return medians(np.random.default_rng(7), 6000)


def verdicts(pool, seed, *, times=1.0, rounds=ROUNDS, paired=True, repeats=1000, drift=0.0):
    noise = np.random.default_rng(seed)
    heat = np.exp(drift * np.linspace(0, 1, rounds))
    found = []
    for _ in range(repeats):
        one, two = noise.choice(pool, (2, rounds))
        found.append(judge(log_ratio(one * heat, two * heat * times, paired=paired), MARGIN))
    return {word: found.count(word) / repeats for word in ("faster", "slower", "same", "unclear")}


# Error rates.


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_equal_is_seldom_called_otherwise(pool, paired):
    found = verdicts(pool, 1, paired=paired)
    assert found["faster"] + found["slower"] <= 0.05
    assert found["same"] >= 0.5


def test_five_percent_are_found_at_the_default_rounds(pool):
    assert verdicts(pool, 2, times=1.05)["slower"] >= 0.9
    assert verdicts(pool, 3, times=1 / 1.05)["faster"] >= 0.9


def test_what_is_just_at_the_margin_is_seldom_called_slower(pool):
    assert verdicts(pool, 4, times=1 + MARGIN)["slower"] <= 0.05


def test_a_device_that_slows_down_by_a_third_on_the_way_is_no_matter_to_pairs(pool):
    found = verdicts(pool, 5, drift=0.3)
    assert found["faster"] + found["slower"] <= 0.05
    assert found["same"] >= 0.5


@pytest.mark.parametrize(("rounds", "paired"), [(6, True), (15, True), (3, False), (5, False), (10, False)])
def test_intervals_hold_the_truth_as_often_as_they_say(pool, rounds, paired):
    noise = np.random.default_rng(6)
    held = 0
    for _ in range(1000):
        one, two = noise.choice(pool, (2, rounds))
        found = log_ratio(one, two * 1.3, paired=paired)
        held += found.low <= math.log(1.3) <= found.high
    assert held / 1000 >= 0.93


def test_as_many_rounds_as_are_told_settle_it_more_often_than_not(pool):
    noise = np.random.default_rng(8)
    settled = []
    while len(settled) < 200:
        one, two = noise.choice(pool, (2, ROUNDS_LEAST))
        first = log_ratio(one, two * 1.06, paired=True)
        if judge(first, MARGIN) != "unclear" or not (more := rounds_to_settle(first, MARGIN, ROUNDS_LEAST)):
            continue
        one, two = noise.choice(pool, (2, more))
        settled.append(judge(log_ratio(one, two * 1.06, paired=True), MARGIN) != "unclear")
    assert np.mean(settled) > 0.5


# Intervals.


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_chances_of_signed_ranks_are_those_of_all_signs(count):
    sums = [sum(itertools.compress(range(1, count + 1), signs)) for signs in itertools.product((0, 1), repeat=count)]
    np.testing.assert_allclose(_signed_rank(count), np.bincount(sums) / len(sums))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (3, 2), (4, 5)])
def test_chances_of_rank_sums_are_those_of_all_orders(sizes):
    one, two = sizes
    orders = itertools.combinations(range(one + two), two)
    above = [sum(rank - place for place, rank in enumerate(ranks)) for ranks in orders]
    np.testing.assert_allclose(_rank_sum(one, two), np.bincount(above) / len(above))


def test_six_pairs_reach_from_the_least_to_the_most():
    found = log_ratio(np.ones(6), np.exp([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]), paired=True)
    assert (found.low, found.high) == pytest.approx((0.01, 0.06))
    assert found.middle == pytest.approx(0.035)
    assert found.p_value == pytest.approx(2 / 64)


def test_fewer_pairs_are_left_to_student():
    found = log_ratio(np.ones(3), np.exp([0.01, 0.02, 0.03]), paired=True)
    assert found.high - found.low == pytest.approx(2 * 4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    assert found.p_value is None


@pytest.mark.parametrize("paired", [True, False])
def test_single_processes_have_no_interval(paired):
    found = log_ratio(np.array([1.0]), np.array([2.0]), paired=paired)
    assert found == Interval(pytest.approx(math.log(2)), None, None, None)
    assert judge(found, MARGIN) == "unclear"
    assert rounds_to_settle(found, MARGIN, 1) == ROUNDS_LEAST


times = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=12)


@given(times, times, st.booleans())
def test_what_one_is_to_the_other_is_the_inverse_the_other_way(one, two, paired):
    size = min(len(one), len(two)) if paired else None
    first, second = np.array(one[:size]), np.array(two[:size])
    there, back = log_ratio(first, second, paired=paired), log_ratio(second, first, paired=paired)
    assert there.middle == pytest.approx(-back.middle, abs=1e-9)
    assert (there.low is None) == (back.high is None)
    if there.low is not None:
        assert there.low == pytest.approx(-back.high, abs=1e-9)
        assert there.low - 1e-9 <= there.middle <= there.high + 1e-9
    assert there.p_value == pytest.approx(back.p_value)


# Verdicts.


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.021, 1.06, "slower"),
        (1.019, 1.06, "unclear"),
        (0.99, 1.019, "same"),
        (0.94, 0.979, "faster"),
        (0.94, 0.985, "unclear"),
        (0.9, 1.1, "unclear"),
    ],
)
def test_a_verdict_holds_of_the_whole_interval(low, high, verdict):
    assert judge(Interval(0.0, math.log(low), math.log(high), None), 0.02) == verdict


def test_what_lies_at_the_margin_is_settled_by_no_number_of_rounds():
    edge = math.log(1.02)
    assert rounds_to_settle(Interval(edge, edge - 0.01, edge + 0.01, None), 0.02, 15) is None
    assert rounds_to_settle(Interval(0.0, -0.03, 0.03, None), 0.02, 10) == 23


# Measurements.


def of(level_ns: float, count: int = 6, **changes):
    starts = tuple(
        start([round(level_ns * (1 + 0.001 * number))] * 9 + [round(2 * level_ns)] * 2, load_ns=round(5 * level_ns))
        for number in range(count)
    )
    return msgspec.structs.replace(measurement(), starts=starts, **changes)


def by_metric(*pair, **options):
    return {ratio.metric: ratio for ratio in ratios(*pair, **options)}


def test_each_quantity_has_its_ratio_interval_and_verdict():
    found = by_metric(of(1e6), of(1.5e6), interleaved=True)
    assert list(found) == ["p50", "p90", "load", "first run"]
    for name in ("p50", "p90", "load"):
        assert found[name].ratio == pytest.approx(1.5)
        assert found[name].verdict == "slower"
        assert found[name].rounds is None
    assert found["first run"].verdict == "same"
    assert found["p90"].baseline == pytest.approx(2e6)


def test_memory_of_one_process_has_a_ratio_and_no_verdict():
    def holding(pss_bytes):
        memory = Memory(rss_bytes=1, pss_bytes=pss_bytes, uss_bytes=1, peak_rss_bytes=1)
        return of(1e6, memory=msgspec.structs.replace(measurement().memory, steady=memory))

    found = by_metric(holding(10_000), holding(20_000), interleaved=True)["memory"]
    assert found.ratio == pytest.approx(2)
    assert (found.low, found.verdict, found.rounds) == (None, None, None)


@pytest.mark.parametrize(("error_j", "verdict"), [(0.01, "more"), (0.2, "unclear")])
def test_energy_is_judged_by_its_own_errors(error_j, verdict):
    def taking(joules):
        source = EnergySource(name="s", rails=(), unit="J", resolution=NO, renewed_s=NO, uncertainty=NO)
        window = EnergyWindow(energy_j=10 * joules, window_s=10.0, runs=10, times_ns=(0,), values=(0.0,))
        return of(1e6, energy=Energy(source=source, active=window, idle=NO, error_j=error_j, net_error_j=None))

    assert by_metric(taking(1.0), taking(1.1), interleaved=True)["energy"].verdict == verdict


def test_energy_of_no_runs_is_left_out():
    source = EnergySource(name="s", rails=(), unit="J", resolution=NO, renewed_s=NO, uncertainty=NO)
    window = EnergyWindow(energy_j=10, window_s=10.0, runs=0, times_ns=(0,), values=(0.0,))
    none = of(1e6, energy=Energy(source=source, active=window, idle=NO, error_j=1.0, net_error_j=None))
    assert "energy" not in by_metric(none, none, interleaved=True)


def test_two_records_of_three_processes_can_be_told_apart():
    assert by_metric(of(1e6, 3), of(1.1e6, 3), interleaved=False)["p50"].verdict == "slower"


def test_rounds_that_are_no_pairs_are_refused():
    with pytest.raises(CallerError, match="found 6 and 5 processes"):
        ratios(of(1e6, 6), of(1e6, 5), interleaved=True)


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, math.nan, math.inf])
def test_a_margin_is_a_share(margin):
    with pytest.raises(CallerError, match="a margin is more than 0"):
        ratios(of(1e6), of(1e6), interleaved=True, margin=margin)


@pytest.mark.parametrize("samples", [[], [0, 0, 0]])
def test_without_timed_runs_nothing_is_compared(samples):
    empty = msgspec.structs.replace(measurement(), starts=(start(samples),) * 6)
    with pytest.raises(CallerError, match="no timed runs"):
        ratios(empty, of(1e6), interleaved=True)
    with pytest.raises(CallerError, match="no timed runs"):
        ratios(of(1e6), empty, interleaved=True)
