"""ferryman_runner, built once for each state of its sources and kept in the cache between runs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.native.executorch.fetch import cache_dir
from tests.support.interpreters import ROOT

Machine = Literal["x86_64", "aarch64"]
BUILD = ROOT / "runtime" / "native" / "runner" / "build.py"
_SOURCES = ("runner", "executorch", "kernels", "weights")
_KEPT_MAX = 4


def why_not(machine: Machine) -> str:
    """Why the runner cannot be built here; empty: it can."""
    missing = [tool for tool in ("cmake", "readelf", "dpkg", _compiler(machine)) if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@functools.cache
def runner(machine: Machine) -> Path:
    """The unpacked folder `ferryman-runner`; its file `ferryman_runner` is the launcher. Not to be written to.

    `runner(machine).with_name("ferryman-runner.tar.gz")` is the archive it came from.

    Raises:
        subprocess.CalledProcessError: it does not build.
    """
    kept = cache_dir() / "runners"
    kept.mkdir(parents=True, exist_ok=True)
    home = kept / f"{machine}-{_state(machine)}"
    with (kept / f"{machine}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=kept) as scratch:
                made = Path(scratch) / "made"
                archive = made / "ferryman-runner.tar.gz"
                subprocess.run([sys.executable, BUILD, machine, archive], check=True)
                unpack(archive, made)
                made.rename(home)
            _forget(kept, machine)
        os.utime(home)
    return home / "ferryman-runner"


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack as a device would; the folder `ferryman-runner`."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "ferryman-runner"


def command(machine: Machine) -> list[str]:
    """What runs it here: the launcher; of another machine, its loader under qemu (which starts no scripts)."""
    folder = runner(machine)
    if machine == os.uname().machine:
        return [str(folder / "ferryman_runner")]
    (loader,) = (folder / "lib").glob("ld-linux-*")
    program = folder / "bin" / "ferryman_runner"
    return [f"qemu-{machine}-static", str(loader), "--library-path", str(folder / "lib"), str(program)]


def answer(done: subprocess.CompletedProcess[Any]) -> dict[str, Any]:
    """What the runner said, which is one line of JSON, and its exit code accordingly."""
    assert done.returncode in (0, 1), (done.returncode, done.stdout, done.stderr)
    found = json.loads(done.stdout, parse_constant=lambda name: f"not JSON: {name}")
    assert (done.returncode == 1) == ("error" in found), found
    return found


def ask(
    *words: str | Path, machine: Machine = "x86_64", cpu: str = "cortex-a72", check: bool = True, **options: Any
) -> dict[str, Any]:
    """Run it, and read what it says; an error it tells of fails, unless `check` is off."""
    options["env"] = os.environ | {"QEMU_CPU": cpu} | options.get("env", {})
    found = answer(
        subprocess.run([*command(machine), *words], capture_output=True, check=False, **{"timeout": 60} | options)
    )
    assert not check or "error" not in found, found
    return found


def run(
    artifact: Path, inputs: Sequence[Array], folder: Path, *words: str, outputs: int, **options: Any
) -> list[Array]:
    """Outputs of one inference; `outputs`: how many there are."""
    files = [folder / f"out{index}" for index in range(outputs)]
    given = write_inputs(inputs, folder)
    told = ask("run", artifact, "--input", *given, "--output", *files, *words, **options)
    assert told["run_ns"] > 0
    return [
        np.frombuffer(file.read_bytes(), one["dtype"]).reshape(one["shape"])
        for file, one in zip(files, told["outputs"], strict=True)
    ]


def write_inputs(inputs: Sequence[Array], folder: Path) -> list[str]:
    """Files of inputs, with their sizes, as the command line takes them."""
    given = []
    for index, array in enumerate(inputs):
        file = folder / f"in{index}"
        file.write_bytes(array.tobytes())
        given.append(f"{file}:{'x'.join(map(str, array.shape))}" if array.shape else str(file))
    return given


def _compiler(machine: Machine) -> str:
    return "g++" if machine == os.uname().machine else f"{machine}-linux-gnu-g++"


def _state(machine: Machine) -> str:
    """A hash of all that shapes the build."""
    native = ROOT / "runtime" / "native"
    files = [file for name in _SOURCES for file in (native / name).rglob("*") if file.is_file()]
    files += [ROOT / "CMakeLists.txt", *native.glob("*.cmake")]
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    compiler = subprocess.run([_compiler(machine), "--version"], capture_output=True, check=True).stdout
    state = hashlib.sha256(compiler + version.encode())
    for file in sorted(files):
        if file.suffix != ".pyc":
            state.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return state.hexdigest()[:16]


def _forget(kept: Path, machine: Machine) -> None:
    """Remove those not used for longest."""
    folders = sorted(kept.glob(f"{machine}-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in folders[:-_KEPT_MAX]:
        shutil.rmtree(folder, ignore_errors=True)
