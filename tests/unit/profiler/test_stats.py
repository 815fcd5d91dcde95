from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.stats import block_error, median_error, student_t, summarize
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Start
from ferryman.runtime.contracts.samples import Samples

EMPTY = Samples.of([])
durations = st.lists(st.integers(0, 10**15), min_size=1, max_size=50)


def start(samples_ns) -> Start:
    return Start(
        process_ns=1, import_ns=1, load_ns=1, first_run_ns=1, warmup=EMPTY, settled=True, samples=Samples.of(samples_ns)
    )


def test_percentiles_interpolate_linearly_between_neighbours():
    summary = summarize([40, 10, 30, 20])
    assert summary.p50_ns == 25
    assert summary.p90_ns == pytest.approx(37)
    assert summary.mean_ns == 25
    assert (summary.min_ns, summary.max_ns, summary.count) == (10, 40, 4)


def test_the_spread_ignores_a_single_outlier():
    assert summarize([10, 11, 12, 13, 10**9]).mad_ns == 1


def test_no_samples_are_refused():
    for nothing in ([], EMPTY, [EMPTY, EMPTY]):
        with pytest.raises(CallerError, match="at least one sample"):
            summarize(nothing)


@given(durations, st.floats(0, 100))
def test_statistics_are_numpys(samples, percent):
    summary = summarize(samples)
    assert summary.percentile_ns(percent) == pytest.approx(float(np.percentile(samples, percent)), rel=1e-9)
    middle = np.median(samples)
    assert summary.mad_ns == pytest.approx(float(np.median(np.abs(np.array(samples) - middle))), rel=1e-9, abs=0.5)


@given(durations, durations)
def test_several_are_one_distribution(first, second):
    together = summarize([Samples.of(first), Samples.of(second)])
    assert together.p90_ns == pytest.approx(summarize(first + second).p90_ns)
    assert together.count == len(first) + len(second)


def test_thinned_samples_count_whole():
    values = list(range(1000, 3000))
    assert summarize(Samples.of(values, 10)).p50_ns == pytest.approx(np.median(values), rel=1e-3)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706), (4, 2.776), (11, 2.228), (19, 2.131), (10**6, 2.0)])
def test_students_t_is_rounded_up_to_the_tables_next_line(freedom, value):
    assert student_t(freedom) == value


def test_the_error_of_one_process_covers_the_median_of_runs_that_are_alike_in_turn():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        slow = np.repeat(random.normal(0, 20, 40), 25)  # drifts that last 25 runs
        values = (10_000 + slow + random.exponential(30, 1000)).astype(np.int64)
        true = 10_000 + np.median(np.repeat(random.normal(0, 20, 4000), 5) + random.exponential(30, 20_000))
        covered += abs(np.median(values) - true) <= block_error(values) * np.median(values)
    assert covered >= 180


def test_too_few_runs_know_no_error():
    assert block_error([5] * 19) == float("inf")
    assert block_error([5] * 20) == 0


def test_two_measurements_of_processes_that_differ_agree_within_their_errors():
    random = np.random.default_rng(1)

    def measured():
        moved = random.normal(0, 300, 5)
        return [start((20_000 + shift + random.exponential(200, 300)).astype(np.int64)) for shift in moved]

    agreed = 0
    for _ in range(300):
        pair = measured(), measured()
        medians = [summarize([one.samples for one in starts]).p50_ns for starts in pair]
        errors = [median_error(starts) * median for starts, median in zip(pair, medians, strict=True)]
        agreed += abs(medians[0] - medians[1]) <= np.hypot(*errors)
    assert agreed >= 285


def test_one_process_gives_its_blocks_error():
    values = np.random.default_rng(2).integers(900, 1100, 400)
    assert median_error([start(values)]) == block_error(values)
