"""Scattered changes, insertions and removals."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.pieces.edits import decode_edits, encode_edits

RNG = np.random.default_rng(0)
OLD = RNG.bytes(20_000)
# Ten bytes inserted, five removed, some changed in place.
NEW = bytearray(OLD[:5000] + RNG.bytes(10) + OLD[5000:9000] + OLD[9005:])
NEW[100] ^= 1
NEW[16_000:16_003] = b"abc"
NEW = bytes(NEW)
SPANS = [(0, 5000, 0), (5010, 4000, 10), (9010, 10_995, 5)]
STORED = encode_edits(NEW, OLD, SPANS)


def test_edits_come_back_small():
    assert decode_edits(STORED, OLD, len(NEW)) == NEW
    assert len(STORED) < 140


def test_positions_of_scattered_changes_cost_what_they_must():
    old = RNG.integers(0, 256, 1 << 20, np.uint8)
    new = old.copy()
    new[RNG.choice(len(new), 1000, replace=False)] ^= 1
    stored = encode_edits(new.tobytes(), old.tobytes(), [])
    assert decode_edits(stored, old.tobytes(), len(new)) == new.tobytes()
    assert len(stored) < 1000 * (np.log2(np.e * len(new) / 1000) + 1) / 8 * 1.2


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=120), st.binary(max_size=200), st.data())
def test_any_bytes_come_back(new, base, data):
    cuts = sorted(set(data.draw(st.lists(st.integers(0, len(new) - 1), max_size=4))))
    # Whatever the spans say, what comes out is exact.
    spans = [(at, 0, data.draw(st.integers(-300, 300))) for at in cuts]
    assert decode_edits(encode_edits(new, base, spans), base, len(new)) == new


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_anything_else_is_refused(stored):
    with pytest.raises((ValueError, zstd.ZstdError)):
        decode_edits(stored, OLD, 1000)


@settings(deadline=None)
@given(st.data())
def test_damage_is_refused_or_gives_as_many_bytes(data):
    stored = bytearray(STORED)
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ValueError, zstd.ZstdError):
        assert len(decode_edits(bytes(stored), OLD, len(NEW))) == len(NEW)


def test_memory_is_in_proportion_to_the_piece():
    old = RNG.integers(0, 256, 4 << 20, np.uint8)
    new = old.copy()
    new[::20] ^= 1
    stored = encode_edits(new.tobytes(), old.tobytes(), [])
    tracemalloc.start()
    decode_edits(stored, old.tobytes(), len(new))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * len(new)


def test_so_many_edits_that_memory_would_not_be_bounded_are_refused():
    new = np.zeros(8000, np.uint8)
    new[::8] = 1
    with pytest.raises(ValueError, match="edits of 8000 bytes"):
        encode_edits(new.tobytes(), bytes(8000), [])
