from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime import weights
from ferryman.runtime.weights import UNKNOWN, Weights, checksum, look_through
from tests.support.golden import PTE, SHARED


def runtime_of(path):
    return "executorch" if path.suffix == ".pte" else "tflite"


def look(path):
    return look_through(path, runtime_of(path))


@pytest.mark.parametrize("name", ["two.pte", "two.tflite"])
def test_weights_that_layers_and_entries_share_may_be_packed_once(name):
    assert look(SHARED / name) == Weights(keepable=True, shared=True, dynamic=False)


@pytest.mark.parametrize("name", ["scaled.pte", "static.pte", "static.tflite"])
def test_weights_that_are_packed_with_numbers_of_their_layers_are_not(name):
    assert look(SHARED / name) == Weights(keepable=False, shared=True, dynamic=False)


def test_of_layers_with_weights_of_their_own_nothing_is_shared():
    assert look(PTE / "linear.pte") == Weights(keepable=True, shared=False, dynamic=False)
    assert look(PTE / "branch.pte") == UNKNOWN  # nothing is packed


def test_what_is_no_artifact_is_unknown(tmp_path):
    path = tmp_path / "x.tflite"
    for data in (b"", b"TFL3", bytes(1000), os.urandom(1000)):
        path.write_bytes(data)
        assert look_through(path, "tflite") == look_through(path, "executorch") == UNKNOWN
    assert look_through(tmp_path / "nowhere", "tflite") == UNKNOWN
    assert look_through(SHARED / "two.pte", "tflite") == UNKNOWN


@pytest.mark.parametrize("name", ["two.pte", "scaled.pte", "static.pte", "two.tflite", "static.tflite"])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_artifacts_do_no_harm(name, data):
    """In this process: reading out of bounds would end it, or hang."""
    path = SHARED / name
    whole = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(whole)))
    held = (ctypes.c_ubyte * length).from_buffer_copy(whole[:length])
    library = weights._library()
    kind = "pte" if runtime_of(path) == "executorch" else "tflite"
    assert 0 <= getattr(library, f"ferryman_weights_{kind}")(held, length) < 32


def sum_of(data):
    held = np.frombuffer(data, np.uint8)
    return weights._library().ferryman_weights_checksum(held.ctypes.data, held.size)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_checksum_changes_with_any_word_and_with_the_length(data, draws):
    at = draws.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draws.draw(st.integers(1, 255))
    assert len({sum_of(data), sum_of(bytes(changed)), sum_of(data + b"\0")}) == 3
    assert sum_of(data) == sum_of(bytes(data))


def test_a_checksum_is_that_of_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(os.urandom(100_001))
    with path.open("rb") as file:
        assert checksum(file.fileno()) == sum_of(path.read_bytes())


def test_swapped_words_change_a_checksum():
    words = np.arange(64, dtype=np.uint64)
    swapped = words.copy()
    swapped[[3, 11]] = swapped[[11, 3]]  # of the same lane
    crossed = words.copy()
    crossed[[3, 4]] = crossed[[4, 3]]
    assert len({sum_of(one.tobytes()) for one in (words, swapped, crossed)}) == 3


def test_without_the_library_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_library", lambda: None)
    assert look(SHARED / "two.pte") == UNKNOWN
    path = tmp_path / "x"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert checksum(file.fileno()) is None
