"""Reading /proc and /sys, where any file may be missing, forbidden, garbage, or gone in the middle."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_READ_MAX_BYTES = 1 << 20
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[0-9]{1,9}")


class SensorError(Exception):
    """A source cannot be read; becomes `Unavailable` before it leaves the profiler."""


def read_text(path: Path) -> str:
    """The file's text, without white space and NULs around it.

    Raises:
        SensorError: it cannot be read, or holds no text; or it is a FIFO or a device, which may never answer.
    """
    try:
        with open(path, "rb", opener=_open) as file:  # Path.open takes no opener
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SensorError(f"{path}: no regular file")
            data = file.read(_READ_MAX_BYTES)
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}") from error
    text = data.decode(errors="replace").strip("\0 \t\r\n")
    if not text:
        raise SensorError(f"{path}: empty")
    return text


def _open(path: str, flags: int) -> int:
    """Not waiting for anyone to write into a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def read_int(path: Path) -> int:
    """The one integer the file holds.

    Raises:
        SensorError: it cannot be read, or holds something else.
    """
    return to_int(read_text(path), str(path))


def to_int(text: str, name: str) -> int:
    """The one integer the text is.

    Raises:
        SensorError: it is something else.
    """
    if not _INTEGER.fullmatch(text):
        raise SensorError(f"{name}: expected an integer, found {text[:40]!r}")
    return int(text)


def paths(folder: Path, pattern: str) -> list[Path]:
    """What matches, in the order people count: zone2 before zone10.

    Raises:
        SensorError: a folder on the way cannot be listed.
    """
    try:
        found = list(folder.glob(pattern))
    except OSError as error:
        raise SensorError(f"{folder}: {error.strerror}") from error
    return sorted(found, key=lambda path: ([int(n) for n in _NUMBER.findall(str(path))], path))
