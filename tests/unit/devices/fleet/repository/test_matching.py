"""Equal spans, wherever they moved."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet.repository.alignment import align
from ferryman.devices.fleet.repository.matching import equal_bytes, find_matches


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_first_difference_is_found(size, at):
    one = noise(size)
    other = one.copy()
    other[at : at + 1] ^= 1
    assert equal_bytes(one, other) == min(at, size)


def test_what_was_inserted_before_does_not_matter():
    old = noise(50_000)
    new = np.concatenate((noise(33, 1), old))
    assert find_matches(old, new, 48) == [(33, 50_000, 33)]


def test_what_goes_on_is_kept_where_another_place_is_as_good():
    part = noise(5000)
    old = np.concatenate((part, part))
    assert find_matches(old, old, 48) == [(0, 10_000, 0)]


@settings(deadline=None)
@given(st.data())
def test_matches_are_equal_and_in_order(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    old = rng.integers(0, data.draw(st.sampled_from([2, 256])), 8000, np.uint8)
    cuts = np.sort(rng.integers(0, 8000, 4))
    parts = [np.split(old, cuts)[one] for one in rng.integers(0, 5, 5)]
    new = np.concatenate((*parts, rng.integers(0, 256, 100, np.uint8)))
    at = 0
    for start, size, shift in find_matches(old, new, 48):
        assert start >= at
        assert size >= 48
        assert (new[start : start + size] == old[start - shift : start - shift + size]).all()
        at = start + size
    assert at <= len(new)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30_000))
def test_runs_are_all_of_the_payload(seed, size):
    rng = np.random.default_rng(seed)
    old = noise(20_000)
    new = np.concatenate((old[rng.integers(0, 20_000) :], noise(size, 1), old[: rng.integers(0, 20_000)]))
    runs = align(old, new, find_matches(old, new, 48))
    ends = [0, *(run.end for run in runs)]
    assert [run.start for run in runs] == ends[:-1]
    assert ends[-1] == len(new)
    for run in runs:
        if run.equal:
            assert (new[run.start : run.end] == old[run.start - run.shift : run.end - run.shift]).all()
