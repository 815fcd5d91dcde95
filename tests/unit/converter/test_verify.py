from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ferryman.converter import api  # noqa: F401  # imports the toolchains without their warnings
from ferryman.converter import verify as verify_module
from ferryman.converter.backends import BACKENDS
from ferryman.converter.quiet import quiet
from ferryman.converter.verify import DEVICE_PYTHON, References, interpreters, make_references, verify
from ferryman.runtime.contracts.errors import CallerError, ParityError
from tests.support.interpreters import DEVICE_PYTHON as REAL_DEVICE_PYTHON
from tests.support.packages import add_model
from tests.unit.converter.nets import captured

X = np.arange(4, dtype=np.float32).reshape(1, 4)
PTE = Path(__file__).parents[2] / "golden" / "pte" / "linear.pte"


def references(*outputs, inputs=X):
    return References(inputs=((inputs,),) * len(outputs), outputs=tuple((output,) for output in outputs))


@pytest.fixture(autouse=True)
def only_here(monkeypatch, tmp_path):
    """Verify in this environment alone; other tests name the device's."""
    monkeypatch.delenv(DEVICE_PYTHON, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def adds_one(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(add_model(1.0))
    return path


def test_an_artifact_that_computes_the_same_is_proven(adds_one):
    signature, (proof,) = verify(adds_one, "v", "tflite", references(X + 1, X + 1), 60.0)
    assert [spec.name for spec in signature.inputs] == ["args_0"]
    assert (proof.interpreter, proof.vectors, proof.sqnr_db, proof.max_abs_error) == ("ai-edge-litert", 2, 200.0, 0.0)
    assert proof.top1_agreement == 1.0


def test_a_wrong_artifact_is_named_with_its_interpreter_and_its_worst_output(adds_one):
    with pytest.raises(ParityError) as caught:
        verify(adds_one, "tflite-fp32", "tflite", references(X + 1, X + 1.5, X + 1), 60.0)
    message = str(caught.value)
    assert "tflite-fp32 on ai-edge-litert 2." in message
    assert "output 0 reaches 16.1 dB of 60 dB (largest error 0.5, input set 1 of 3)" in message


def test_the_bar_decides(adds_one):
    nearly = references(X + np.float32(1.001))
    assert verify(adds_one, "v", "tflite", nearly, 60.0)[1][0].sqnr_db > 60
    with pytest.raises(ParityError, match="of 80 dB"):
        verify(adds_one, "v", "tflite", nearly, 80.0)


def test_nan_where_eager_has_numbers_is_caught(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(add_model(float("nan")))
    with pytest.raises(ParityError, match=r"reaches -200\.0 dB"):
        verify(path, "v", "tflite", references(X + 1), -100.0)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_numbers_where_eager_has_none_are_caught_and_the_same_oddity_passes(adds_one, odd):
    inputs = X.copy()
    inputs[0, 2] = odd
    assert verify(adds_one, "v", "tflite", references(inputs + 1, inputs=inputs), 60.0)
    with pytest.raises(ParityError, match="-200"):
        verify(adds_one, "v", "tflite", references(inputs + 1), 60.0)


@pytest.mark.parametrize(
    ("outputs", "match"), [((X[0] + 1,), r"expected shape \(4,\), found \(1, 4\)"), ((), "expected 0 outputs, found 1")]
)
def test_outputs_of_another_shape_or_count_are_caught(adds_one, outputs, match):
    with pytest.raises(ParityError, match=match):
        verify(adds_one, "v", "tflite", References(inputs=((X,),), outputs=(outputs,)), 60.0)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:100], lambda d: d[:4] + b"XXXX" + d[8:], lambda d: b"", lambda d: d[::-1]]
)
def test_a_damaged_tflite_file_is_caught(adds_one, damage):
    adds_one.write_bytes(damage(adds_one.read_bytes()))
    with pytest.raises(ParityError, match="v on ai-edge-litert: "):
        verify(adds_one, "v", "tflite", references(X + 1), 60.0)


