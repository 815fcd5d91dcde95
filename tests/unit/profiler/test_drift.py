"""What the device keeps of what it serves, and how far two such records are apart."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from ferryman.profiler import drift
from ferryman.profiler.drift import SAMPLE, TENSORS_OF_A_ROLE, DriftMonitor, Served, sketch_of
from ferryman.profiler.drift_distance import distances, kolmogorov_smirnov, merge, population_stability
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import decode, encode

SECOND = 1_000_000_000


def served(x, *, sha256="a" * 64, variant="fp32", count=1):
    names = tuple(f"x{i}" for i in range(count))
    return Served("net", sha256, variant, "executorch", names, ("y",), [x] * count, [x.sum(keepdims=True)])


def images(seed, shift, count=300):
    """Normal pixels whose brightness and contrast vary from image to image."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        noise = random.standard_normal((1, 3, 16, 16)) * random.uniform(0.8, 1.2)
        yield (noise + random.normal(0, 0.1) + shift).astype(np.float32)


def stretch(seed, shift, count=300):
    monitor = DriftMonitor()
    for number, image in enumerate(images(seed, shift, count)):
        assert monitor.observe(served(image), number) == []
    (record,) = monitor.flush()
    return decode(encode(record), Drift)


def test_shifted_inputs_are_far_and_unshifted_ones_are_not():
    reference, same, shifted = stretch(1, 0.0), stretch(2, 0.0), stretch(3, 0.5)
    near, far = distances([reference], [same])[0], distances([reference], [shifted])[0]
    assert (near.name, near.role, near.inferences) == ("x0", "input", 300)
    assert near.kolmogorov_smirnov < 0.01
    assert near.population_stability < 0.01
    # Of normal values, half a deviation moves the distribution by 0.197 at most; two sketches err by 0.027 together.
    assert 0.15 < far.kolmogorov_smirnov < 0.2
    assert far.population_stability > 0.05


def test_what_is_exact_is_exact():
    monitor = DriftMonitor()
    x = np.array([[1, np.nan, np.inf, -np.inf, -3, 5]], np.float32)
    monitor.observe(served(x), 5)
    monitor.observe(served(x), 7)
    (record,) = monitor.flush()
    given, answered = record.tensors
    assert (given.values, given.nan, given.infinite) == (12, 2, 4)
    assert (given.least, given.most, given.mean) == (-3, 5, 1)
    assert (given.rank_error, given.share_error) == (0, 0)
    assert (record.inferences, record.from_ns, record.to_ns, record.left_out) == (2, 5, 7, 0)
    assert record.library.startswith("datasketches 5.")
    values, weights = given.weighted()
    assert values.tolist() == [-3, -3, 1, 1, 5, 5]
    assert weights.tolist() == [1] * 6
    assert (answered.nan, answered.least, answered.mean) == (2, None, None)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64"])
def test_every_dtype_is_followed(dtype):
    sketch = sketch_of([np.array([0, 1, 1, 0]).astype(dtype)], "x")
    assert (sketch.dtype, sketch.least, sketch.most, sketch.mean) == (dtype, 0, 1, 0.5)
    assert sketch.weighted()[0].tolist() == [0, 0, 1, 1]


def test_sums_that_overflow_and_values_beyond_float32_harm_nothing():
    sketch = sketch_of([np.array([1e308, 1e308, 2.0])], "x")
    assert (sketch.infinite, sketch.most, sketch.mean) == (0, 1e308, 1e308)
    assert sketch.weighted()[0].tolist() == [2]
    assert decode(encode(sketch), type(sketch)) == sketch


def test_each_inference_has_the_same_weight_however_large_it_is():
    monitor = DriftMonitor()
    for number in range(10):
        monitor.observe(served(np.zeros((1, 100_000), np.float32)), number)
        monitor.observe(served(np.ones((1, 1000), np.float32)), number)
    (record,) = monitor.flush()
    whole = merge(record.tensors[:1])
    assert whole.count == 20 * SAMPLE
    assert whole.share_up_to([0.5]) == pytest.approx(0.5, abs=whole.rank_error)
    assert record.tensors[0].mean == pytest.approx(1000 / 101_000)


