"""Numbers as symbols and bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.pieces.numbers import count_rest, join_numbers, split_numbers


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1)))
def test_numbers_come_back(numbers):
    values = np.array(numbers, np.uint32)
    symbols, counts = split_numbers(values)
    assert (count_rest(symbols) == counts).all()
    rest = values & ((np.uint64(1) << counts.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    assert join_numbers(symbols, rest).tolist() == numbers


def test_small_numbers_and_ends_of_the_range():
    values = np.array([0, 1, 2, 3, 4, 7, 8, 2**31, 2**32 - 1], np.uint32)
    symbols, counts = split_numbers(values)
    assert symbols.tolist() == [0, 1, 2, 3, 4, 7, 8, 120, 123]
    assert counts.tolist() == [0, 0, 0, 0, 0, 0, 1, 29, 29]


@pytest.mark.parametrize(("bits", "most"), [(32, 123), (16, 59)])
def test_longer_numbers_are_refused(bits, most):
    count_rest(np.array([most], np.uint8), bits)
    with pytest.raises(ValueError, match="longer than"):
        count_rest(np.array([most + 1], np.uint8), bits)
