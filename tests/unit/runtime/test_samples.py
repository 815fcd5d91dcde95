"""Packed durations: the same numbers again, the same distribution where not all are kept, hostile bytes refused."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.samples import Samples, _pack

durations = st.lists(st.integers(0, 10**13), max_size=60)


@given(durations)
def test_what_goes_in_comes_out_in_order(values):
    samples = decode(encode(Samples.of(values)), Samples)
    assert list(samples) == values
    assert len(samples) == samples.count == len(values)
    if values:
        assert samples[-1] == values[-1]
        assert samples[1:] == values[1:]


@given(durations, st.integers(1, 60), st.integers(1, 60))
def test_of_many_the_distribution_stays(values, first, second):
    samples = decode(encode(Samples.of(values, first).thinned(second)), Samples)
    assert len(samples) <= min(first, second)
    assert list(samples) == values[:: samples.every]
    held, counts = samples.weighted()
    assert counts.sum() == samples.count == len(values)
    again = np.repeat(held, counts)
    np.testing.assert_allclose(np.sort(again), np.sort(values), rtol=1 / 1024, atol=1)


def test_noise_takes_two_bytes_a_run():
    noise = np.random.default_rng(0).gamma(2, 3000, 100_000).astype(np.int64) + 400_000
    assert len(encode(Samples.of(noise))) < 3 * len(noise)
    assert len(encode(Samples.of(noise, 1000))) < 16_000


def packed(*values):
    return _pack(np.array(values))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"count": 3, "packed": b"no stream"}, "damaged"),
        ({"count": 3, "packed": packed(1, 2)}, "expected 3 of them, found 2"),
        ({"count": 1, "packed": packed(1, 2)}, "damaged"),
        ({"count": 2, "packed": packed(1, 2)[:-3]}, "damaged"),
        ({"count": 2, "packed": packed(1, 2) + b"more"}, "damaged"),
        ({"count": 1, "packed": packed(-5)}, "negative"),
        ({"count": 1, "packed": zlib.compress(bytes(10**7), 9)}, "damaged"),
        ({"count": 4, "every": 2, "packed": packed(1, 2)}, "buckets"),
        ({"count": 4, "every": 2, "packed": packed(1, 2), "buckets": packed(1, 2, 3)}, "buckets"),
        ({"count": 4, "every": 2, "packed": packed(1, 2), "buckets": packed(1, 2, 2, 1)}, "buckets hold other than 4"),
        ({"count": 4, "every": 2, "packed": packed(1, 2), "buckets": packed(1, 2, 5, -1)}, "buckets hold other than 4"),
        ({"count": 2, "every": 2, "packed": packed(1), "buckets": zlib.compress(bytes(10**8), 9)}, "damaged"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        Samples(**fields)
