# ruff: noqa: INP001  # run by CMake, never imported
"""Fetch the pinned executorch wheel and unpack what the native library is built from.

Run by CMake: `fetch.py MACHINE DIRECTORY` leaves `lib/*.so`, `include/` and `LICENSE` in DIRECTORY. The wheel is kept
in `$FERRYMAN_CACHE` (default `~/.cache/ferryman`), so a second build needs no network. Standard library and pip only;
the libraries do not depend on the Python version, so one tag's wheel serves all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.5.1"
TAG = "cp311-cp311-manylinux_2_28"
SHA256 = {
    "x86_64": "274c28c2fe2b76acb03f9fa381537425c40e0098dcf886baf6d97a1a55ffe300",
    "aarch64": "8ee02348a3ea80ddf770822911ebf78da616b73afce0fbaaa79f23311c88c66a",
}
LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_etdump.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
    "libexecutorch_threadpool.so",
)


def cache_dir() -> Path:
    """Where wheels are kept between builds."""
    if named := os.environ.get("FERRYMAN_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ferryman"


def fetch(machine: str) -> Path:
    """Return the wheel for `machine`, downloaded if the cache does not hold it.

    Raises:
        SystemExit: unknown machine, failed download, or bytes other than the pinned ones.
    """
    if machine not in SHA256:
        sys.exit(f"executorch {VERSION} is pinned for {', '.join(SHA256)}; found machine {machine!r}")
    wheel = cache_dir() / f"executorch-{VERSION}-{TAG}_{machine}.whl"
    if not wheel.exists():
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
            _download(machine, Path(scratch))
            (Path(scratch) / wheel.name).replace(wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256[machine]:
        sys.exit(f"{wheel}: expected sha256 {SHA256[machine]}, found {found}; delete the file and build again")
    return wheel


def _download(machine: str, directory: Path) -> None:
    pin = directory / "requirements.txt"
    pin.write_text(f"executorch=={VERSION} --hash=sha256:{SHA256[machine]}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311"]
    command += [f"--platform=manylinux_2_28_{machine}", "--require-hashes"]
    done = subprocess.run([*command, f"--requirement={pin}", f"--dest={directory}"], check=False)
    if done.returncode:
        sys.exit(
            f"could not download executorch {VERSION} for {machine}: pip's message is above; "
            f"offline, put the wheel into {cache_dir()}"
        )


def unpack(wheel: Path, directory: Path) -> None:
    """Leave lib/, include/ and LICENSE in `directory`, unless they are there already.

    Raises:
        SystemExit: a library is missing from the wheel.
    """
    stamp = directory / "unpacked"
    if stamp.exists() and stamp.read_text() == wheel.name:
        return
    shutil.rmtree(directory, ignore_errors=True)
    names = {f"executorch/lib/{name}": f"lib/{name}" for name in LIBRARIES}
    names[f"executorch-{VERSION}.dist-info/licenses/LICENSE"] = "LICENSE"
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
        headers = (n for n in held if n.startswith("executorch/include/") and n.endswith(".h"))
        names |= {n: n.removeprefix("executorch/") for n in headers}
        if missing := sorted(names.keys() - set(held)):
            sys.exit(f"{wheel} does not hold {', '.join(missing)}")
        for source, target in names.items():
            path = directory / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(source))
    stamp.write_text(wheel.name)


if __name__ == "__main__":
    unpack(fetch(sys.argv[1]), Path(sys.argv[2]))
