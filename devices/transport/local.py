"""This machine as a device."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ferryman.devices.transport.base import CHUNK_BYTES, CompletedCommand, Progress
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import DeviceError, RequestTimeout

_NOT_FOUND = 127  # as a shell answers


class LocalTransport(Closing):
    """Implements `Transport` without a network."""

    def put(self, local: Path, remote: str, progress: Progress) -> None:
        """See `Transport.put`."""
        total = local.stat().st_size
        done = 0
        progress(done, total)
        try:
            with local.open("rb") as source, Path(remote).open("wb") as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    done += len(chunk)
                    progress(done, total)
        except OSError as error:
            raise DeviceError(f"this machine cannot write {remote}: {error.strerror}") from error

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        """See `Transport.run`."""
        try:
            done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False)
        except FileNotFoundError as error:
            return CompletedCommand(_NOT_FOUND, b"", str(error).encode())
        except subprocess.TimeoutExpired:
            raise RequestTimeout(f"{argv[0]} on this machine did not end within {timeout_s:g} s") from None
        return CompletedCommand(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        """See `Transport.close`."""