def test_a_pte_file_that_kills_its_interpreter_is_caught(tmp_path):
    data = bytearray(PTE.read_bytes())
    data[2102] = 0xFF  # found by trying every byte; look anew after `python -m tests.support.pte`
    path = tmp_path / "model.pte"
    path.write_bytes(data)
    with pytest.raises(ParityError, match=r"v on executorch: the process that ran .* died of SIG"):
        verify(path, "v", "executorch", references(X), 60.0)


def test_a_truncated_pte_file_is_caught(tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(PTE.read_bytes()[:1000])
    with pytest.raises(ParityError, match="v on executorch: "):
        verify(path, "v", "executorch", references(X), 60.0)


def test_a_device_environment_adds_its_interpreter(adds_one, monkeypatch):
    monkeypatch.setenv(DEVICE_PYTHON, str(REAL_DEVICE_PYTHON))
    proofs = verify(adds_one, "v", "tflite", references(X + 1), 60.0)[1]
    assert [proof.interpreter for proof in proofs] == ["ai-edge-litert", "tflite-runtime"]


def test_a_device_environment_that_is_none_is_the_callers_fault(monkeypatch):
    monkeypatch.setenv(DEVICE_PYTHON, "/nowhere/python")
    with pytest.raises(CallerError, match="FERRYMAN_DEVICE_PYTHON names /nowhere/python"):
        interpreters("tflite")


@pytest.mark.parametrize(
    ("script", "mode", "match"),
    [
        ("not a program", 0o644, "cannot be started: Permission denied"),
        ("#!/bin/sh\nkill -SEGV $$\n", 0o755, "died of SIGSEGV"),
        ("#!/bin/sh\necho no ferryman here >&2; exit 3\n", 0o755, "exit code 3; its last words: no ferryman here"),
        ("#!/bin/sh\nhead -c 100 /dev/zero\ncat >/dev/null\n", 0o755, "answered no record"),
    ],
)
def test_a_device_python_that_does_not_work_is_no_proof(adds_one, monkeypatch, tmp_path, script, mode, match):
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(mode)
    monkeypatch.setenv(DEVICE_PYTHON, str(python))
    with pytest.raises(ParityError, match=f"v on tflite-runtime: (.|\n)*{match}"):
        verify(adds_one, "v", "tflite", references(X + 1), 60.0)


def test_without_an_interpreter_nothing_is_proven(adds_one, monkeypatch):
    monkeypatch.setattr(verify_module, "installed", lambda _: {})
    with pytest.raises(
        ParityError, match="cannot be proven here, so it is not packaged: install one of ai-edge-litert"
    ):
        verify(adds_one, "v", "tflite", references(X + 1), 60.0)


def test_this_environment_comes_first():
    assert [place.python for place in interpreters("executorch")] == [Path(sys.executable)]


def test_references_are_eagers_answers_and_golden_ones_the_first_two():
    found = make_references(captured(lambda x: (x * 2, x.sum()), torch.from_numpy(X)))
    assert len(found.inputs) == len(found.outputs) == 5
    for (x,), (doubled, total) in zip(found.inputs, found.outputs, strict=True):
        np.testing.assert_array_equal(doubled, x * 2)
        assert total.shape == ()
    golden = found.golden()
    assert [vector.inputs[0].to_array().tolist() for vector in golden] == [one[0].tolist() for one in found.inputs[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["executorch", "tflite"])
def test_an_artifact_of_another_model_is_caught_on_the_real_toolchains(tmp_path, runtime):
    x = torch.randn(1, 8)
    right = captured(lambda a: torch.softmax(a * 2, -1), x)
    wrong = captured(lambda a: torch.softmax(a * 2.1, -1), x)
    path = tmp_path / f"model{BACKENDS[runtime].suffix}"
    with quiet():
        path.write_bytes(BACKENDS[runtime].lower(right).data)
    assert verify(path, "v", runtime, make_references(right), 60.0)
    with pytest.raises(ParityError, match="computes something else than eager: output 0"):
        verify(path, "v", runtime, make_references(wrong), 60.0)
