"""Places of weights: what is packed comes back, lies where sparse.h says, and the smallest way is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter import quant_bits, sparse_bits
from ferryman.converter.quant_bits import BITS

SEEDS = st.integers(0, 2**32 - 1)
ZEROS = st.sampled_from((0.0, 0.3, 0.5, 0.8, 0.9, 0.97, 0.999, 1.0))


def weights(out: int, depth: int, zeros: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(random.random((out, depth)) < zeros, 0, random.integers(1, 100, (out, depth))).astype(np.float32)


@given(out=st.integers(1, 9), depth=st.integers(1, 700), zeros=ZEROS, value_bits=st.sampled_from((4, 32)), seed=SEEDS)
def test_places_come_back(out, depth, zeros, value_bits, seed):
    weight = weights(out, depth, zeros, seed)
    places = sparse_bits.find_places(weight, value_bits, may_hold_all=True)
    held = sparse_bits.read_places(places.index, places.index_bits, weight.shape)
    np.testing.assert_array_equal(held, places.held)
    assert held[weight != 0].all()
    assert places.count >= 1


@given(
    out=st.integers(1, 9), channels=st.integers(1, 40), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    zeros=ZEROS, bits=st.sampled_from(BITS), seed=SEEDS,
)  # fmt: skip
def test_whole_numbers_come_back(out, channels, kernel, zeros, bits, seed):
    random = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    weight = random.integers(-half, half, (out, channels, *kernel)).astype(np.int32)
    weight[random.random(weight.shape) < zeros] = 0
    packed, index_bits = sparse_bits.pack_sparse(weight, bits)
    assert index_bits in (1, 4, 8)
    np.testing.assert_array_equal(sparse_bits.unpack_sparse(packed, weight.shape, bits, index_bits), weight)


def test_gaps_are_counted_from_the_value_before():
    weight = np.zeros((2, 600), np.float32)
    weight[0, [0, 3]] = 1
    weight[1, 599] = 2
    places = sparse_bits.find_places(weight, 32, may_hold_all=True)
    assert places.index_bits == 8
    # Two counts of 16 bits, then gaps; 599 is bridged by weights of zero at 255 and 511.
    assert places.index.tolist() == [2, 0, 3, 0, 0, 2, 255, 255, 87]
    assert np.flatnonzero(places.held[1]).tolist() == [255, 511, 599]


def test_a_bitmap_has_bits_by_depth():
    weight = np.array([[1, 0, 2, 0, 0, 0, 0, 3, 0, 4]], np.float32)
    places = sparse_bits.find_places(weight, 32, may_hold_all=False)
    assert (places.index_bits, places.index.tolist()) == (1, [0b10000101, 0b10])


@pytest.mark.parametrize(
    ("zeros", "value_bits", "index_bits"), [(0.0, 32, 0), (0.5, 32, 1), (0.95, 32, 8), (0.9, 4, 4)]
)
def test_the_smallest_way_is_taken(zeros, value_bits, index_bits):
    places = sparse_bits.find_places(weights(64, 576, zeros, 0), value_bits, may_hold_all=True)
    assert places.index_bits == index_bits


def test_at_nine_tenths_zeros_a_sixth_of_the_bytes_are_left():
    weight = weights(96, 576, 0.9, 0)
    places = sparse_bits.find_places(weight, 32, may_hold_all=True)
    assert places.index.nbytes + 4 * places.count < weight.nbytes / 6


def test_depth_counts_by_tap_then_by_channel():
    weight = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 2, 2)
    rows = quant_bits.by_depth(weight)
    assert rows[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    np.testing.assert_array_equal(quant_bits.from_depth(rows, weight.shape), weight)
