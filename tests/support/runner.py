"""ferryman_runner, built once for each state of its sources and kept in the cache between runs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Literal

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
    kept = _cache_dir() / "runners"
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


def _compiler(machine: Machine) -> str:
    return "g++" if machine == os.uname().machine else f"{machine}-linux-gnu-g++"


def _cache_dir() -> Path:
    """As runtime/native/executorch/fetch.py, which is no module of a package."""
    if named := os.environ.get("FERRYMAN_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ferryman"


def _state(machine: Machine) -> str:
    """A hash of all that shapes the build."""
    native = ROOT / "runtime" / "native"
    files = [file for name in _SOURCES for file in (native / name).rglob("*") if file.is_file()]
    files += [ROOT / "CMakeLists.txt", *native.glob("*.cmake")]
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    compiler = subprocess.run([_compiler(machine), "--version"], capture_output=True, check=True).stdout
    state = hashlib.sha256(compiler + version.encode())
    for file in sorted(files):
        if file.suffix not in {".pyc", ".md"}:
            state.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return state.hexdigest()[:16]


def _forget(kept: Path, machine: Machine) -> None:
    """Remove those not used for longest."""
    folders = sorted(kept.glob(f"{machine}-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in folders[:-_KEPT_MAX]:
        shutil.rmtree(folder, ignore_errors=True)
