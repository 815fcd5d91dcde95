from __future__ import annotations

import numpy as np
import pytest

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import Signature, TensorSpec
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.session import exactly, fit, open_session
from tests.support.packages import add_model


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(add_model(1.0))
    return path


def takes(dtype, *shape):
    return Signature(inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),), outputs=())


@pytest.mark.parametrize("kind", [open_session, IsolatedSession])
def test_text_will_do_for_a_path_and_lists_for_arrays(artifact, kind):
    with kind(str(artifact), "tflite") as session:
        (found,) = session.run([[[1, 2.5, 3, 4]]])
    np.testing.assert_array_equal(found, np.array([[2, 3.5, 4, 5]], np.float32), strict=True)


@pytest.mark.parametrize("kind", [open_session, IsolatedSession])
@pytest.mark.parametrize("runtime", ["onnx", None, ["tflite"]])
def test_a_runtime_that_is_none_is_the_callers_fault(artifact, kind, runtime):
    with pytest.raises(CallerError, match=r"there is no runtime .*; there are: executorch, tflite"):
        kind(artifact, runtime)


@pytest.mark.parametrize(
    ("given", "spec", "expected"),
    [
        ([1, 2], takes("float32", 2), np.array([1, 2], np.float32)),
        (1.5, takes("float16"), np.array(1.5, np.float16)),
        ([1, 2], takes("int8", 2), np.array([1, 2], np.int8)),
        ((True, False), takes("bool", 2), np.array([True, False])),
        ([], takes("float32", 0), np.zeros(0, np.float32)),
    ],
)
def test_numbers_without_a_dtype_take_the_inputs(given, spec, expected):
    np.testing.assert_array_equal(fit([given], spec)[0], expected, strict=True)


@pytest.mark.parametrize(
    ("given", "spec", "match"),
    [
        ([1.5], takes("int32", 1), "found dtype float64"),
        ([300], takes("int8", 1), "a value lies outside -128..127"),
        ([1], takes("bool", 1), "found dtype int64"),
        ([[1], [2, 3]], takes("float32", 2), "input x: expected .*, found no array"),
        ("text", takes("float32", 1), "input x: expected"),
        (None, takes("float32", 1), "input x: expected"),
        (np.ones(1), takes("float32", 1), "found dtype float64"),
    ],
)
def test_what_does_not_fit_is_the_callers_fault(given, spec, match):
    with pytest.raises(CallerError, match=match):
        fit([given], spec)


PLAIN = np.arange(6, dtype=np.float32).reshape(2, 3)
WANTED = [(PLAIN.dtype, PLAIN.shape)]


@pytest.mark.parametrize(
    "given",
    [
        PLAIN.tolist(),
        PLAIN.astype(np.float64),
        PLAIN.astype(">f4"),
        PLAIN.reshape(3, 2),
        np.asfortranarray(PLAIN),
        np.repeat(PLAIN, 2, axis=1)[:, ::2],
        np.ma.masked_array(PLAIN),
        PLAIN[0, 0],
    ],
)
def test_only_what_fit_would_give_back_as_it_is_goes_by_it(given):
    assert not exactly([given], WANTED)


def test_plain_arrays_go_by_fit():
    assert exactly([PLAIN], WANTED)
    assert exactly([], [])
    assert not exactly([PLAIN, PLAIN], WANTED)
    assert not exactly([], WANTED)


@pytest.mark.parametrize("given", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=1)[:, ::2], np.ndarray.tolist])
def test_other_layouts_and_lists_answer_alike(artifact, given):
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    with open_session(artifact, "tflite") as session:
        np.testing.assert_array_equal(session.run([given(x)])[0], session.run([x])[0], strict=True)


def test_inputs_that_are_no_sequence_are_the_callers_fault():
    with pytest.raises(CallerError, match="expected 2 inputs"):
        fit(np.ones((1, 4), np.float32), Signature(inputs=takes("int8", 1).inputs * 2, outputs=()))


@pytest.mark.parametrize("kind", [open_session, IsolatedSession])
def test_a_session_that_is_closed_says_so(artifact, kind):
    session = kind(artifact, "tflite")
    session.close()
    session.close()
    with pytest.raises(CallerError, match="the session is closed; open it again"):
        session.run([np.zeros((1, 4), np.float32)])