def test_merged_parts_are_the_whole_within_the_sketches_error():
    random = np.random.default_rng(0)
    parts = [random.gamma(1 + number % 5, size=5000).astype(np.float32) for number in range(20)]
    merged = merge(sketch_of([part], "x") for part in parts)
    values = np.sort(np.concatenate(parts))
    assert merged.count == len(values)
    exact = np.arange(1, len(values) + 1) / len(values)
    assert 0 < merged.rank_error < 0.02
    assert np.abs(merged.share_up_to(values) - exact).max() < merged.rank_error
    single = merge([sketch_of(parts, "x")])
    assert kolmogorov_smirnov(merged, single) == 0


def test_a_small_shift_is_far_where_the_sketches_are_exact():
    zeros, ones = (merge([sketch_of([np.full(100, value, np.float32)], "x")]) for value in (0, 1))
    assert kolmogorov_smirnov(zeros, ones) == 1
    assert population_stability(zeros, ones) > 5
    assert population_stability(ones, zeros) > 5
    assert population_stability(zeros, zeros) == 0


def test_more_zeros_behind_a_relu_are_seen():
    random = np.random.default_rng(0)
    values = np.maximum(random.standard_normal(5000), 0).astype(np.float32)
    fewer = np.maximum(random.standard_normal(5000) - 1, 0).astype(np.float32)
    before, after = merge([sketch_of([values], "x")]), merge([sketch_of([fewer], "x")])
    assert population_stability(before, after) > 0.15
    assert population_stability(before, merge([sketch_of([np.sort(values)[::-1]], "x")])) < 0.01


def test_a_record_is_due_with_its_time_its_count_or_another_package():
    x = np.zeros((1, 4), np.float32)
    monitor = DriftMonitor(10.0, inferences_max=3)
    assert monitor.observe(served(x), 0) == []
    assert monitor.due(9 * SECOND, "a" * 64) == []
    assert [record.inferences for record in monitor.due(10 * SECOND, "a" * 64)] == [1]
    assert [len(monitor.observe(served(x), number)) for number in range(3)] == [0, 0, 1]
    monitor.observe(served(x), 0)
    assert [record.package_sha256[0] for record in monitor.observe(served(x, sha256="b" * 64), 1)] == ["a"]
    assert [record.package_sha256[0] for record in monitor.due(2, "c" * 64)] == ["b"]
    assert monitor.flush() == []


def test_a_clock_set_back_ends_the_stretch():
    x = np.zeros((1, 4), np.float32)
    monitor = DriftMonitor(10.0)
    monitor.observe(served(x), 100 * SECOND)
    (record,) = monitor.observe(served(x), 50 * SECOND)
    assert record.from_ns <= record.to_ns


def test_variants_have_records_of_their_own():
    monitor = DriftMonitor()
    for variant in ("fp32", "int8", "fp32"):
        monitor.observe(served(np.zeros((1, 4), np.float32), variant=variant), 0)
    assert sorted((record.variant, record.inferences) for record in monitor.flush()) == [("fp32", 2), ("int8", 1)]


def test_of_many_tensors_the_first_are_followed():
    monitor = DriftMonitor()
    monitor.observe(served(np.zeros((1, 4), np.float32), count=TENSORS_OF_A_ROLE + 3), 0)
    (record,) = monitor.flush()
    assert (len(record.tensors), record.left_out) == (TENSORS_OF_A_ROLE + 1, 3)


def test_without_the_library_it_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, drift.LIBRARY, None)
    monitor = DriftMonitor()
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            assert monitor.observe(served(np.zeros((1, 4), np.float32)), number) == []
    assert [record.getMessage() for record in caplog.records if "ferryman[drift]" in record.getMessage()]
    assert len(caplog.records) == 1
    assert monitor.flush() == []


def test_a_period_of_nothing_follows_nothing_and_one_out_of_range_is_refused():
    monitor = DriftMonitor(0)
    monitor.observe(served(np.zeros((1, 4), np.float32)), 0)
    assert monitor.flush() == []
    for period_s in (0.5, 1e6, float("nan"), -1.0):
        with pytest.raises(CallerError, match="0 for never"):
            DriftMonitor(period_s)


def test_nothing_in_common_is_an_error():
    record = stretch(0, 0.0, 2)
    with pytest.raises(CallerError, match="in common"):
        distances([], [record])
