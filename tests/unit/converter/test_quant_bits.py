"""Packing of quantized weights: what is packed comes back, and lies where quantized.h says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter import quant_bits

BITS = st.sampled_from(quant_bits.BITS)
SEEDS = st.integers(0, 2**32 - 1)


def integers(bits: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    half = 1 << (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, shape).astype(np.int32)


@given(
    bits=BITS, groups=st.integers(1, 4), out=st.integers(1, 20), channels=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), seed=SEEDS,
)  # fmt: skip
def test_convolutions_come_back(bits, groups, out, channels, kernel, seed):
    shape = (out * groups, channels, *kernel)
    weight = integers(bits, shape, seed)
    packed = quant_bits.pack_weights(weight, groups, bits)
    np.testing.assert_array_equal(quant_bits.unpack_weights(packed, shape, groups, bits), weight)


@given(bits=BITS, rows=st.integers(1, 5), channels=st.integers(1, 70), seed=SEEDS)
def test_tables_come_back(bits, rows, channels, seed):
    table = integers(bits, (rows, channels), seed)
    packed = quant_bits.pack_rows(table, bits)
    assert packed.shape == (rows, -(-channels * bits // 8))
    np.testing.assert_array_equal(quant_bits.unpack_rows(packed, channels, bits), table)


@given(out=st.integers(1, 40), groups=st.integers(1, 5), seed=SEEDS)
def test_scales_come_back(out, groups, seed):
    values = np.random.default_rng(seed).random((out, groups)).astype(np.float16)
    packed = quant_bits.pack_groups(values)
    assert packed.shape == (-(-out // 16), groups, 16)
    np.testing.assert_array_equal(quant_bits.unpack_groups(packed, out), values)


@pytest.mark.parametrize("bits", quant_bits.BITS)
def test_a_weight_is_where_the_header_says(bits):
    weight = np.zeros((20, 8, 3, 3), np.int32)
    weight[17, 5, 1, 2] = 1
    packed = quant_bits.pack_weights(weight, 1, bits)
    per, half = 8 // bits, 1 << (bits - 1)
    depth = 5 * 8 + 5  # the sixth tap's sixth channel
    vector, place = depth // 4 // per, depth // 4 % per
    byte = packed[0, 1, vector, 17 % 16, depth % 4]
    assert byte >> (bits * place) & (2**bits - 1) == half + 1
    rest = packed.copy()
    rest[0, 1, vector, 1, depth % 4] = packed[0, 0, 0, 0, 0]
    assert len(set(rest.reshape(-1).tolist())) == 1
