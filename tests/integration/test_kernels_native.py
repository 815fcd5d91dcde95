"""The kernel library's self-check: under sanitizers here, and for 64-bit Arm under an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ferryman.runtime import kernels
from tests.support.interpreters import ROOT

pytestmark = pytest.mark.slow
TOOLCHAIN = ROOT / "runtime" / "native" / "aarch64.cmake"


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def build(folder: Path, *options: str) -> Path:
    """The self-check's program."""
    for command in (
        ["cmake", "-S", ROOT / "tests" / "native", "-B", folder, *options],
        ["cmake", "--build", folder, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "check_kernels"


def checked(*command: str | Path, **environment: str) -> list[str]:
    """Instruction sets that the self-check went through without a fault."""
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.partition(":")[0] for line in done.stdout.splitlines()]


def test_under_address_and_undefined_behaviour_sanitizers(tmp_path):
    need("cmake", "g++")
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-var-tracking"
    program = build(tmp_path, f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    assert checked(program, "150", "7") == list(kernels.isas())


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory):
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64-static")
    return build(tmp_path_factory.mktemp("arm"), f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72", "cortex-a76", "max"])
def test_on_64_bit_arm(arm_program, cpu):
    """Emulated: shows that it is right, and says nothing about speed."""
    command = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", arm_program, "60"]
    dot = ["neon_dot"] if cpu in {"cortex-a76", "max"} else []
    assert checked(*command, QEMU_CPU=cpu) == [*dot, "neon", "scalar"]
