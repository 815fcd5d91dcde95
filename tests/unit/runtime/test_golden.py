from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from ferryman.runtime import golden as golden_module
from ferryman.runtime.contracts.errors import PackageError, ParityError
from ferryman.runtime.contracts.manifest import GoldenVector
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import Signature, TensorSpec, pack, to_tensors
from ferryman.runtime.golden import at_least, check_golden
from ferryman.runtime.package import open_package
from tests.support.forge import contents, forged, listed
from tests.support.packages import write_tiny_package


@pytest.mark.parametrize(
    ("version", "least", "enough"),
    [
        ("2.14.0", "2.14", True),
        ("2.14", "2.14.0", True),
        ("9" * 100_000, "2.14", True),
        ("1." + "0" * 100_000 + "9", "1.1", False),
        ("2.14", "2.14.1", False),
        ("2.9.0", "2.14", False),
        ("2.14.0rc1", "2.14", True),
        ("2.14.0+cpu", "2.14.0", True),
        ("1.5.1", "1.5.10", False),
        ("3", "2.99", True),
        ("unknown", "1", False),
    ],
)
def test_versions_compare_as_numbers(version, least, enough):
    assert at_least(version, least) is enough


def test_golden_outputs_of_nothing_but_nan_prove_nothing(tmp_path):
    with open_package(write_tiny_package(tmp_path / "p.ferry", promised=float("nan"))) as package:
        (path,) = package.manifest.golden
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(package.read(path))
        with pytest.raises(PackageError, match="no golden output is finite"):
            check_golden(tmp_path, package.manifest)


def check(path):
    """A package's golden vectors, on this environment's interpreter."""
    with open_package(path) as package:
        for payload in package.manifest.payloads:
            target = path.parent / payload.path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(package.read(payload.path))
        return check_golden(path.parent, package.manifest)


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ([], "expected 0 outputs, found 1"),
        ([{"dtype": "bool"}], r"expected bool\[1, 4\] y, found float32\[1, 4\]"),
        ([{"dtype": "float64"}], r"expected float64\[1, 4\] y, found float32\[1, 4\]"),
        ([{"shape": [7, 7]}], r"expected float32\[7, 7\] y, found float32\[1, 4\]"),
        ([{"shape": [{"symbol": "s", "min": 2, "max": 9}, 4]}], r"expected float32\[s:2\.\.9, 4\] y"),
        ([{}, {}], "expected 2 outputs, found 1"),
    ],
)
def test_a_signature_that_the_golden_outputs_do_not_fit_is_a_lie(tmp_path, outputs, match):
    entries = contents(write_tiny_package(tmp_path / "p.ferry"))
    manifest = json.loads(entries.pop("manifest.json"))
    (truth,) = manifest["signature"]["outputs"]
    manifest["signature"]["outputs"] = [{**truth, **lie} for lie in outputs]
    (tmp_path / "p.ferry").write_bytes(forged(manifest, entries))
    with pytest.raises(PackageError, match=f"golden vector golden/0.msgpack does not fit .* signature: .*{match}"):
        check(tmp_path / "p.ferry")


def test_an_artifact_that_answers_another_kind_than_the_package_says_is_caught(tmp_path):
    """Signature and golden vector agree on bool, and the artifact gives floats."""
    entries = contents(write_tiny_package(tmp_path / "p.ferry"))
    manifest = json.loads(entries.pop("manifest.json"))
    manifest["signature"]["outputs"][0]["dtype"] = "bool"
    x = np.zeros((1, 4), np.float32)
    vector = GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([np.ones((1, 4), bool)]))
    entries["golden/0.msgpack"] = pack(vector)
    (tmp_path / "p.ferry").write_bytes(forged(listed(manifest, entries), entries))
    with pytest.raises(ParityError, match="output 0: expected dtype bool, found float32"):
        check(tmp_path / "p.ferry")


class _Counts:
    """A session whose artifact carries the model's int64 as int32."""

    version = "1"
    last_run_ns = 7
    memory_after = Unavailable(reason="not a process")

    def __init__(self, *_, **__): ...

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def run(self, inputs):
        return [inputs[0].astype(np.int32) + 1]


@pytest.mark.parametrize(("promised", "good"), [(1, True), (2, False)])
def test_narrowed_integers_pass_when_they_are_equal_and_only_then(tmp_path, monkeypatch, promised, good):
    with open_package(write_tiny_package(tmp_path / "p.ferry")) as package:
        spec = TensorSpec(name="n", dtype="int64", shape=(2,))
        manifest = msgspec.structs.replace(package.manifest, signature=Signature(inputs=(spec,), outputs=(spec,)))
    n = np.array([1 << 20, 5])
    (tmp_path / "golden").mkdir()
    vector = GoldenVector(inputs=to_tensors([n]), outputs=to_tensors([n + np.array([1, promised])]))
    (tmp_path / "golden" / "0.msgpack").write_bytes(pack(vector))
    monkeypatch.setattr(golden_module, "IsolatedSession", _Counts)
    if good:
        (result,) = check_golden(tmp_path, manifest)
        assert (result.sqnr_db, result.latency_ns) == (200, 7)
        return
    with pytest.raises(ParityError, match="output 0: 1 of 2 elements differ, and integers and booleans must be equal"):
        check_golden(tmp_path, manifest)
