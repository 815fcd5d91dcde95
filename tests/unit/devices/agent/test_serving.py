from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ferryman.devices.agent import serving as serving_module
from ferryman.devices.agent.serving import Serving, choose, picked
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError
from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.messages import InferRequest
from ferryman.runtime.contracts.tensor import DynamicDim, Signature, TensorSpec, to_tensors
from ferryman.runtime.golden import check_golden
from ferryman.runtime.install import install
from ferryman.runtime.package import open_package, write_package
from ferryman.runtime.sessions import executorch
from ferryman.runtime.slots import SlotStore
from tests.support import golden

PTE = golden.PTE / "dynamic.pte"
SHARED = golden.SHARED
BATCH = DynamicDim(symbol="batch", min=1, max=8)
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=(BATCH, 4)),
        TensorSpec(name="ids", dtype="int64", shape=(BATCH, 4)),
        TensorSpec(name="mask", dtype="bool", shape=(BATCH,)),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=(BATCH, 4)),
        TensorSpec(name="next", dtype="int64", shape=(BATCH, 4)),
        TensorSpec(name="not", dtype="bool", shape=(BATCH,)),
    ),
)


def inputs(rows, columns=4):
    return [np.ones((rows, columns), np.float32), np.ones((rows, columns), np.int64), np.ones(rows, np.bool_)]


def write_dynamic(path, golden_inputs):
    with executorch.open_session(PTE, threads=1) as session:
        outputs = session.run(inputs(golden_inputs[0].shape[0]))
        artifact_signature = session.signature
    variant = Variant(
        name="fp32-executorch",
        form="fp32",
        runtime="executorch",
        payload="artifacts/model.pte",
        signature=artifact_signature,
        requires=Requirements(interpreters={"executorch": "1.5"}, memory_estimate_bytes=1 << 20),
        lowering=Lowering(delegated={}, fallback={}, delegates=0),
        verified=(),
    )
    write_package(
        path,
        name="dynamic",
        signature=SIGNATURE,
        variants=[variant],
        artifacts={"artifacts/model.pte": PTE.read_bytes()},
        golden=[GoldenVector(inputs=to_tensors(golden_inputs), outputs=to_tensors(outputs))],
        golden_sqnr_min_db=60.0,
        created_with={},
    )
    return path


@pytest.fixture
def serving(tmp_path):
    install(write_dynamic(tmp_path / "d.ferry", inputs(3)), tmp_path / "root")
    serving = Serving(SlotStore(tmp_path / "root"))
    yield serving
    serving.close()


def infer(serving, arrays, **names):
    return serving.infer(InferRequest(inputs=to_tensors(arrays), **names), 20.0)


def test_the_models_signature_guards_an_artifact_that_takes_any_smaller_size(serving):
    """ExecuTorch marks whole tensors as dynamic, so the artifact alone would take [3, 2] where the model has [n, 4]."""
    for rows in (1, 3, 8):
        assert infer(serving, inputs(rows)).outputs[0].shape == (rows, 4)
    with pytest.raises(CallerError, match=r"input x: expected float32\[batch:1\.\.8, 4\] x, found shape \[3, 2\]"):
        infer(serving, inputs(3, columns=2))
    with pytest.raises(CallerError, match=r"input x: .*found shape \[9, 4\]"):
        infer(serving, inputs(9))


def test_dimensions_of_one_symbol_must_agree(serving):
    x, _, mask = inputs(3)
    with pytest.raises(CallerError, match="input ids: expected"):
        infer(serving, [x, inputs(2)[1], mask])


def test_a_golden_vector_with_a_wrong_static_dimension_is_the_packages_fault(tmp_path):
    x, ids, mask = inputs(3)
    path = write_dynamic(tmp_path / "d.ferry", [x[:, :2], ids[:, :2], mask])
    with pytest.raises(PackageError, match=r"golden vector golden/0\.msgpack does not fit the model's signature"):
        install(path, tmp_path / "root")
    assert SlotStore(tmp_path / "root").read_state().active is None


def test_packed_weights_are_kept_in_the_store_for_the_next_start(serving, tmp_path):
    for use in ("built", "warm"):
        infer(serving, inputs(1))
        (session,) = serving._sessions.values()
        assert session.cache == use
        serving.release()
    assert [path.suffix for path in (tmp_path / "root" / "cache").iterdir()] == [".packed"]


