"""Fields of bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.pieces.bits import read_bits, write_bits

FIELDS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=300)


@settings(deadline=None)
@given(FIELDS)
def test_fields_come_back(fields):
    values = np.array([value for value, _ in fields], np.uint32)
    counts = np.array([count for _, count in fields], np.uint8)
    data = write_bits(values, counts)
    assert len(data) == -(-sum(count for _, count in fields) // 8)
    assert read_bits(data, counts).tolist() == [value & ((1 << count) - 1) for value, count in fields]


def test_fields_come_back_across_blocks():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 200_001, np.uint32)
    counts = rng.integers(0, 30, 200_001, np.uint8)
    wanted = values & ((np.uint64(1) << counts.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    assert (read_bits(write_bits(values, counts), counts) == wanted).all()


@settings(deadline=None)
@given(FIELDS, st.sampled_from([-1, 1, 9]))
def test_bytes_too_few_or_too_many_are_refused(fields, more):
    counts = np.array([count for _, count in fields], np.uint8)
    data = write_bits(np.array([value for value, _ in fields], np.uint32), counts)
    with pytest.raises(ValueError, match="do not fill"):
        read_bits(data[:-1] if more < 0 and data else data + bytes(abs(more)), counts)
