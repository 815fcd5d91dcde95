from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ferryman.converter import verify as verify_module
from ferryman.converter.api import convert  # imports the toolchains without their warnings
from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.quiet import quiet
from ferryman.converter.source import load_sources, make_source
from ferryman.converter.verify import DEVICE_PYTHON, References, interpreters, make_references, verify
from ferryman.runtime.contracts.errors import CallerError, ModelError, ParityError
from tests.support.interpreters import DEVICE_PYTHON as REAL_DEVICE_PYTHON
from tests.support.packages import add_model
from tests.unit.converter.nets import Function, captured

X = np.arange(4, dtype=np.float32).reshape(1, 4)
PTE = Path(__file__).parents[2] / "golden" / "pte" / "linear.pte"


def references(*outputs, inputs=X):
    return References(inputs=((inputs,),) * len(outputs), outputs=tuple((output,) for output in outputs))


@pytest.fixture(autouse=True)
def only_here(monkeypatch, tmp_path):
    """Verify in this environment alone; other tests name the device's."""
    monkeypatch.delenv(DEVICE_PYTHON, raising=False)
    monkeypatch.setattr(verify_module, "_BESIDE", tmp_path / "nothing" / "python")


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
        ("not a program", 0o644, "which is no Python with ferryman: .*Permission denied"),
        ("#!/bin/sh\n", 0o755, r"which is no Python with ferryman: it said nothing \(ended with exit code 0\)"),
        ("#!/bin/sh\nkill -SEGV $$\n", 0o755, "which is no Python with ferryman: it said nothing .died of SIGSEGV"),
        ("#!/bin/sh\necho no ferryman here >&2; exit 3\n", 0o755, r"no ferryman here \(ended with exit code 3\)"),
        ("#!/bin/sh\nhead -c 100 /dev/zero\ncat >/dev/null\n", 0o755, "it said nothing"),
        ("#!/bin/sh\nsleep 9\n", 0o755, "it did not answer within 1 s"),
        ("#!/bin/sh\necho ferryman ai-edge-litert\n", 0o755, "which has no tflite-runtime"),
    ],
)
def test_a_device_python_that_is_none_is_named_before_anything_is_run_on_it(monkeypatch, tmp_path, script, mode, match):
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(mode)
    monkeypatch.setenv(DEVICE_PYTHON, str(python))
    monkeypatch.setattr(verify_module, "_PROBE_S", 1.0)
    with pytest.raises(CallerError, match=f"{DEVICE_PYTHON} names {python}, .*{match}.*; pip install 'ferryman"):
        interpreters("tflite")
    assert [place.name for place in interpreters("tflite", ["ai-edge-litert"])] == ["ai-edge-litert"]
    assert [place.name for place in interpreters("executorch")] == ["executorch"]


def test_the_device_environment_is_looked_for_beside_this_one_and_not_in_the_current_directory(monkeypatch, tmp_path):
    here = tmp_path / ".venv-device" / "bin" / "python"
    here.parent.mkdir(parents=True)
    here.write_text("#!/bin/sh\ntouch ran\n")
    here.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert [place.name for place in interpreters("tflite")] == ["ai-edge-litert"]
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(verify_module, "_BESIDE", REAL_DEVICE_PYTHON)
    assert [(place.name, place.python) for place in interpreters("tflite")][1:] == [
        ("tflite-runtime", REAL_DEVICE_PYTHON)
    ]