def test_variants_of_one_payload_are_switched_in_one_process(tmp_path):
    held = np.load(SHARED / "two.npz")
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 32)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 4)),),
    )
    variants = [
        Variant(
            name=entry,
            form="fp32",
            runtime="executorch",
            payload="two.pte",
            entry=entry,
            signature=signature,
            requires=Requirements(interpreters={"executorch": "1.5"}, memory_estimate_bytes=1 << 20),
            lowering=Lowering(delegated={}, fallback={}, delegates=0),
            verified=(),
            sqnr_min_db=None if entry == "large" else 5.0,  # of another model
        )
        for entry in ("large", "small")
    ]
    write_package(
        tmp_path / "two.ferry",
        name="two",
        signature=signature,
        variants=variants,
        artifacts={"two.pte": (SHARED / "two.pte").read_bytes()},
        golden=[GoldenVector(inputs=to_tensors([held["x"]]), outputs=to_tensors([held["large"]]))],
        golden_sqnr_min_db=60.0,
        created_with={},
    )
    install(tmp_path / "two.ferry", tmp_path / "root", golden=lambda *_: ())
    serving = Serving(SlotStore(tmp_path / "root"))
    try:
        processes = set()
        for entry in ("large", "small", "small", "large"):
            (tensor,) = infer(serving, [held["x"]], variant=entry).outputs
            np.testing.assert_allclose(tensor.to_array(), held[entry], atol=1e-5)
            (session,) = serving._sessions.values()
            processes.add(session._process.pid)
        assert len(processes) == 1
        assert session.cache == "warm"
    finally:
        serving.close()


def test_a_session_is_kept_and_closed_with_its_slot(serving, tmp_path):
    infer(serving, inputs(1))
    (first,) = serving._sessions.values()
    infer(serving, inputs(2))
    assert list(serving._sessions.values()) == [first]
    serving.release()
    assert not serving._sessions
    assert infer(serving, inputs(1)).outputs


def flip(serving, name):
    """One bit of a file of the slot, in place."""
    path = serving.current().directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_artifact_damaged_since_it_was_read_back_gets_no_new_session(serving):
    infer(serving, inputs(1))
    flip(serving, "artifacts/model.pte")
    serving.release()
    for _ in range(2):
        with pytest.raises(
            DeviceError, match=r"slot a \(dynamic\): artifacts/model\.pte .* damaged; push the package again"
        ):
            infer(serving, inputs(1))
    assert not serving._sessions
    flip(serving, "artifacts/model.pte")
    assert infer(serving, inputs(1)).outputs


def test_an_unforeseen_error_does_not_leave_a_session_that_answers_the_question_before(serving, monkeypatch):
    infer(serving, inputs(1))
    (session,) = serving._sessions.values()
    monkeypatch.setattr(session, "_read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        infer(serving, inputs(1))
    assert not serving._sessions
    assert infer(serving, inputs(2)).outputs[0].shape == (2, 4)


def test_outputs_have_the_types_that_the_model_promises_whatever_the_artifact_narrowed(serving, monkeypatch):
    infer(serving, inputs(1))
    (session,) = serving._sessions.values()
    run = session.run
    monkeypatch.setattr(session, "run", lambda arrays: [a.astype("i4") if a.dtype == "i8" else a for a in run(arrays)])
    assert [tensor.dtype for tensor in infer(serving, inputs(2)).outputs] == ["float32", "int64", "bool"]


def test_what_the_device_picked_answers_unless_another_is_named(serving, monkeypatch):
    variants = (variant("a", "ai-edge-litert"), variant("b", "ai-edge-litert", "tflite-runtime"))
    monkeypatch.setattr(serving_module, "usable_interpreters", lambda one: dict(one.requires.interpreters))
    slot = msgspec.structs.replace(serving.current().slot, variant="b", interpreter="tflite-runtime")
    found, interpreter = picked(variants, slot)
    assert (found.name, interpreter) == ("b", "tflite-runtime")
    for gone in ({"variant": "c"}, {"interpreter": "executorch"}, {"variant": None}):
        found, interpreter = picked(variants, msgspec.structs.replace(slot, **gone))
        assert (found.name, interpreter) == ("a", "ai-edge-litert")


def variant(name, *interpreters, isa=()):
    return Variant(
        name=name,
        form="fp32",
        runtime="tflite",
        payload="p",
        signature=SIGNATURE,
        requires=Requirements(interpreters=dict.fromkeys(interpreters, "1"), isa=isa, memory_estimate_bytes=1),
        lowering=Lowering(delegated={}, fallback={}, delegates=0),
        verified=(),
    )


def test_the_first_variant_this_device_can_run_is_chosen():
    variants = (variant("a", "tflite-runtime", isa=("avx9000",)), variant("b", "ai-edge-litert"))
    found, interpreter = choose(variants, None, None)
    assert (found.name, interpreter) == ("b", "ai-edge-litert")
    with pytest.raises(DeviceError, match="this device"):
        choose(variants, "a", None)


def test_a_variant_for_another_processor_is_not_run_by_the_golden_check(tmp_path):
    """It would end in an illegal instruction, and the variants that do run here with it."""
    with open_package(write_dynamic(tmp_path / "d.ferry", inputs(3))) as package:
        manifest = package.manifest
        for path in ("artifacts/model.pte", "golden/0.msgpack"):
            target = tmp_path / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(package.read(path))
    foreign = variant("foreign", "ai-edge-litert", isa=("avx9000",))
    both = type(manifest)(**{**{f: getattr(manifest, f) for f in manifest.__struct_fields__},
                             "variants": (foreign, *manifest.variants)})  # fmt: skip
    assert [result.variant for result in check_golden(tmp_path, both)] == ["fp32-executorch"]
