"""Every command of docs/one-machine.md, in order, in one shell: real sshd, mosquitto, agent, collector, repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.console_page import Command, File, difference, read_page
from tests.support.interpreters import DEVICE_PYTHON, ROOT
from tests.support.mosquitto import BINARY, free_port
from tests.support.sshd import SSHD

PAGE = ROOT / "docs" / "one-machine.md"
PORTS = ("1884", "2222", "8081")
END = "--- end of"


class Shell:
    """One that is told its commands line by line, as by a reader."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir()
        env = {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._shell = subprocess.Popen(
            ["bash"], cwd=folder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, typed: str) -> tuple[int, str]:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{\n{typed}\n}} </dev/null\ncode=$?; echo; echo '{END}' $code\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.startswith(END):
                return int(line.split()[-1]), "".join(lines).removesuffix("\n")
            lines.append(line)
        raise AssertionError("the shell ended:\n" + "".join(lines))

    def close(self) -> None:
        self._shell.communicate("kill $(jobs -p) 2>/dev/null\nwait\n", timeout=60)


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    opened = Shell(folder)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not BINARY, reason="mosquitto is not installed")
@pytest.mark.skipif(not SSHD, reason="sshd is not installed")
def test_every_command_of_the_page(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which sshd wants of root alone
    here = dict(zip(PORTS, (str(free_port()) for _ in PORTS), strict=True))
    clone = tmp_path / "ferryman"
    clone.mkdir()
    for python, name in ((Path(sys.executable), ".venv"), (DEVICE_PYTHON, ".venv-device")):
        clone.joinpath(name).symlink_to(python.parent.parent)
    with shell(tmp_path) as reader:
        folder = tmp_path / "home" / "try"
        for step in read_page(PAGE):
            if isinstance(step, File):
                (folder / step.name).write_text(step.text)
                continue
            _follow(reader, step, here, folder)


def _follow(reader: Shell, step: Command, here: dict[str, str], folder: Path) -> None:
    typed, shown = step.typed, step.shown
    if typed.startswith("make "):  # the environments of these tests stand in
        return
    for port, ours in here.items():
        typed = typed.replace(port, ours)
        shown = tuple(line.replace(port, ours) for line in shown)
    code, said = reader.run(typed)
    logs = "".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log")))
    where = f"line {step.line}: {typed}"
    assert code == 0, f"{where}\nexit code {code}\n{said}\n{logs}"
    assert not (wrong := difference(shown, said)), f"{where}\n{wrong}\n{logs}"