def test_without_an_interpreter_nothing_is_proven(adds_one, monkeypatch):
    monkeypatch.setattr(verify_module, "installed", lambda _: {})
    with pytest.raises(
        ParityError, match="tflite artifacts cannot be proven here, so none is packaged: install one of ai-edge-litert"
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


def test_integers_must_be_equal_whatever_the_bar(tmp_path, adds_one):
    wrong = references(X + 1)
    wrong = References(inputs=wrong.inputs, outputs=(((X + 1).astype(np.int64),),))
    with pytest.raises(ParityError, match="output 0: expected dtype int64, found float32"):
        verify(adds_one, "v", "tflite", wrong, 5.0)


@pytest.mark.slow
def test_integers_that_an_artifact_divides_as_floats_are_caught(tmp_path):
    n = torch.arange(0, 1 << 30, (1 << 30) // 50) + 6
    with pytest.raises(ParityError, match=r"output 0: [0-9]+ of [0-9]+ elements differ"):
        convert(Function(lambda x: torch.div(x, 7, rounding_mode="trunc")), n, to=["tflite"], output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_how_many_input_sets_are_distinct_is_told(adds_one):
    (proof,) = verify(adds_one, "v", "tflite", references(X + 1, X + 1, X + 1), 60.0)[1]
    assert (proof.vectors, proof.distinct) == (3, 1)
    found = make_references(captured(lambda x: x + 1, torch.from_numpy(X)))
    assert found.distinct() == 5
    assert make_references(captured(lambda x: x + 1, torch.zeros(0, 4))).distinct() == 1


def test_of_a_rounded_artifact_only_those_sets_are_counted_that_it_is_held_against_eager_with(adds_one):
    inputs = tuple((X + n,) for n in range(5))
    outputs = tuple((one + 1,) for (one,) in inputs)
    (proof,) = verify(adds_one, "v", "tflite", References(inputs, outputs, outputs, drawn=2), 60.0)[1]
    assert (proof.vectors, proof.distinct) == (3, 3)


# What eager must be.


def test_a_model_that_fails_on_random_inputs_says_so_and_keeps_its_buffers():
    class Sums(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 2)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, a, b):
            self.calls += 1
            return self.table(a + b) * self.calls

    module = Sums().eval()
    a, b = torch.tensor([0, 4] * 20), torch.tensor([4, 0] * 20)
    with pytest.raises(ModelError, match=r"Sums fails on random inputs .*: IndexError: .*: give an example"):
        make_references(capture(make_source(module, (a, b))))
    assert float(module.calls) == 0
    module.table = torch.nn.Embedding(3, 2).eval()
    with pytest.raises(ModelError, match="Sums fails on the example inputs: IndexError: index out of range"):
        make_references(replace(capture(make_source(module, (a * 0, b * 0))), example=(a, b)))


def test_a_model_with_state_is_the_same_twice_and_given_back_as_it_came():
    class Accumulates(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(1, 4))

        def forward(self, x):
            self.total += x
            return self.total

    module = Accumulates().eval()
    found = make_references(capture(make_source(module, torch.from_numpy(X))))
    np.testing.assert_allclose(found.outputs[1][0], found.inputs[0][0] + found.inputs[1][0])
    assert float(module.total.sum()) == 0


@pytest.mark.parametrize(
    "function", [lambda x: x + torch.rand(1), lambda x: torch.nn.functional.dropout(x + 1, 0.5, training=True)]
)
def test_a_model_that_draws_random_numbers_is_at_fault_itself(function):
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"net does not answer the same twice to the same inputs .*random numbers"):
        make_references(captured(function, torch.arange(100.0)))


@pytest.mark.filterwarnings("ignore")
def test_a_saved_program_in_training_mode_is_at_fault_itself(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.Dropout())
    torch.export.save(torch.export.export(net, (torch.ones(1, 4),)), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="exported in training mode"):
        make_references(capture(load_sources(str(tmp_path / "net.pt2"))[None]))


def test_a_model_that_answers_nothing_finite_proves_nothing():
    both = captured(lambda x: (x + 1, x / 0 - x / 0), torch.from_numpy(X))
    with pytest.raises(ModelError, match="net: output output_1 holds no finite number for any of 5 input sets"):
        make_references(both)
    assert make_references(captured(lambda x: (x + 1, x[:, :0]), torch.from_numpy(X))).distinct() == 5


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


def test_sizes_that_calibration_lacks_are_proven_too():
    batch = torch.export.Dim("batch", min=1, max=8)
    x = torch.randn(2, 4)
    made = capture(make_source(torch.nn.Linear(4, 4).eval(), (x,), dynamic_shapes={"input": {0: batch}}))
    found = make_references(made, [(x + 1,), (x + 2,)])
    assert [len(one) for (one,) in found.inputs][:3] == [2, 2, 2]
    assert {len(one) for (one,) in found.inputs[3:]} >= {1, 8}
    assert found.drawn == len(found.inputs) - 3
    assert len(found.golden()) == 1  # what came for calibration stays here
    assert len(make_references(made).golden()) == 2
