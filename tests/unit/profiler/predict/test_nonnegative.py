"""Least squares without negative numbers, held against the conditions that only the solution fulfils."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from ferryman.profiler.predict.nonnegative import solve


def test_where_nothing_would_be_negative_it_is_least_squares():
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    np.testing.assert_allclose(solve(matrix, matrix @ [2.0, 0.5]), [2.0, 0.5])


def test_what_would_be_negative_is_zero():
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    np.testing.assert_allclose(solve(matrix, matrix @ [2.0, -0.5]), [1.0, 0.0])


@given(
    seed=st.integers(0, 2**32 - 1),
    equations=st.integers(1, 30),
    unknowns=st.integers(1, 12),
    alike=st.booleans(),
    empty=st.booleans(),
)
def test_it_is_as_near_as_scipys(seed, equations, unknowns, alike, empty):
    random = np.random.default_rng(seed)
    matrix = random.random((equations, unknowns))
    if alike:
        matrix[:, -1] = matrix[:, 0]
    if empty:
        matrix[:, 0] = 0
    wanted = random.normal(size=equations)
    found = solve(matrix, wanted)
    assert (found >= 0).all()
    theirs = nnls(matrix, wanted)[1]
    assert np.linalg.norm(matrix @ found - wanted) <= theirs * (1 + 1e-6) + 1e-9


def test_of_nothing_it_is_nothing():
    np.testing.assert_array_equal(solve(np.zeros((3, 2)), np.ones(3)), [0, 0])
    assert solve(np.ones((2, 1)), np.array([-1.0, -1.0])) == pytest.approx(0)
