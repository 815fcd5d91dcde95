"""What a process does to files, by strace: its calls in order, and the same process killed at any of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# `?`: some processors have only the ...at calls.
CHANGING = (
    "?openat,?open,?creat,?write,?writev,?pwrite64,?fsync,?fdatasync,?rename,?renameat,?renameat2,?unlink,?unlinkat,"
    "?rmdir,?mkdir,?mkdirat,?link,?linkat,?symlink,?symlinkat,?truncate,?ftruncate,?fallocate,?chmod,?fchmod,"
    "?fchmodat,?utimensat,?flock"
)
STEP = "STEP "
"""What a traced program writes to its standard error before a step's name."""
_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$")
_STEP = re.compile(rf'^2<[^"]*"{STEP}(?P<step>[^"\\]+)')


def why_not() -> str:
    """Why strace cannot inject here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "--inject=fsync:signal=KILL:when=1", "true"], capture_output=True, check=False
    )
    return tried.stderr.decode().strip() if tried.returncode else ""


@dataclass(frozen=True)
class Call:
    """The `nth` call of its name, which touches what is looked at."""

    name: str
    nth: int
    line: str
    step: str
    """The last one that the program told of; empty: none yet."""


@dataclass(frozen=True)
class Traced:
    """How a traced program ended."""

    code: int
    """Negative: the signal."""
    stderr: str


def traced(program: str, arguments: tuple[str, ...], log: Path, *options: str) -> Traced:
    """Run a Python program under strace."""
    argv = ["strace", "-f", "-y", "-s", "64", "-e", f"trace={CHANGING}", *options, "-o", str(log)]
    done = subprocess.run(
        [*argv, sys.executable, "-c", program, *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return Traced(done.returncode, done.stderr.decode())


def calls(log: Path, root: Path) -> list[Call]:
    """The calls under `root` that can change something, in order."""
    counts: dict[tuple[str, str], int] = {}
    found: list[Call] = []
    step = ""
    for line in log.read_text().splitlines():
        if match := _CALL.match(line):
            key = match["pid"], match["name"]  # strace counts for each thread
            counts[key] = counts.get(key, 0) + 1
            if told := _STEP.match(match["rest"]):
                step = told["step"]
            elif str(root) in match["rest"] and not (match["name"].startswith("open") and "O_CREAT" not in line):
                found.append(Call(match["name"], counts[key], line, step))
    return found


def killed_at(program: str, arguments: tuple[str, ...], root: Path, log: Path, point: Call) -> None:
    """Run it until it makes the call, which is its last; the call itself is not made."""
    ended = traced(program, arguments, log, f"--inject={point.name}:signal=KILL:when={point.nth}")
    assert ended.code == -signal.SIGKILL, f"{point} was not reached: {ended}"
    hit = calls(log, root)
    assert (hit[-1].name, hit[-1].nth) == (point.name, point.nth), f"hit {hit[-1]} instead of {point}"
