"""SIGKILL at every system call an install makes under its root: the store is old and whole, or new and whole.

strace counts the calls of one undisturbed install, then each of them is the last of an install of its own. The golden
check is the identity here (its process changes nothing on disk); test_push_ssh.py runs the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of, write_tiny_package

# `?`: some processors have only the ...at calls.
CHANGING = (
    "?openat,?open,?creat,?write,?writev,?pwrite64,?fsync,?fdatasync,?rename,?renameat,?renameat2,?unlink,?unlinkat,"
    "?rmdir,?mkdir,?mkdirat,?link,?linkat,?symlink,?symlinkat,?truncate,?ftruncate,?fallocate,?chmod,?fchmod,"
    "?fchmodat,?utimensat,?flock"
)
INSTALL = """
import sys
from pathlib import Path
from ferryman.runtime.install import install
install(Path(sys.argv[1]), Path(sys.argv[2]), golden=lambda _directory, _manifest: ())
"""
_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$")


def _strace_can_inject() -> str:
    """Why not; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "--inject=fsync:signal=KILL:when=1", "true"], capture_output=True, check=False
    )
    return tried.stderr.decode().strip() if tried.returncode else ""


_WHY_NOT = _strace_can_inject()
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=f"strace --inject does not work here: {_WHY_NOT}")


@dataclass(frozen=True)
class Call:
    """The `nth` call of its name, which touches the store."""

    name: str
    nth: int
    line: str


def _traced(package: Path, root: Path, log: Path, *options: str) -> int:
    """Install under strace; the exit code, negative for a signal."""
    argv = ["strace", "-f", "-y", "-s", "0", "-e", f"trace={CHANGING}", *options, "-o", str(log)]
    done = subprocess.run(
        [*argv, sys.executable, "-c", INSTALL, str(package), str(root)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr.decode()
    return done.returncode


def _calls(log: Path, root: Path) -> list[Call]:
    """The calls under `root` that can change something, in order."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for line in log.read_text().splitlines():
        if match := _CALL.match(line):
            key = match["pid"], match["name"]  # strace counts for each thread
            counts[key] = counts.get(key, 0) + 1
            if str(root) in match["rest"] and not (match["name"].startswith("open") and "O_CREAT" not in line):
                found.append(Call(match["name"], counts[key], line))
    return found


def _no_golden(_directory, _manifest):
    return ()


@pytest.fixture
def packages(tmp_path):
    return [write_tiny_package(tmp_path / f"{n}.ferry", added=float(n)) for n in (1, 2, 3)]


def _store_with(root: Path, *packages: Path) -> Path:
    for package in packages:
        install(package, root, golden=_no_golden)
    return root


def test_all_is_on_the_disk_before_the_state_names_it(packages, tmp_path):
    root = _store_with(tmp_path / "root", *packages[:2])
    log = tmp_path / "log"
    assert _traced(packages[2], root, log) == 0
    calls = _calls(log, root)
    activation = max(i for i, call in enumerate(calls) if call.name.startswith("rename"))
    before, after = calls[:activation], calls[activation + 1 :]

    def last(names: tuple[str, ...], path: Path) -> int:
        """Position of the last of these calls on exactly this path; -1: there was none."""
        exact = re.compile(rf'["<]{re.escape(str(path))}[">]')
        return max((i for i, c in enumerate(before) if c.name.startswith(names) and exact.search(c.line)), default=-1)

    slot = root / "slots" / "a"
    files = [path for path in slot.rglob("*") if path.is_file()]
    assert len(files) == 3
    for file in [*files, root / "state.json.new"]:
        assert last(("fsync",), file) > last(("open", "write", "pwrite"), file) >= 0, file
    for folder in [slot, *(path for path in slot.rglob("*") if path.is_dir())]:
        newest_entry = max(last(("open", "mkdir"), entry) for entry in folder.iterdir())
        assert last(("fsync",), folder) > newest_entry >= 0, folder
    assert last(("fsync",), slot.parent) > last(("mkdir",), slot) >= 0
    assert [call.name for call in after] == ["fsync"]
    assert f"<{root}>" in after[0].line


@pytest.mark.slow
@pytest.mark.parametrize("installed_before", [0, 2], ids=["first install", "update"])
def test_kill_at_every_call(packages, tmp_path, installed_before):
    template = _store_with(tmp_path / "template", *packages[:installed_before])
    template.mkdir(exist_ok=True)
    old = sha256_of(packages[installed_before - 1]) if installed_before else None
    new = sha256_of(packages[2])
    counted = shutil.copytree(template, tmp_path / "counted")
    assert _traced(packages[2], counted, tmp_path / "log") == 0
    points = _calls(tmp_path / "log", counted)
    assert len(points) > 20

    def kill_at(point: Call) -> str:
        case = tmp_path / f"{point.name}-{point.nth}"
        root = shutil.copytree(template, case / "root")
        inject = f"--inject={point.name}:signal=KILL:when={point.nth}"
        assert _traced(packages[2], root, case / "log", inject) == -signal.SIGKILL, f"{point} was not reached"
        hit = _calls(case / "log", root)
        assert (hit[-1].name, hit[-1].nth) == (point.name, point.nth), f"hit {hit[-1]} instead of {point}"

        store = SlotStore(root)
        state = store.read_state()
        served = store.verify(state.active).slot.package_sha256 if state.active else None
        assert served in {old, new}, point
        if state.previous:
            store.verify(state.previous)

        again = install(packages[2], root, golden=_no_golden)
        assert again.changed == (served != new)
        assert store.active().slot.package_sha256 == new
        assert {path.name for path in root.iterdir()} == {"incoming", "lock", "slots", "state.json"}
        shutil.rmtree(case)
        return "new" if served == new else "old"

    with ThreadPoolExecutor(max_workers=2) as pool:
        served = list(pool.map(kill_at, points))
    # The switch is one rename: old before it, new after it.
    assert served == sorted(served, reverse=True)
    assert served.count("new") == 1
