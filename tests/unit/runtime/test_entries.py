"""Artifacts with several entries: methods of a `.pte`, signatures of a `.tflite`."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.errors import CallerError, PackageError, ParityError
from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.tensor import Signature, TensorSpec, to_tensors
from ferryman.runtime.golden import check_golden
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import open_package, write_package
from ferryman.runtime.session import open_session
from tests.support.golden import PTE, SHARED
from tests.support.interpreters import INTERPRETERS, python_for
from tests.support.packages import add_model

HELD = np.load(SHARED / "two.npz")
X = HELD["x"]
HERE = [name for name in INTERPRETERS if python_for(name) is None]


def artifact_of(interpreter):
    return (SHARED / "two.pte", "executorch") if interpreter == "executorch" else (SHARED / "two.tflite", "tflite")


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("entry", ["small", "large"])
def test_each_entry_is_the_one_that_is_run(interpreter, entry):
    path, runtime = artifact_of(interpreter)
    with IsolatedSession(
        path, runtime, interpreter=interpreter, entry=entry, python=python_for(interpreter)
    ) as session:
        for _ in range(2):
            np.testing.assert_allclose(session.run([X])[0], HELD[entry], atol=1e-5)


@pytest.mark.parametrize("interpreter", HERE)
def test_both_entries_at_once(interpreter):
    path, runtime = artifact_of(interpreter)
    with (
        open_session(path, runtime, interpreter=interpreter, entry="small") as small,
        open_session(path, runtime, interpreter=interpreter, entry="large") as large,
    ):
        for x in (X, -X, X):
            assert not np.allclose(small.run([x])[0], large.run([x])[0], atol=1e-3)
        np.testing.assert_allclose(small.run([X])[0], HELD["small"], atol=1e-5)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("entry", ["nope", "", "small ", "forward"])
def test_an_entry_that_is_not_there(interpreter, entry):
    path, runtime = artifact_of(interpreter)
    with pytest.raises(CallerError, match=rf"no entry `{entry}`; there are: (small, large|large, small)"):
        IsolatedSession(path, runtime, interpreter=interpreter, entry=entry, python=python_for(interpreter))


def test_without_a_name():
    with pytest.raises(CallerError, match="several entries, and none is `forward`: name one; there are: "):
        open_session(SHARED / "two.pte", "executorch")
    with open_session(SHARED / "two.tflite", "tflite") as session:
        np.testing.assert_allclose(session.run([X])[0], HELD["small"], atol=1e-5)  # the first
    for entry in (None, "forward"):
        with open_session(PTE / "linear.pte", "executorch", entry=entry) as session:
            assert session.cache == "off"


def test_an_artifact_whose_only_entry_has_no_name(tmp_path):
    path = tmp_path / "add.tflite"
    path.write_bytes(add_model(1.0))
    for interpreter in ("ai-edge-litert", "tflite-runtime"):
        with pytest.raises(CallerError, match="no entry `small`"):
            IsolatedSession(path, "tflite", interpreter=interpreter, entry="small", python=python_for(interpreter))


def test_entries_are_timed_beside_each_other():
    path, _ = artifact_of("executorch")
    both = time_beside([path, path], "executorch", [[X], [X]], rounds=3, entries=["small", "large"])
    assert [len(one) for one in both] == [3, 3]


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 32)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 4)),),
)


def variant(runtime, entry, name=None):
    suffix, interpreters = {
        "executorch": ("pte", {"executorch": "1.0"}),
        "tflite": ("tflite", {"ai-edge-litert": "2.0"}),
    }[runtime]
    return Variant(
        name=name or f"{entry}-{runtime}",
        form="fp32",
        runtime=runtime,
        payload=f"two.{suffix}",
        entry=entry,
        signature=SIGNATURE,
        requires=Requirements(interpreters=interpreters, memory_estimate_bytes=1 << 20),
        lowering=Lowering(delegated={}, fallback={}, delegates=1),
        verified=(),
    )


def package(path, variants, promised="large"):
    write_package(
        path,
        name="two",
        signature=SIGNATURE,
        variants=variants,
        artifacts={name: (SHARED / name).read_bytes() for name in ("two.pte", "two.tflite")},
        golden=[GoldenVector(inputs=to_tensors([X]), outputs=to_tensors([HELD[promised]]))],
        golden_sqnr_min_db=60.0,
        created_with={"by-hand": "1"},
    )
    for name in ("two.pte", "two.tflite"):
        (path.parent / name).write_bytes((SHARED / name).read_bytes())
    with open_package(path) as opened:
        for one in opened.manifest.golden:
            (path.parent / one).parent.mkdir(exist_ok=True)
            (path.parent / one).write_bytes(opened.read(one))
        return opened.manifest


def test_variants_may_share_a_payload_and_each_is_proven_by_its_own_entry(tmp_path):
    runtimes = ("executorch", "tflite")
    same = [variant(runtime, "large", name) for runtime in runtimes for name in (f"a-{runtime}", f"b-{runtime}")]
    manifest = package(tmp_path / "p.ferry", same)
    results = check_golden(tmp_path, manifest)
    assert [result.variant for result in results] == [one.name for one in same]
    for runtime in runtimes:
        manifest = package(tmp_path / "p.ferry", [variant(runtime, "large"), variant(runtime, "small")])
        with pytest.raises(ParityError, match=f"variant small-{runtime} on"):
            check_golden(tmp_path, manifest)


def test_an_entry_that_the_payload_has_not(tmp_path):
    manifest = package(tmp_path / "p.ferry", [variant("tflite", "medium")])
    with pytest.raises(PackageError, match=r"variant medium-tflite: .*no entry `medium`; there are: small, large"):
        check_golden(tmp_path, manifest)


@pytest.mark.parametrize("entry", ["", "a\nb", "x" * 500, "\x1b[31m"])
def test_an_entry_that_could_steer_a_terminal_is_refused(tmp_path, entry):
    with pytest.raises(PackageError, match="of entries is not"):
        package(tmp_path / "p.ferry", [variant("tflite", entry, "plain")])


def test_a_manifest_from_before_entries_is_read():
    record = msgspec.json.decode(msgspec.json.encode(variant("tflite", "small")))
    del record["entry"]
    assert msgspec.json.decode(msgspec.json.encode(record), type=Variant).entry is None
