"""The Arm inner loop, as llvm-mca predicts it: no time can be measured where there is no such processor.

The loop is found in the compiler's own assembly of isa_neon.cpp: the one with the most selections, which give carries.
Its instructions are set beside the least that this way of counting needs for a pair of 128-bit registers of weights:
two exclusive ors, a selection, a population count and an addition, with neither loads nor moves.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from tests.benchmarks.frame import CannotRun, Figure, Part, figure, progress
from tests.support.interpreters import ROOT

COMPILER, PREDICTOR = "aarch64-linux-gnu-g++", "llvm-mca"
SOURCE = ROOT / "runtime" / "native" / "kernels" / "isa_neon.cpp"
CORES = ("cortex-a72", "cortex-a76")
_MACS_A_COUNT = 256
"""Of one population count, for two 128-bit registers of weights."""
_LEAST_INSTRUCTIONS = 5
_SELECTIONS = ("bsl", "bit", "bif")
_ITERATIONS = 1000


def predict() -> Iterator[Figure]:
    """Cycles and instructions for 1,000 multiply-accumulates."""
    if missing := [tool for tool in (COMPILER, PREDICTOR) if shutil.which(tool) is None]:
        raise CannotRun(f"{' and '.join(missing)} not installed: apt-get install g++-aarch64-linux-gnu llvm")
    progress("the Arm loop, predicted")
    loop = _loop()
    counts = sum(line.startswith("cnt") for line in loop)
    thousands = counts * _MACS_A_COUNT / 1000
    yield figure("NEON loop: instructions a 1,000 MACs", [len(loop) / thousands])
    yield figure("  the least for 128-bit registers", [1000 * _LEAST_INSTRUCTIONS / _MACS_A_COUNT])
    for core in CORES:
        cycles = _cycles(loop, core) / thousands
        yield figure(f"  predicted for {core}: cycles a 1,000 MACs", [cycles])
        yield figure(f"  predicted for {core}: MACs a cycle", [1000 / cycles])


def _loop() -> list[str]:
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-S", "-o", "-"]
    done = subprocess.run([COMPILER, *flags, SOURCE], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.L\d+:", line)}
    bodies = []
    for at, line in enumerate(lines):
        jump = re.fullmatch(r"\tb(?:\.?[a-z]{2})\t(\.L\d+)", line)
        if jump and labels[jump.group(1)] < at:
            body = [one.strip() for one in lines[labels[jump.group(1)] + 1 : at + 1]]
            if not any(one.startswith(".") for one in body):  # an inner loop has no label in it
                bodies.append(body)
    return max(bodies, key=lambda body: sum(one.startswith(_SELECTIONS) for one in body))


def _cycles(loop: list[str], core: str) -> float:
    """Cycles of one iteration."""
    command = [PREDICTOR, "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={_ITERATIONS}"]
    done = subprocess.run(
        command,
        input="\n".join(["loop:", *(re.sub(r"\.L\d+", "loop", one) for one in loop)]),
        capture_output=True,
        text=True,
        check=True,
    )
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total, done.stdout
    return int(total.group(1)) / _ITERATIONS


PARTS = (Part((), predict),)
