from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ferryman.runtime.compare import SQNR_CAP_DB, Difference, compare, worst
from ferryman.runtime.contracts.record import decode, encode

FLOATS = hnp.arrays(np.float64, st.integers(0, 6), elements=st.floats(width=64))


def one(reference, output, dtype=np.float64):
    (found,) = compare([np.array(reference, dtype)], [np.array(output, dtype)])
    return found


@pytest.mark.parametrize(
    ("reference", "output", "sqnr_db", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 200, 0),
        ([0.0], [0.0], 200, 0),
        ([], [], 200, 0),
        ([10.0, 0.0], [9.0, 0.0], 20, 1),
        ([0.0], [1e-9], -200, 1e-9),
        ([1e300], [0.99e300], 40, 1e298),  # its square is no float64
        ([1e-300], [0.99e-300], 40, 1e-302),  # its square is zero
        ([1.7e308], [-1.7e308], -6.02, np.finfo(np.float64).max),
        ([np.nan], [1.0], -200, np.finfo(np.float64).max),
        ([1.0], [np.inf], -200, np.finfo(np.float64).max),
        ([np.inf], [-np.inf], -200, np.finfo(np.float64).max),
        ([np.inf, np.nan, 10.0], [np.inf, np.nan, 9.0], 20, 1),
    ],
)
def test_signal_over_noise_is_what_a_hand_computes(reference, output, sqnr_db, error):
    found = one(reference, output)
    assert found.sqnr_db == pytest.approx(sqnr_db, abs=0.01)
    assert found.max_abs_error == pytest.approx(error)


@given(FLOATS, FLOATS)
def test_any_numbers_give_a_finite_answer_that_survives_json(reference, output):
    if reference.shape != output.shape:
        with pytest.raises(ValueError, match="expected shape"):
            compare([reference], [output])
        return
    (found,) = compare([reference], [output])
    assert -SQNR_CAP_DB <= found.sqnr_db <= SQNR_CAP_DB
    assert 0 <= found.max_abs_error < np.inf
    assert decode(encode(found), Difference) == found


@given(FLOATS)
def test_equal_outputs_reach_the_cap(reference):
    assert compare([reference], [reference.copy()])[0].sqnr_db == SQNR_CAP_DB


def test_top1_is_the_share_of_rows_with_the_same_largest():
    assert one([[1, 2], [3, 1]], [[0, 5], [1, 2]]).top1_agreement == 0.5
    assert one([1, 2], [1, 2]).top1_agreement is None
    assert one([[1, 2]], [[1, 2]], np.int64).top1_agreement is None


def test_the_worst_output_is_named():
    good, bad = np.ones(3), np.zeros(3)
    assert worst(compare([good, good, good], [good, bad, good])).output == 1
    with pytest.raises(ValueError, match="expected 2 outputs, found 1"):
        compare([good, good], [good])


@pytest.mark.parametrize(
    ("reference", "output", "unequal"),
    [
        (np.array([1 << 60, 5], np.int64), np.array([(1 << 60) + 1, 5], np.int64), 1),  # equal as float64
        (np.array([1 << 20, 5, 7], np.int64), np.array([1 << 20, 6, 8], np.int32), 2),
        (np.array([True, False]), np.array([True, True]), 1),
        (np.array(3, np.int8), np.array(4, np.int8), 1),
    ],
)
def test_integers_and_booleans_are_equal_or_miss_every_bar(reference, output, unequal):
    (found,) = compare([reference], [output])
    assert (found.unequal, found.sqnr_db) == (unequal, -SQNR_CAP_DB)
    assert found.shortfall(5.0).startswith(f"output 0: {unequal} of {reference.size} elements differ, and integers")
    (same,) = compare([reference], [reference.astype(np.int64) if reference.dtype.kind == "i" else reference])
    assert (same.unequal, same.sqnr_db, same.shortfall(60.0)) == (0, SQNR_CAP_DB, "")


def test_an_output_of_another_kind_is_no_answer():
    for reference, output in ((bool, np.float32), (np.float32, bool), (np.int64, np.float32), (bool, np.uint8)):
        with pytest.raises(ValueError, match="output 0: expected dtype"):
            compare([np.ones(2, reference)], [np.ones(2, output)])
    assert compare([np.ones(2, np.float64)], [np.ones(2, np.float32)])[0].sqnr_db == SQNR_CAP_DB
