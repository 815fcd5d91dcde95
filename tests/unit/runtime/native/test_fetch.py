from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[4] / "runtime" / "native" / "executorch" / "fetch.py"


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("fetch", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("FERRYMAN_CACHE", str(tmp_path / "cache"))
    return module


def offline(machine, directory):
    raise AssertionError(f"went to the network for {machine} in {directory}")


def write_wheel(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")


def whole_wheel(fetch, path):
    write_wheel(
        path,
        [
            *(f"executorch/lib/{name}" for name in fetch.LIBRARIES),
            "executorch/lib/libexecutorch_backend_qnn.so",
            "executorch/include/executorch/a.h",
            "executorch/exir/b.py",
            f"executorch-{fetch.VERSION}.dist-info/licenses/LICENSE",
        ],
    )


def test_a_cached_wheel_with_the_pinned_hash_needs_no_network(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "_download", offline)
    wheel = tmp_path / "cache" / f"executorch-{fetch.VERSION}-{fetch.TAG}_x86_64.whl"
    whole_wheel(fetch, wheel)
    monkeypatch.setitem(fetch.SHA256, "x86_64", fetch.hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert fetch.fetch("x86_64") == wheel


def test_other_bytes_than_the_pinned_ones_are_refused(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "_download", offline)
    wheel = tmp_path / "cache" / f"executorch-{fetch.VERSION}-{fetch.TAG}_aarch64.whl"
    whole_wheel(fetch, wheel)
    with pytest.raises(SystemExit, match=rf"expected sha256 {fetch.SHA256['aarch64']}, found"):
        fetch.fetch("aarch64")


def test_an_unknown_machine_is_refused(fetch):
    with pytest.raises(SystemExit, match="pinned for x86_64, aarch64; found machine 'riscv64'"):
        fetch.fetch("riscv64")


def test_unpacking_leaves_what_the_build_needs_and_only_once(fetch, tmp_path):
    wheel, out = tmp_path / "a.whl", tmp_path / "out"
    whole_wheel(fetch, wheel)
    fetch.unpack(wheel, out)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {"unpacked", "LICENSE", "include/executorch/a.h", *(f"lib/{n}" for n in fetch.LIBRARIES)}
    (out / "LICENSE").write_text("touched")
    fetch.unpack(wheel, out)
    assert (out / "LICENSE").read_text() == "touched"


def test_a_wheel_without_a_library_is_refused(fetch, tmp_path):
    wheel = tmp_path / "a.whl"
    write_wheel(wheel, ["executorch/include/executorch/a.h"])
    with pytest.raises(SystemExit, match=r"does not hold executorch-.*libexecutorch\.so"):
        fetch.unpack(wheel, tmp_path / "out")
