"""Copies of artifacts that show what is inside; foreign artifacts are shown or refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.profiler.layers import pte, tflite
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.session import open_session
from tests.support.golden import PTE as MODELS
from tests.support.golden import SHARED
from tests.support.packages import ADD_ONE


def shown(tmp_path, module, data, runtime, inputs, entry=None):
    exposed = module.expose(data, entry, {})
    path, plain = tmp_path / "copy", tmp_path / "plain"
    path.write_bytes(exposed.front + data + exposed.tail)
    plain.write_bytes(data)
    with open_session(path, runtime, entry=entry) as copied, open_session(plain, runtime, entry=entry) as session:
        outputs, answers = copied.run(inputs), session.run(inputs)
    assert set(range(len(answers), len(outputs))) <= set(exposed.outputs)
    for found, answer in zip(outputs, answers, strict=False):
        assert found.tobytes() == answer.tobytes()
    return exposed, [outputs[place] for place in exposed.outputs]


def inputs_of(path, runtime):
    random = np.random.default_rng(0)
    with open_session(path, runtime) as session:
        return [
            random.standard_normal([d if isinstance(d, int) else d.max for d in spec.shape]).astype(spec.dtype)
            for spec in session.signature.inputs
        ]


def test_a_tflite_file_answers_the_same_and_shows_its_operator(tmp_path):
    x = np.ones((1, 4), np.float32)
    exposed, (added,) = shown(tmp_path, tflite, ADD_ONE, "tflite", [x])
    assert [value.name for value in exposed.values] == ["0 add"]
    assert added.tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("name", sorted(path.stem for path in MODELS.glob("*.pte")))
def test_every_golden_pte_answers_the_same_or_says_why_not(tmp_path, name):
    path = MODELS / f"{name}.pte"
    try:
        inputs = inputs_of(path, "executorch")
    except Exception as error:  # noqa: BLE001  # some are there to be refused
        pytest.skip(f"sessions refuse it: {error}")
    try:
        exposed, outputs = shown(tmp_path, pte, path.read_bytes(), "executorch", inputs)
    except ValueError as error:
        assert str(error) == "it takes branches"  # noqa: PT017  # what is refused is not to grow
        return
    assert exposed.values or exposed.left_out
    assert all(output.size for output in outputs)


@pytest.mark.parametrize("entry", ["small", "large"])
@pytest.mark.parametrize(("module", "runtime"), [(pte, "executorch"), (tflite, "tflite")])
def test_an_entry_of_several_answers_the_same(tmp_path, module, runtime, entry):
    data = (SHARED / f"two.{'pte' if runtime == 'executorch' else 'tflite'}").read_bytes()
    exposed, outputs = shown(tmp_path, module, data, runtime, [np.load(SHARED / "two.npz")["x"]], entry)
    assert "linear" in "".join(value.name for value in exposed.values)
    assert all(np.isfinite(output).all() for output in outputs)


def test_an_entry_that_is_not_there_is_said():
    with pytest.raises(CallerError, match="there are: forward"):
        pte.expose((MODELS / "linear.pte").read_bytes(), "backward", {})
    with pytest.raises(CallerError, match="there are: "):
        tflite.expose(ADD_ONE, "backward", {})


REFUSED = (ValueError, LookupError, struct.error, CallerError)
"""What `layer_statistics` makes Unavailable of, or lets go on."""


@settings(max_examples=200)
@given(
    st.sampled_from([(tflite, ADD_ONE), *((pte, (MODELS / f"{name}.pte").read_bytes()) for name in ("linear",))]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    st.integers(0, 1 << 16),
)
def test_damaged_artifacts_are_refused_or_shown(artifact, changes, length):
    module, data = artifact
    altered = bytearray(data)
    for position, value in changes:
        altered[position % len(altered)] = value
    for given_ in (bytes(altered), bytes(altered[: length % len(altered)])):
        try:
            module.expose(given_, None, {})
        except REFUSED:
            continue
