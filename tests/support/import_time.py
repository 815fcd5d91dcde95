"""How long the device side takes to start, on this machine: processor time of fresh processes, beside Python's own."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from pathlib import Path

from tests.support.interpreters import DEVICE_PYTHON

STARTS = 15
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import ferryman.runtime": ("-c", "import ferryman.runtime"),
    "ferryman agent --help": (str(DEVICE_PYTHON.with_name("ferryman")), "agent", "--help"),
    "import numpy": ("-c", "import numpy"),
    "import ferryman.devices.agent.agent": ("-c", "import ferryman.devices.agent.agent"),
}


def processor_ms(command: list[str | Path]) -> float:
    """User and system time of one run.

    Raises:
        RuntimeError: it failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return (used.ru_utime + used.ru_stime) * 1e3


def import_times() -> str:
    """A line a command: the median over starts that take turns; the first, which compiles, does not count."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(STARTS + 1):
        for name, arguments in COMMANDS.items():
            taken[name].append(processor_ms([DEVICE_PYTHON, *arguments]))
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    bare = medians["python -c pass"]
    rows = [f"  {name:<38}{median:7.0f} ms{median / bare:7.1f} x" for name, median in medians.items()]
    head = f"start: median processor time of {STARTS}, here ({platform.machine()}), not on a device; x: beside Python"
    return "\n".join([head, *rows])
