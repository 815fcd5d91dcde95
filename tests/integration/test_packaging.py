from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {
    "libexecutorch.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_etdump.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
    "libexecutorch_threadpool.so",
    "libferryman_executorch.so",
    "libferryman_kernels.so",
    "libferryman_tflite.so",
    "libferryman_weights.so",
}
USE_IT = """
import sys
from pathlib import Path
import numpy as np
import ferryman, ferryman.converter, ferryman.devices, ferryman.profiler
from ferryman.runtime.session import open_session
from ferryman.runtime.sessions import executorch
with open_session(Path(sys.argv[1]), "executorch") as session:
    assert session.run([np.ones((1, 4), "float32")])[0].tolist() == [[3, 3, 3, 3]]
assert not {"torch", "executorch"} & set(sys.modules)
print(ferryman.__file__)
from ferryman.runtime.native_library import native_library; print(native_library(executorch._LIBRARY))
"""


def run(*command):
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of the tree, and a wheel built from that sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".")
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture
def fresh(tmp_path):
    """A new environment that sees the packages of this one, but has to get ferryman itself."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return tmp_path / "env" / "bin" / "python"


def used_from(python, tmp_path):
    """Use ferryman with `python`; where the package and the native library came from."""
    (tmp_path / "use.py").write_text(USE_IT)
    package, library = run(python, tmp_path / "use.py", ROOT / "tests" / "golden" / "pte" / "linear.pte").split()
    return Path(package), Path(library)


def install(python, *what):
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", *what)


def test_the_wheel_holds_the_package_alone(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read("ferryman-0.2.0.dist-info/METADATA").decode())
    assert {name.split("/")[0] for name in names} == {"ferryman", "ferryman-0.2.0.dist-info"}
    inside = {Path(name) for name in names if name.startswith("ferryman/")}
    assert {path.suffix for path in inside} <= {".py", ".so", ".txt", ".html", ".css", ".js", ".json", ".typed", ".sh"}
    assert [str(path) for path in inside if path.suffix == ".sh"] == ["ferryman/devices/fleet/facts/bare.sh"]
    native = {path.relative_to("ferryman/runtime/native") for path in inside if "native" in path.parts}
    assert {str(path.parent) for path in native} == {"lib", "lib/licenses"}
    assert {path.name for path in native if path.suffix == ".so"} == LIBRARIES
    assert not any("tests" in path.parts for path in inside)
    base = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need]
    assert not [need for need in base if "torch" in need]


def test_the_wheel_carries_the_licences_of_what_it_vendors(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        folder = "ferryman/runtime/native/lib/licenses/"
        texts = {n.removeprefix(folder): archive.read(n).decode() for n in archive.namelist() if folder in n}
        assert "Apache License" in archive.read("ferryman-0.2.0.dist-info/licenses/LICENSE").decode()
    assert 'For "ExecuTorch" software' in texts["ExecuTorch.txt"]
    for name in texts.keys() - {"NOTICE.txt", "ExecuTorch.txt"}:
        assert name in texts["NOTICE.txt"]
    assert "Apache License" in texts["Apache-2.0.txt"]


def test_the_sdist_holds_every_file_once(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers()}
    assert members["src/ferryman/runtime"].issym()
    assert "runtime/session.py" in members
    assert not [name for name in members if name.startswith((".venv", "build", "dist"))]


def test_the_wheel_works_where_it_is_installed(built, fresh, tmp_path):
    install(fresh, built[1])
    package, library = used_from(fresh, tmp_path)
    assert tmp_path in package.parents
    assert tmp_path in library.parents


def test_an_editable_install_uses_the_tree_and_has_the_native_library(fresh, tmp_path):
    install(fresh, "--no-build-isolation", "--editable", ROOT)
    package, library = used_from(fresh, tmp_path)
    assert ROOT / "src" in package.parents
    assert tmp_path in library.parents
