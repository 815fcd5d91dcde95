"""The cross-built aarch64 wheel: built at most once for one state of the sources, and kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from ferryman.runtime.native.executorch.fetch import cache_dir

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "runtime" / "native" / "cross_aarch64.sh"
COMPILER = "aarch64-linux-gnu-g++"
SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml")
FOLDERS = ("converter", "devices", "profiler", "runtime", "src")
KEPT = 5


def why_not() -> str:
    """Why no wheel can be built here; empty where one can."""
    return "" if shutil.which(COMPILER) else f"{COMPILER} is not installed (Debian: g++-aarch64-linux-gnu)"


def arm_wheel() -> Path:
    """The wheel of the sources as they are; builds it where the cache has none, which takes about a minute.

    Raises:
        RuntimeError: the build failed; its last words are in the message.
    """
    shelf = cache_dir() / "wheels"
    folder = shelf / _state()
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=shelf) as scratch:
                build(BUILD, Path(scratch) / "wheel")
                (Path(scratch) / "wheel").rename(folder)
        os.utime(folder)
        kept = sorted((f for f in shelf.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
        for old in kept[:-KEPT]:
            shutil.rmtree(old)
    (wheel,) = folder.glob("ferryman-*_aarch64.whl")
    return wheel


def build(script: Path, folder: Path, **options) -> None:
    """Run a checkout's build script with this interpreter.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"PYTHON": sys.executable} | options.pop("env", {})
    done = subprocess.run([script, folder], env=environment, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {(done.stdout + done.stderr)[-2000:]}")


def _state() -> str:
    """A name for what the wheel is made from: the files, the compiler and the builder."""
    compiler = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(f"{compiler}{version('scikit-build-core')}".encode())
    for path in sorted([*map(ROOT.joinpath, SOURCES), *_below()]):
        name = str(path.relative_to(ROOT)).encode()
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        digest.update(b"%d %s %d %b" % (len(name), name, len(content), content))
    return digest.hexdigest()[:24]


def _below():
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            generated = "__pycache__" in path.parts or path.suffix in {".pyc", ".so"}
            if not generated and (path.is_symlink() or path.is_file()):
                yield path
