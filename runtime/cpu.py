"""What the processor can do, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_X86 = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "cache size")
_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features", "Hardware")
_RISC_V = ("isa", "uarch", "mvendorid", "marchid", "mimpid")
_IDENTITY = frozenset((*_X86, *_ARM, *_RISC_V))


def emulator(process: Path = Path("/proc/self")) -> str:
    """The program that plays the processor for us, such as `qemu-aarch64-static`; empty: none, as far as it tells.

    qemu's user mode answers for `exe` itself, but not for the same link of a thread: there the kernel speaks.

    Args:
        process: of a single thread or more; only its first is looked at.
    """
    try:
        told = (process / "exe").readlink()
        first = min((process / "task").iterdir(), key=lambda thread: int(thread.name))
        real = (first / "exe").readlink()
    except (OSError, ValueError):
        return ""
    return real.name if real.name.startswith("qemu-") and real != told else ""


def instruction_sets(cpuinfo: str) -> frozenset[str]:
    """Instruction sets every core has, under the kernel's names (`avx2`, `asimddp`, ...).

    Args:
        cpuinfo: text of /proc/cpuinfo; x86 says `flags`, Arm `Features`, RISC-V `isa`.
    """
    cores = [
        frozenset(value.split())
        for line in cpuinfo.splitlines()
        for key, _, value in [line.partition(":")]
        if key.strip() in {"flags", "Features", "isa"}
    ]
    return frozenset.intersection(*cores) if cores else frozenset()


def fingerprint(cpuinfo: str) -> str:
    """What programs choose their instructions by: the same text on the same kind of processor, whatever its clock.

    Args:
        cpuinfo: text of /proc/cpuinfo.
    """
    lines = {
        f"{key.strip()}: {value.strip()}"
        for line in cpuinfo.splitlines()
        for key, _, value in [line.partition(":")]
        if key.strip() in _IDENTITY
    }
    return "\n".join(sorted(lines))
