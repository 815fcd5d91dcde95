"""A disk in memory that can be filled to the last page, and emptied, at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_PAGE = 4096


class Disk:
    """A tmpfs at `place`; takes root."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        self.place = place
        self._size = size_bytes
        place.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", str(place))

    def fill(self) -> None:
        """Leave no room: the disk shrinks to what is on it."""
        for _ in range(20):
            disk = os.statvfs(self.place)
            used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
            try:
                _run("mount", "-o", f"remount,size={used + _PAGE}", str(self.place))
            except RuntimeError:
                continue  # it grew meanwhile
            return
        raise RuntimeError(f"{self.place} grows too fast to be filled")

    def free(self) -> None:
        _run("mount", "-o", f"remount,size={self._size}", str(self.place))

    def close(self) -> None:
        _run("umount", "-l", str(self.place))


def can_mount() -> bool:
    return os.geteuid() == 0


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
