"""What a process takes in memory, as the kernel counts it (Linux /proc)."""

from __future__ import annotations

import re
from pathlib import Path

from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.record import Unavailable

_LINE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)
_KIB = 1024
_RESET_PEAK = "5"


def read_memory(pid: int | str = "self", proc: Path = Path("/proc")) -> Memory | Unavailable:
    """Resident, proportional, unique and peak set sizes of a process, in bytes.

    Source: /proc/PID/smaps_rollup and VmHWM of /proc/PID/status (kernel documentation, filesystems/proc).
    """
    folder = proc / str(pid)
    try:
        rollup = _fields(folder / "smaps_rollup")
        status = _fields(folder / "status")
        return Memory(
            rss_bytes=rollup["Rss"],
            pss_bytes=rollup["Pss"],
            uss_bytes=rollup["Private_Clean"] + rollup["Private_Dirty"],
            peak_rss_bytes=status["VmHWM"],
            anonymous_bytes=rollup["Pss_Anon"],
            file_bytes=rollup["Pss_File"],
        )
    except OSError as error:
        return Unavailable(reason=f"{error.filename}: {error.strerror}")
    except KeyError as error:
        return Unavailable(reason=f"{folder}: the kernel does not report {error.args[0]}")


def read_rss_bytes(pid: int | str = "self", proc: Path = Path("/proc")) -> int | Unavailable:
    """Resident set size alone, which costs the kernel no walk over the pages."""
    path = proc / str(pid) / "status"
    try:
        return _fields(path)["VmRSS"]
    except OSError as error:
        return Unavailable(reason=f"{path}: {error.strerror}")
    except KeyError:
        return Unavailable(reason=f"{path}: no VmRSS")


def reset_peak(pid: int | str = "self", proc: Path = Path("/proc")) -> bool:
    """Let VmHWM count from now on; False where the kernel does not let us."""
    try:
        (proc / str(pid) / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _fields(path: Path) -> dict[str, int]:
    return {name: int(kib) * _KIB for name, kib in _LINE.findall(path.read_text())}
