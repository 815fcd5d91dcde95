"""The emulated Pi itself: what it is, what it shows, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.device_root import Root, unpacked_root, why_not
from tests.support.interpreters import ROOT
from tests.support.pi import BOARD_OF, CORES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
HWCAP = "import ctypes, platform; print(platform.machine(), hex(ctypes.CDLL(None).getauxval(16)))"
PI_HWCAP = 0x8FB
"""fp, asimd, evtstrm, aes, pmull, sha1, sha2, crc32, cpuid: no atomics, no dot products, no SVE."""
KILLED = """
import sys, time
from pathlib import Path
from tests.support.device_root import unpacked_root
with unpacked_root("arm64", Path(sys.argv[1])) as root:
    root.popen(["sleep", "1000"])
    print(root.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    with unpacked_root("arm64", tmp_path_factory.mktemp("pi")) as root:
        yield root


@pytest.mark.parametrize("cpu", BOARD_OF)
def test_it_is_the_processor_asked_for(root: Root, cpu: str) -> None:
    assert root.run(["python3", "-c", HWCAP], cpu=cpu).stdout.split() == ["aarch64", hex(PI_HWCAP)]


def test_nothing_of_this_machine_shows(root: Root) -> None:
    shown = root.run(["sh", "-c", "nproc; cat /proc/cpuinfo /sys/firmware/devicetree/base/model; ps -eo comm; env"])
    assert shown.stdout.count("CPU part\t: 0xd08") == CORES
    assert "Raspberry Pi 4 Model B" in shown.stdout
    assert "pytest" not in shown.stdout
    assert "FERRYMAN" not in shown.stdout


def test_input_and_failure_come_back(root: Root) -> None:
    assert root.run(["cat"], input=b"as it was").stdout == "as it was"
    with pytest.raises(AssertionError, match=r"exit code 3\nhere\n"):
        root.run(["sh", "-c", "echo here; exit 3"])


def test_who_starts_a_program_can_end_it(root: Root) -> None:
    trap = root.popen(
        ["sh", "-c", "trap 'echo ended; exit' TERM; echo on; while :; do sleep 0.1; done"], stdout=subprocess.PIPE
    )
    assert trap.stdout is not None
    assert trap.stdout.readline() == "on\n"
    trap.terminate()
    assert trap.stdout.readline() == "ended\n"
    trap.wait(60)
    trap.stdout.close()


def test_nothing_stays_of_one_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as test:
        assert test.stdout is not None
        pid = int(test.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        test.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "process 1 of the root outlives the one that started it"
        time.sleep(0.05)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
