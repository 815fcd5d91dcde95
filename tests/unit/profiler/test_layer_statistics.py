"""What is told of one layer's activations: moments, shares, and information."""

from __future__ import annotations

import numpy as np
import pytest

from ferryman.profiler.layers.exposed import Stored, Value
from ferryman.profiler.layers.statistics import BINS, UNITS_MAX, Running, bin_adaptively, information_bits
from ferryman.runtime.contracts.record import Unavailable


def told(arrays, **value):
    running = Running(Value("0 layer", **value), len(arrays))
    for array in arrays:
        running.take(array)
    return running.record()


def normal(inputs, units, seed=0):
    return np.random.default_rng(seed).standard_normal((inputs, 1, units)).astype(np.float32)


def test_moments_are_those_of_all_values_together():
    arrays = 100 + normal(20, 50)
    layer = told(arrays)
    assert (layer.least, layer.most) == (arrays.min(), arrays.max())
    assert layer.mean == pytest.approx(arrays.mean(dtype=np.float64))
    assert layer.std == pytest.approx(arrays.std(dtype=np.float64))
    assert (layer.zeros, layer.saturated, layer.not_finite, layer.dead) == (0, 0, 0, None)


def test_zeros_and_dead_channels_behind_a_relu():
    arrays = np.maximum(np.random.default_rng(0).standard_normal((10, 1, 4, 4, 8)), 0).astype(np.float32)
    arrays[..., 3] = arrays[..., 5] = 0
    layer = told(arrays, channels=3)
    assert layer.zeros == np.mean(arrays == 0)
    assert layer.dead == 2 / 8
    assert layer.saturated == 0


def test_a_clamp_saturates_and_an_end_that_is_there_once_does_not():
    arrays = 4 * normal(10, 1000)
    assert told(arrays).saturated == 0
    clamped = np.clip(arrays, 0, 6)
    layer = told(clamped)
    assert layer.most == 6
    assert layer.saturated == pytest.approx(np.mean(clamped == 6), abs=1.5 / clamped.size)
    both = np.clip(arrays, -1, 1)
    assert told(both).saturated == pytest.approx(np.mean(np.abs(both) == 1), abs=2.5 / both.size)


def test_quantized_numbers_are_told_as_what_they_stand_for():
    stored = Stored(scale=0.5, zero_point=-128, least=-128, most=127)
    arrays = np.array([[[-128, -126, 127, 127]], [[-128, -128, 0, 1]]], np.int8)
    layer = told(arrays, stored=stored, channels=1)
    assert (layer.dtype, layer.least, layer.most) == ("int8", 0, 127.5)
    assert layer.zeros == 3 / 8  # at the type's end, and yet no saturation: it is where a ReLU ends
    assert layer.saturated == 2 / 8
    assert layer.dead == 1 / 4


def test_what_is_not_finite_is_counted_and_left_out():
    layer = told(np.array([[[np.nan, 1, np.inf, 3]], [[1, 2, 3, 4]]], np.float32))
    assert layer.not_finite == 2 / 8
    assert (layer.least, layer.most, layer.mean) == (1, 4, pytest.approx(14 / 6))
    assert isinstance(layer.information_bits, Unavailable)
    nothing = told(np.full((2, 1, 3), np.nan, np.float32))
    assert (nothing.least, nothing.most, nothing.not_finite) == (0, 0, 1)


@pytest.mark.parametrize("inputs", [2, 8, 100])
def test_a_wide_layer_tells_all_inputs_apart_and_no_more(inputs):
    whole, unit = information_bits(normal(inputs, 200)[:, 0])
    assert whole == pytest.approx(np.log2(inputs))
    assert 0 < unit <= np.log2(min(inputs, BINS))


def test_a_layer_that_says_the_same_to_every_input_tells_nothing():
    assert information_bits(np.zeros((50, 7), np.float32)) == (0, 0)
    assert information_bits(np.tile(normal(1, 7)[0], (50, 1))) == (0, 0)


def test_a_layer_that_knows_a_class_tells_as_much():
    classes = np.repeat(np.arange(4), 16).astype(np.float32)
    whole, unit = information_bits(np.stack([classes, -classes], 1))
    assert (whole, unit) == (2, 2)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_bins_adapt_to_the_range_of_the_layer(scale):
    """The point of the estimator: equal bins of a fixed range would see nothing of the first and last."""
    activations = normal(64, 3)[:, 0]
    assert information_bits(activations * np.float32(scale)) == information_bits(activations)


def test_bins_adapt_to_where_the_values_are():
    heavy = np.exp(4 * normal(1, 3000)[0, 0])[None]  # most of it near 0
    counts = np.bincount(bin_adaptively(heavy)[0])
    assert len(counts) == BINS
    assert counts.min() == counts.max() == 3000 / BINS


def test_few_distinct_values_have_a_bin_each():
    assert bin_adaptively(np.array([[3, 1, 2, 1]], np.float32)).tolist() == [[2, 0, 1, 0]]


def test_saturation_compresses():
    """More of a unit at one of its ends tells less of the input."""
    free, saturated = (told(np.tanh(gain * normal(200, 4))).unit_bits for gain in (0.1, 300))
    assert free > saturated + 2


def test_units_of_a_large_layer_are_a_fixed_draw():
    running = Running(Value("0 layer"), 2)
    for _ in range(2):
        running.take(np.arange(10 * UNITS_MAX, dtype=np.float32))
    assert len(running._kept[0]) == UNITS_MAX
    assert (running._kept[0] == running._kept[1]).all()


def test_one_input_tells_nothing_and_says_so():
    layer = told(normal(1, 5))
    assert "one input" in layer.information_bits.reason
    assert "--inputs" in layer.unit_bits.reason


def test_a_layer_whose_size_varies_has_moments_and_no_information():
    layer = told([np.ones((1, 2), np.float32), np.zeros((1, 4), np.float32)])
    assert layer.zeros == 4 / 6
    assert "varies" in layer.information_bits.reason
