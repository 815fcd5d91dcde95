"""Input sets from files: what is taken, and what is refused with a word that helps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.profiler.layers import read_inputs
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import DynamicDim, Signature, TensorSpec

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 4))
IDS = TensorSpec(name="ids", dtype="int32", shape=(2,))
ONE, TWO = Signature(inputs=(IMAGE,), outputs=()), Signature(inputs=(IMAGE, IDS), outputs=())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "inputs.npz"


def saved(path, *arrays, **named):
    with path.open("wb") as file:
        np.savez(file, *arrays, **named)
    return path


@pytest.mark.parametrize("shape", [(5, 1, 3, 4), (5, 3, 4)])
def test_sets_lie_along_a_first_axis_or_the_inputs_own(tmp_path, shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    sets = read_inputs(tmp_path / "x.npy", ONE)
    assert [one[0].shape for one in sets] == [(1, 3, 4)] * 5
    assert (np.stack([one[0] for one in sets]).reshape(shape) == array).all()


def test_one_set_is_one_set(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(2, np.int32))
    assert len(read_inputs(tmp_path / "x.npy", Signature(inputs=(IDS,), outputs=()))) == 1


@pytest.mark.parametrize("names", [("image", "ids"), ("arr_0", "arr_1"), ("first", "second")])
def test_several_inputs_go_by_name_or_in_order(path, names):
    arrays = (np.ones((4, 3, 4), np.float32), np.arange(8).reshape(4, 2))
    sets = read_inputs(saved(path, **dict(zip(names, arrays, strict=True))), TWO)
    assert [one[1].tolist() for one in sets] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert sets[0][1].dtype == np.int32


def test_names_win_over_order(path):
    sets = read_inputs(saved(path, ids=np.arange(2), image=np.ones((1, 3, 4), np.float32)), TWO)
    assert [array.shape for array in sets[0]] == [(1, 3, 4), (2,)]


def test_dynamic_dimensions_fit(tmp_path):
    text = TensorSpec(name="x", dtype="float32", shape=(1, DynamicDim(symbol="n", min=1, max=8)))
    np.save(tmp_path / "x.npy", np.zeros((3, 6), np.float32))
    assert len(read_inputs(tmp_path / "x.npy", Signature(inputs=(text,), outputs=()))) == 3


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": np.ones((2, 3, 4), np.float32)}, "expected 2 arrays"),
        ({"image": np.ones((2, 3, 4), np.float32), "ids": np.ones((3, 2), int)}, "as many sets"),
        ({"image": np.ones((0, 3, 4), np.float32), "ids": np.ones((0, 2), int)}, "1 to 100,000"),
        ({"image": np.ones((2, 3, 5), np.float32), "ids": np.ones((2, 2), int)}, "found shape"),
        ({"image": np.ones((2, 3, 4), np.uint8), "ids": np.ones((2, 2), int)}, "found dtype uint8"),
        ({"image": np.ones(3, np.float32), "ids": np.ones((2, 2), int)}, "several of them"),
        ({"image": np.array(["a"]), "ids": np.ones((2, 2), int)}, "expected"),
    ],
)
def test_what_does_not_fit_is_said(path, arrays, says):
    with pytest.raises(CallerError, match=says):
        read_inputs(saved(path, **arrays), TWO)


def test_pickles_are_not_opened(path):
    with pytest.raises(CallerError, match="as numpy saves them"):
        read_inputs(saved(path, np.array([object()])), ONE)


def test_no_file_is_said(tmp_path):
    with pytest.raises(CallerError, match="no such file"):
        read_inputs(tmp_path / "none.npy", ONE)


@settings(max_examples=50)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x93NUMPY", b"PK\x03\x04"]))
def test_garbage_is_an_error(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp("garbage") / "x.npy"
    path.write_bytes(head + data)
    with pytest.raises(CallerError):
        read_inputs(path, ONE)
