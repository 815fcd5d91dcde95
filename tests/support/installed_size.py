"""How large ferryman is on a 64-bit Arm device: `python -m tests.support.installed_size [WHEEL]`, or `make wheel-size`.

pip installs the cross-built wheel and what it asks for as on the device, into a scratch folder; nothing is run.
Sizes are bytes of files, in MB of 1,000,000; bytecode is what pip compiles unless --no-compile is said.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.arm_wheel import arm_wheel
from tests.support.import_time import import_times

PYTHON = "3.11"  # of Raspberry Pi OS bookworm
# Its glibc is 2.36. pip takes what it is told, and infers no older tags.
PLATFORMS = [f"manylinux{tag}_aarch64" for tag in ("2014", *(f"_2_{minor}" for minor in range(17, 37)))]
BAR_MB = 120


@dataclass(frozen=True)
class Choice:
    """One way to install: the wheel's extra, or with `only` the packages beside the wheel, and no others.

    `removed` are patterns of files that are deleted afterwards.
    """

    name: str
    extra: str = ""
    only: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    bytecode_counts: bool = True
    must_fit: bool = True


# What sessions and the agent import with ai-edge-litert. It asks for protobuf, tqdm, flatbuffers, typing-extensions and
# backports.strenum as well, which only its converter and its tools import (tests/integration/test_installed_size.py).
NEEDED = ("ai-edge-litert==2.3.0", "ml-dtypes", "numpy", "click", "msgspec", "paho-mqtt", "psutil")
# Nor do they need this, 17 MB: ferryman asks for the processor alone.
ACCELERATOR = "ai_edge_litert/libLiteRtWebGpuAccelerator.so"
# Its own tests, and what bytecode there would be of them.
NUMPY_TESTS = "numpy/**/tests/test_*.py"
CHOICES = (
    Choice("ExecuTorch alone"),
    Choice("with tflite-runtime", "[tflite]"),
    Choice("with ai-edge-litert, as pip does it", "[litert]", must_fit=False),
    Choice("with ai-edge-litert, as provision.sh leaves it", "[litert]", removed=(ACCELERATOR, NUMPY_TESTS)),
    Choice(
        "with ai-edge-litert: what is imported alone, without bytecode",
        only=NEEDED,
        removed=(ACCELERATOR,),
        bytecode_counts=False,
    ),
)


@dataclass(frozen=True)
class Part:
    """One package of an installation."""

    name: str
    version: str
    files_bytes: int
    bytecode_bytes: int


@dataclass(frozen=True)
class Installed:
    """What pip installed for a choice, and each package's requirements, as they are written."""

    choice: Choice
    parts: tuple[Part, ...]
    requirements: dict[str, list[str]]

    @property
    def files_mb(self) -> float:
        return sum(part.files_bytes for part in self.parts) / 1e6

    @property
    def bytecode_mb(self) -> float:
        return sum(part.bytecode_bytes for part in self.parts) / 1e6

    @property
    def counted_mb(self) -> float:
        return self.files_mb + (self.bytecode_mb if self.choice.bytecode_counts else 0)


def install(choice: Choice, wheel: Path, folder: Path) -> Installed:
    """Install a choice into an empty folder.

    Raises:
        RuntimeError: pip found no wheel for the device, or could not be reached.
    """
    target, report = folder / "site", folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={PYTHON}", *(f"--platform={p}" for p in PLATFORMS)]
    command += ["--no-deps"] if choice.only else []
    command += [f"--target={target}", f"--report={report}", f"{wheel}{choice.extra}", *choice.only]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip installs nothing {choice.name}: {done.stderr[-1500:]}")
    for pattern in choice.removed:
        for path in list(target.glob(pattern)):
            path.unlink()
    subprocess.run([sys.executable, "-m", "compileall", "-q", target], capture_output=True, check=False)
    metadata = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    requirements = {canonicalize_name(m["name"]): m.get("requires_dist", []) for m in metadata}
    parts = (_part(distribution) for distribution in distributions(path=[str(target)]))
    return Installed(choice, tuple(sorted(parts, key=lambda part: -part.files_bytes)), requirements)


def _part(distribution: Distribution) -> Part:
    # With --target, pip moves scripts from ../../bin: they are not where RECORD says, and count little.
    files = [Path(str(f.locate())) for f in distribution.files or () if f.suffix != ".pyc"]
    files = [path for path in files if path.exists()]
    compiled = [Path(importlib.util.cache_from_source(path)) for path in files if path.suffix == ".py"]
    sizes = (sum(p.stat().st_size for p in paths if p.exists()) for paths in (files, compiled))
    return Part(canonicalize_name(distribution.name), distribution.version, *sizes)


def asked_on_the_device(installed: Installed) -> set[str]:
    """What pip would take on the device itself: requirements are asked about an aarch64 machine, not this one."""
    device: Environment = default_environment() | {
        "platform_machine": "aarch64",
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.2",
    }
    extras = {"ferryman": installed.choice.extra.strip("[]")}
    asked, seen = ["ferryman"], set[str]()
    while asked:
        name = asked.pop()
        if name not in seen:
            seen.add(name)
            asked += _asked(installed.requirements.get(name, []), device, extras.get(name, ""))
    return seen


def _asked(texts: Sequence[str], device: Environment, extra: str) -> Iterator[str]:
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({**device, "extra": extra}):
            yield canonicalize_name(requirement.name)


def table(installed: Installed) -> str:
    """Per package, in MB."""
    rows = [f"{installed.choice.name}", f"  {'package':<28}{'files':>9}{'bytecode':>10}  MB"]
    rows += [
        f"  {f'{p.name} {p.version}':<28}{p.files_bytes / 1e6:9.2f}{p.bytecode_bytes / 1e6:10.2f}"
        for p in installed.parts
    ]
    total = f"  {'all':<28}{installed.files_mb:9.2f}{installed.bytecode_mb:10.2f}"
    fits = "under" if installed.counted_mb < BAR_MB else "NOT under"
    return "\n".join([*rows, f"{total}   counted: {installed.counted_mb:.1f} MB, {fits} {BAR_MB} MB"])


def main(arguments: Sequence[str]) -> int:
    """Print every choice; 1 where one that must be under the bar is not, or torch is there."""
    wheel = Path(arguments[0]) if arguments else arm_wheel()
    wrong = False
    for choice in CHOICES:
        with tempfile.TemporaryDirectory() as scratch:
            installed = install(choice, wheel, Path(scratch))
        print(table(installed), end="\n\n")
        torch = any("torch" in part.name for part in installed.parts)
        wrong |= torch or (choice.must_fit and installed.counted_mb >= BAR_MB)
    print(import_times())
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
