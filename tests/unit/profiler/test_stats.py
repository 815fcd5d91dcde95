from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.stats import summarize
from ferryman.runtime.contracts.errors import CallerError


def test_percentiles_interpolate_linearly_between_neighbours():
    summary = summarize([40, 10, 30, 20])
    assert summary.p50_ns == 25
    assert summary.p90_ns == pytest.approx(37)
    assert summary.mean_ns == 25
    assert (summary.min_ns, summary.max_ns) == (10, 40)


def test_the_spread_ignores_a_single_outlier():
    assert summarize([10, 11, 12, 13, 10**9]).mad_ns == 1


def test_the_samples_stay_in_the_order_they_were_taken():
    assert summarize([3, 1, 2]).samples_ns == (3, 1, 2)


def test_no_samples_are_refused():
    with pytest.raises(CallerError, match="at least one sample"):
        summarize([])


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=50))
def test_percentiles_are_in_order_and_within_the_samples(samples):
    summary = summarize(samples)
    slack = 1e-9 * summary.max_ns
    assert summary.min_ns - slack <= summary.p50_ns <= summary.p90_ns + slack <= summary.p99_ns + 2 * slack
    assert summary.p99_ns <= summary.max_ns + slack
