from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices.fleet.inventory import AdbDevice, LocalDevice, MqttDevice, SshDevice
from ferryman.devices.fleet.journal import Journal, check_has_journal
from ferryman.devices.transport.base import CompletedCommand
from ferryman.runtime.contracts.errors import CallerError, DeviceError

FIRST = b"2026-11-27T05:00:01+0000 pi ferryman[7]: online\n-- cursor: s=1;i=a\n"
CLOSED = b"No journal files were opened due to insufficient permissions."
HINT = b"Hint: You are currently not seeing messages from other users and the system."
FOLLOW = """\
from ferryman import logs_cli
logs_cli._FOLLOW_S = 0.01
from ferryman.cli import main
main(["logs", "local", "--follow"])
"""
PI = SshDevice(name="pi", host="pi.lan", user="ferryman")


class Told:
    """A device whose journalctl answers so, time after time."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def run(self, argv, *, timeout_s):
        self.asked.append(argv)
        return CompletedCommand(*self.answers.pop(0))


def test_lines_are_read_once():
    told = Told(
        (0, FIRST, b""),
        (1, b"-- No entries --\n", b""),
        (0, b"-- Boot 2 --\nb\n-- cursor: s=1;i=b\n", b""),
        (0, b"", b""),
    )
    journal = Journal(PI, told)
    assert journal.read(5) == ["2026-11-27T05:00:01+0000 pi ferryman[7]: online"]
    assert journal.read(5) == []
    assert journal.read(5) == ["-- Boot 2 --", "b"]
    assert journal.read(5) == []
    assert [argv[-1] for argv in told.asked] == [
        "--lines=5",
        "--after-cursor=s=1;i=a",
        "--after-cursor=s=1;i=a",
        "--after-cursor=s=1;i=b",
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((1, b"", CLOSED), "usermod -aG systemd-journal ferryman"),
        ((0, b"-- No entries --\n", HINT), "may not read"),
        ((127, b"", b"sh: journalctl: not found"), "ferryman fleet logs --device pi"),
        ((1, b"", b"Failed to open journal: I/O error"), "exit status 1: Failed to open journal"),
        ((-9, b"", b""), "it said nothing"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(answer, message):
    with pytest.raises(DeviceError, match=f"^pi: .*{message}"):
        Journal(PI, Told(answer)).read(5)


def test_lines_of_ones_own_are_shown_though_others_are_not_seen():
    assert len(Journal(PI, Told((0, FIRST, HINT))).read(5)) == 1


def test_who_has_no_shell_has_no_journal():
    for device in (AdbDevice(name="pixel", adb=""), MqttDevice(name="far", broker="mqtt://hub")):
        with pytest.raises(CallerError, match=f"ferryman fleet logs --device {device.name}"):
            check_has_journal(device)
    check_has_journal(PI)
    check_has_journal(LocalDevice())


@pytest.fixture
def journalctl(tmp_path, monkeypatch):
    """A program of that name comes first on PATH, with a journal that grows by a line at each call."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport pathlib\nmark = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "at = int(mark.read_text()) + 1 if mark.exists() else 1\nmark.write_text(str(at))\n"
        "print(f'line {at} \\x1b[2J\\n-- cursor: c{at}')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "devices.toml"))
    return program


def test_the_command_shows_what_cannot_steer_a_terminal(journalctl):
    done = CliRunner().invoke(main, ["logs", "local"])
    assert (done.exit_code, done.output) == (0, "line 1 ?[2J\n")


def test_the_command_follows(journalctl):
    with subprocess.Popen([sys.executable, "-c", FOLLOW], stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert [following.stdout.readline() for _ in range(3)] == [f"line {n} ?[2J\n" for n in (1, 2, 3)]
        following.terminate()
