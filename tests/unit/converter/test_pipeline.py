"""The stages with a backend that answers at once; the real ones are in tests/zoo and the end-to-end tests."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ferryman.converter import verify
from ferryman.converter.api import convert
from ferryman.converter.backends import BACKENDS
from ferryman.converter.backends.base import Lowered
from ferryman.converter.capture import capture
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError, ParityError
from ferryman.runtime.contracts.manifest import Lowering
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import open_package
from tests.support.packages import add_model
from tests.unit.converter.nets import Function

X = torch.arange(4.0).reshape(1, 4)


class AddsOne:
    """A backend whose artifact is y = x + 1, whatever the model."""

    runtime = "tflite"
    suffix = ".tflite"

    def lower(self, _captured):
        return Lowered(data=add_model(1.0), lowering=Lowering(delegated={}, fallback={"ADD": 1}, delegates=0))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setitem(BACKENDS, "tflite", AddsOne())
    monkeypatch.delenv(verify.DEVICE_PYTHON, raising=False)
    monkeypatch.setattr(verify, "_BESIDE", tmp_path / "nothing" / "python")
    monkeypatch.chdir(tmp_path)


def adds(value):
    return Function(lambda x: x + value)


def test_a_model_becomes_a_package_with_its_proof(tmp_path):
    stages = []
    made = convert(adds(1), X, to=["tflite"], output=tmp_path / "new" / "folder", name="net", progress=stages.append)
    assert made.path == tmp_path / "new" / "folder" / "net.ferry"
    assert list(made.seconds) == stages
    with open_package(made.path) as package:
        assert (package.sha256, package.manifest) == (made.sha256, made.manifest)
        golden = package.golden()
    (variant,) = made.manifest.variants
    assert (variant.name, variant.payload, variant.form) == ("tflite-fp32", "artifacts/fp32.tflite", "fp32")
    assert variant.requires.interpreters == {proof.interpreter: proof.version for proof in variant.verified}
    for vector in golden:
        np.testing.assert_array_equal(vector.outputs[0].to_array(), vector.inputs[0].to_array() + 1)


def test_an_artifact_that_computes_something_else_makes_no_package(tmp_path):
    with pytest.raises(ParityError, match=r"tflite-fp32 on ai-edge-litert 2\..* output 0 reaches"):
        convert(adds(2), X, to=["tflite"], output=tmp_path / "out")
    assert not list(tmp_path.rglob("*"))


def test_a_failed_conversion_leaves_the_older_package(tmp_path):
    made = convert(adds(1), X, to=["tflite"], name="net")
    before = made.path.read_bytes()
    with pytest.raises(ParityError):
        convert(adds(2), X, to=["tflite"], name="net")
    assert made.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.ferry"]


def test_a_runtime_given_twice_counts_once():
    assert len(convert(adds(1), X, to=["tflite", "tflite"]).manifest.variants) == 1


def test_the_name_is_the_classs_unless_given():
    assert convert(adds(1), X, to=["tflite"]).path.name == "Function.ferry"


def test_a_saved_program_may_be_given_as_a_path(tmp_path):
    torch.export.save(torch.export.export(adds(1), (X,), strict=False), tmp_path / "saved.pt2")
    made = convert(tmp_path / "saved.pt2", to=["tflite"])
    assert made.manifest.name == "saved"
    assert made.manifest.signature.inputs[0].describe() == "float32[1, 4] args_0"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"form": "ternary"}, "form 'ternary' is not known; there are: fp32"),
        ({"to": []}, "runtimes are one or more of executorch, tflite"),
        ({"to": ["onnx"]}, r"found \['onnx'\]"),
        ({"to": "tflite"}, "runtimes are one or more"),
        ({"sqnr_min_db": float("nan")}, "the bar must be 5 to 200 dB, found nan"),
        ({"sqnr_min_db": float("-inf")}, "the bar must be 5 to 200 dB"),
        ({"sqnr_min_db": 4.9}, "the bar must be 5 to 200 dB, found 4.9"),
        ({"name": "../up"}, r"package name '\.\./up'"),
        ({"name": "a/b"}, "package name 'a/b'"),
    ],
)
def test_arguments_out_of_range_are_the_callers_fault_before_any_work(tmp_path, arguments, match):
    with pytest.raises(CallerError, match=match):
        convert(adds(1), X, **{"to": ["tflite"], **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [3, None, torch.abs])
def test_what_is_no_model_is_the_callers_fault(model):
    with pytest.raises(CallerError, match=r"expected an nn\.Module"):
        convert(model, X, to=["tflite"])
    with pytest.raises(CallerError, match="found Function and NoneType"):
        convert(adds(1), to=["tflite"])


def test_a_source_brings_its_own_inputs():
    with pytest.raises(CallerError, match="brings its own inputs"):
        convert("package.module:factory", X, to=["tflite"])
    with pytest.raises(CallerError, match="brings its own inputs"):
        convert("package.module:factory", dynamic_shapes=({},), to=["tflite"])


def test_a_size_computed_from_another_is_refused_by_tflite_in_words(monkeypatch):
    monkeypatch.undo()
    half = torch.export.Dim("half", min=1, max=4)
    with pytest.raises(ModelError, match="computed from another, and litert-torch takes none such: fix the shapes"):
        convert(
            Function(lambda a, b: torch.cat([a, a]) + b),
            (torch.ones(2, 2), torch.ones(4, 2)),
            dynamic_shapes=(({0: half}, {0: 2 * half}),),
            to=["tflite"],
        )


@pytest.mark.slow
def test_what_to_do_about_a_dynamic_dimension_comes_before_what_the_toolchain_says(monkeypatch):
    monkeypatch.undo()
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2)).eval()
    batch = ({0: torch.export.Dim("batch", min=1, max=8)},)
    with pytest.raises(ModelError) as caught:
        convert(net, torch.ones(2, 1, 8, 8), dynamic_shapes=batch, to=["tflite"], name="net")
    said = str(caught.value)
    assert said.startswith(
        "litert-torch lowers only some graphs with dynamic dimensions, and not net: fix the shapes, or use --to exec"
    )
    assert len(said) < 400
    assert "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["executorch", "tflite"])
def test_one_tensor_given_for_two_inputs_reads_both(monkeypatch, tmp_path, runtime):
    monkeypatch.undo()
    made = convert(Function(lambda a, b: a + 2 * b), (X, X), to=[runtime], name="two", output=tmp_path)
    with open_package(made.path) as package:
        artifact = tmp_path / f"model{BACKENDS[runtime].suffix}"
        artifact.write_bytes(package.read(made.manifest.variants[0].payload))
    with IsolatedSession(artifact, runtime) as session:
        a, b = np.full((1, 4), 1, np.float32), np.full((1, 4), 10, np.float32)
        np.testing.assert_array_equal(session.run([a, b])[0], a + 2 * b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "match"),
    [
        ("executorch", "ExecuTorch cannot lower net: Operator .*bessel_j0.default is not in Core ATen opset"),
        ("tflite", "litert-torch cannot lower net: Lowering not found: aten.special_bessel_j0.default"),
    ],
)
def test_an_operator_no_runtime_has_is_named_in_few_lines(monkeypatch, runtime, match):
    monkeypatch.undo()
    with pytest.raises(ModelError, match=match) as caught:
        convert(Function(torch.special.bessel_j0), X, to=[runtime], name="net")
    assert len(str(caught.value).splitlines()) <= 4
    assert len(str(caught.value.__cause__)) > len(str(caught.value)) / 2


def test_only_the_interpreters_named_are_proven_and_required(tmp_path):
    made = convert(adds(1), X, to=["tflite"], output=tmp_path, name="net", interpreters=["ai-edge-litert"])
    assert set(made.manifest.variants[0].requires.interpreters) == {"ai-edge-litert"}


def test_an_interpreter_that_is_unknown_or_not_here_is_refused(tmp_path):
    with pytest.raises(CallerError, match="interpreter tensorrt is not known; there are: executorch"):
        convert(adds(1), X, to=["tflite"], output=tmp_path, interpreters=["tensorrt"])
    with pytest.raises(CallerError, match="tflite-runtime is not installed here"):
        convert(adds(1), X, to=["tflite"], output=tmp_path, interpreters=["tflite-runtime"])


def test_a_model_with_state_is_given_back_as_it_came(tmp_path):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls.add_(1)
            return x + self.calls

    module = Counts().eval()
    with pytest.raises(ParityError):  # the artifact adds one, the model a growing number
        convert(module, X, to=["tflite"], output=tmp_path)
    assert module.calls.item() == 0


# What is refused before any work.


@pytest.fixture
def unlowered(monkeypatch):
    """A backend that must not be reached."""

    def lower(_captured):
        raise AssertionError

    monkeypatch.setattr(BACKENDS["tflite"], "lower", lower)


def test_what_is_not_here_is_refused_first(unlowered, tmp_path, monkeypatch):
    stages = []
    for variable, arguments, match in (
        (None, {"interpreters": ["tflite-runtime"]}, "tflite-runtime is not installed here"),
        ("/bin/true", {}, "FERRYMAN_DEVICE_PYTHON names /bin/true, which is no Python with ferryman"),
        ("/nowhere", {}, "there is no such file"),
    ):
        if variable:
            monkeypatch.setenv(verify.DEVICE_PYTHON, variable)
        with pytest.raises(CallerError, match=match):
            convert(adds(1), X, to=["tflite"], output=tmp_path, progress=stages.append, **arguments)
    assert not stages


def test_an_output_that_cannot_be_a_folder_is_refused_first(unlowered, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for output in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link" / "below"):
        with pytest.raises(CallerError, match=r"no package can be written into .* is no folder; name another"):
            convert(adds(1), X, to=["tflite"], output=output)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CallerError, match=f"{tmp_path} is not writable; name another output"):
        convert(adds(1), X, to=["tflite"], output=tmp_path / "new" / "folder")


def test_a_half_model_is_not_called_fp32(unlowered):
    for dtype in (torch.float16, torch.bfloat16):
        net = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval().to(dtype)
        with pytest.raises(ModelError, match=rf"form fp32 is float32, and 0\.weight is {str(dtype)[6:]}: call .float"):
            convert(net, X.to(dtype), to=["tflite"], name="net")


def test_a_model_that_proves_nothing_is_refused_before_it_is_lowered(unlowered):
    with pytest.raises(ModelError, match="holds no finite number"):
        convert(Function(lambda x: x * float("nan")), X, to=["tflite"])


def test_conversions_at_once_take_turns_and_leave_the_streams(tmp_path):
    before = [Path(f"/proc/self/fd/{number}").readlink() for number in (1, 2)]
    made = []
    threads = [
        threading.Thread(
            target=lambda n=n: made.append(convert(adds(1), X, to=["tflite"], output=tmp_path, name=f"n{n}"))
        )
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.path.name for one in made) == ["n0.ferry", "n1.ferry", "n2.ferry"]
    assert [Path(f"/proc/self/fd/{number}").readlink() for number in (1, 2)] == before


@pytest.mark.parametrize("form", [None, 3, [3], {"int8"}])
def test_what_is_no_form_is_refused(tmp_path, form):
    with pytest.raises(CallerError, match="form is a name or a Recipe"):
        convert(torch.nn.Linear(2, 2).eval(), torch.randn(1, 2), form=form, output=tmp_path)


@pytest.mark.parametrize("shape", [(2, 5), (1, 5, 4), (1, 5, 6, 6)])
@pytest.mark.parametrize("slopes", [1, 5])
def test_a_prelu_is_lowered_to_executorch_after_anything(tmp_path, shape, slopes):
    net, x = torch.nn.PReLU(slopes).eval(), torch.randn(shape)
    with quiet():
        lowered = BACKENDS["executorch"].lower(capture(make_source(net, (x,))))
    assert ("aten::prelu" in lowered.lowering.delegated) == (len(shape) == 4)
    artifact = tmp_path / "model.pte"
    artifact.write_bytes(lowered.data)
    with IsolatedSession(artifact, "executorch") as session:
        np.testing.assert_allclose(session.run([x.numpy()])[0], net(x).detach(), atol=1e-6)
