"""Every command of docs/getting-started-pi.md, in order, on a host of one's own and an emulated Pi just started."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import arm_wheel, device_root, netns
from tests.support.console_page import read_page
from tests.support.first_steps import reader
from tests.support.interpreters import ROOT
from tests.support.mosquitto import BINARY
from tests.support.pi_device import _PLATFORMS

PAGE = ROOT / "docs" / "getting-started-pi.md"
WHY_NOT = (
    device_root.why_not("arm64")
    or arm_wheel.why_not()
    or netns.why_not()
    or ("" if BINARY else "mosquitto is not installed")
    or ("" if shutil.which("openssl") else "openssl is not installed")
)
REPLACED = {
    "make's environment",
    "the cross-build",
    "sudo on the host",
    "~/.ssh of ssh and scp",
    "Raspberry Pi Imager",
    "the Pi's user `pi`",
    "the package index",
    "ssh without a command",
    "systemd on the host",
    "systemd on the Pi",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a Pi's pip would get from the index beside ferryman's own wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--python-version=3.11", f"--dest={folder}"]
    command += [f"--platform={name}_aarch64" for name in _PLATFORMS]
    subprocess.run([*command, f"{arm_wheel.arm_wheel()}[litert,enroll]"], check=True)
    for ours in folder.glob("ferryman-*"):
        ours.unlink()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_every_command_of_the_page(tmp_path: Path, wheels: Path) -> None:
    steps = read_page(PAGE)
    with reader(tmp_path, wheels, "cortex-a72") as follower:
        try:
            for step in steps:
                follower.follow(step)
        finally:
            for typed, took_s in follower.took_s:
                print(f"{took_s:6.1f} s  {typed}", file=sys.stderr)
            for what in follower.again:
                print(f"asked again: {what}", file=sys.stderr)
            for what, instead in follower.replaced.items():
                print(f"instead of {what}: {instead}", file=sys.stderr)
        assert set(follower.replaced) == REPLACED
