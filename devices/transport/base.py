"""What carries files and commands to a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from ferryman.runtime.contracts.errors import DeviceError

Progress = Callable[[int, int], None]
"""Called with the bytes sent and the bytes there are to send."""
CHUNK_BYTES = 1 << 20
OUTPUT_MAX_BYTES = 4 << 20
"""The most a command may say on either of its outputs."""


@dataclass(frozen=True)
class CompletedCommand:
    """How a command on the device ended."""

    exit_status: int
    """Negative: the signal that killed it."""
    stdout: bytes
    stderr: bytes


def check_output(said: bytes | bytearray, what: str, most_bytes: int = OUTPUT_MAX_BYTES) -> None:
    """See that `what` has not said too much by now.

    Raises:
        DeviceError: it has.
    """
    if len(said) > most_bytes:
        raise DeviceError(
            f"{what} said more than {most_bytes:,} bytes, which no ferryman does; see `command` in the devices file"
        )


class Transport(Protocol):
    """A connection to one device; used by one thread, closed by `with` or `close`."""

    def put(self, local: Path, remote: str, progress: Progress) -> None:
        """Copy a file to an absolute path on the device, whose folder exists.

        Raises:
            DeviceError: the device cannot write it; a partial file may remain.
            LinkError: the connection broke.
        """

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        """Run a program on the device to its end.

        Raises:
            DeviceError: it said more than OUTPUT_MAX_BYTES; it may still run.
            RequestTimeout: it did not end in time; it may still run.
            LinkError: the connection broke; it may still run.
        """

    def close(self) -> None:
        """Hang up; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
