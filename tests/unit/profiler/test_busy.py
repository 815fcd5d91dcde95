"""What others take of the processors."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ferryman.profiler.busy import Busy
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import write_tree

TICK = os.sysconf("SC_CLK_TCK")


def stat(**seconds):
    fields = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
    return "cpu  " + " ".join(str(round(seconds.get(name, 0) * TICK)) for name in fields) + "\ncpu0 1 2 3\n"


def share(tmp_path, before, after):
    root = write_tree(tmp_path, {"proc/stat": before})
    busy = Busy(root)
    write_tree(root, {"proc/stat": after})
    return busy.share()


def test_what_is_neither_idle_nor_ours_is_others(tmp_path):
    before, after = stat(user=10, idle=100), stat(user=13, system=1, idle=103, iowait=1, guest=3)
    assert share(tmp_path, before, after) == pytest.approx(0.5, abs=0.02)  # of 8 s, and this process took next to none


def test_an_idle_device_is_not_busy(tmp_path):
    assert share(tmp_path, stat(idle=100), stat(idle=110)) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("text", ["", "cpu  1 2\n", "cpu  a b c d e f\n", "intr 5\n", "cpu  -1 2 3 4 5 6 7 8\n"])
def test_what_makes_no_sense_is_unavailable(tmp_path, text):
    assert isinstance(share(tmp_path, stat(idle=1), text), Unavailable)
    assert isinstance(share(tmp_path, text, stat(idle=1)), Unavailable)


def test_no_time_gone_by_is_unavailable(tmp_path):
    assert isinstance(share(tmp_path, stat(idle=1), stat(idle=1)), Unavailable)


def test_our_own_work_is_not_others_and_a_hog_is():
    """One second of work on every core but ours, beside ours: on the machine this runs on."""
    hog = "while True: pass"
    busy = Busy()
    until = time.monotonic() + 1
    while time.monotonic() < until:
        pass
    alone = busy.share()
    with subprocess.Popen([sys.executable, "-c", hog]) as process:
        busy = Busy()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            pass
        beside = busy.share()
        process.kill()
    assert beside > 0.3 / (os.cpu_count() or 1)
    assert 0 <= alone <= 1
