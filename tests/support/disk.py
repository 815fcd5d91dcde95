"""A disk that is soon full; mounting one takes root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest


@contextmanager
def small_disk(place: Path, size: str = "1m") -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_free(place: Path) -> int:
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


class CardDisk:
    """An ext4 file system like that of an SD card: made read-only by an operator, or by the kernel when it fails."""

    def __init__(self, place: Path, device: str) -> None:
        self.place, self._device = place, device

    def remount(self, mode: Literal["ro", "rw"]) -> None:
        """As an operator, or a start with a read-only root; refused by the kernel while a file is open for writing."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.place)], check=True)

    def fail(self) -> None:
        """Have the kernel find an error there: `errors=remount-ro` makes it read-only, for who has files open, too."""
        Path(f"/sys/fs/ext4/{self._device}/trigger_fs_error").write_text("1")


@contextmanager
def card_disk(place: Path, size_mb: int = 16) -> Iterator[CardDisk]:
    """Mounted at `place`; whoever has files open there must be gone at the end."""
    if os.getuid():
        pytest.skip("mounting a file system takes root")
    image = place.with_name(f"{place.name}.img")
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    place.mkdir()
    for command in (
        ["mkfs.ext4", "-q", str(image)],
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount an ext4 image here: {command[0]}: {done.stderr.strip()}")
    try:
        found = ["findmnt", "-no", "SOURCE", "--mountpoint", str(place)]
        device = Path(subprocess.run(found, capture_output=True, text=True, check=True).stdout.strip()).name
        assert device.startswith("loop"), device
        yield CardDisk(place, device)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
