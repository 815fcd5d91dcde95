"""Sketches are read from foreign bytes: whatever they are, they are sound or a ValueError."""

from __future__ import annotations

import datasketches
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.drift import sketch_of
from ferryman.runtime.contracts.drift import SKETCH_MAX_BYTES, DriftSketch, read_sketch
from ferryman.runtime.contracts.record import decode, encode

SOUND = []
for count in (0, 1, 5, 200, 201, 1000, 100_000):
    made = datasketches.kll_floats_sketch(200)
    if count:
        made.update(np.random.default_rng(count).standard_normal(count).astype(np.float32))
    SOUND.append(made.serialize())


@pytest.mark.parametrize("k", [8, 21, 200, 400])
@pytest.mark.parametrize("count", [1, 2, 7, 200, 201, 3000, 70_000])
def test_what_is_read_is_what_the_library_says(k, count):
    sketch = datasketches.kll_floats_sketch(k)
    sketch.update(np.random.default_rng(0).standard_normal(count).astype(np.float32))
    for _ in range(2):
        values, weights = read_sketch(sketch.serialize())
        assert (len(values), int(weights.sum())) == (sketch.num_retained, sketch.n)
        shares = np.cumsum(weights) / sketch.n
        assert shares == pytest.approx([sketch.get_rank(float(value), True) for value in values])
        other = datasketches.kll_floats_sketch(2 * k)  # and once more, of two that were merged
        other.update(np.random.default_rng(1).standard_normal(5 * count).astype(np.float32))
        sketch.merge(other)


def looked_at(data):
    """Read as the collector does; what is accepted holds what it says."""
    try:
        values, weights = read_sketch(data)
    except ValueError:
        return
    assert len(values) == len(weights) <= len(data) // 4
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()
    assert (weights > 0).all()


@given(st.binary(max_size=200))
def test_garbage_is_an_error(data):
    looked_at(data)


@given(st.sampled_from(SOUND), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6), st.data())
def test_altered_and_truncated_sketches_are_errors_or_sound(data, changes, draw):
    altered = bytearray(data)
    for position, value in changes:
        altered[position % len(altered)] = value
    looked_at(bytes(altered[: draw.draw(st.integers(0, len(altered)))]))
    looked_at(bytes(altered))


@given(
    st.sampled_from([one for one in SOUND if len(one) > 32]), st.sampled_from([*range(8, 16), 18]), st.integers(0, 255)
)
def test_a_wrong_count_or_level_never_passes(data, position, value):
    """Such bytes make the library's own reader run for ever or die."""
    altered = bytearray(data)
    altered[position] = value
    if altered[position] != data[position]:
        with pytest.raises(ValueError, match="damaged"):
            read_sketch(bytes(altered))


def test_a_record_with_a_damaged_sketch_cannot_be_decoded():
    record = sketch_of([np.arange(1000, dtype=np.float32)], "x")
    text = encode(record)
    assert decode(text, DriftSketch) == record
    for part, other in (
        (b'"values":1000', b'"values":0'),
        (b'"least":0.0', b'"least":null'),
        (b'"sketch":"BQ', b'"sketch":"BA'),
    ):
        assert part in text
        with pytest.raises(ValueError, match=r"sketch|least|values"):
            decode(text.replace(part, other), DriftSketch)
    with pytest.raises(ValueError, match="sketch"):
        decode(text.replace(b'"sketch":"', b'"sketch":"' + b"AAAA" * SKETCH_MAX_BYTES), DriftSketch)
