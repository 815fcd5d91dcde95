"""What the processor can do, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


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
