"""This machine as a device."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ferryman.devices.transport.base import CHUNK_BYTES, CompletedCommand, Progress, check_output
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
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        except FileNotFoundError as error:
            return CompletedCommand(_NOT_FOUND, b"", str(error).encode())
        with process:
            try:
                stdout, stderr = _listen(process, f"`{argv[0]}` on this machine", time.monotonic() + timeout_s)
            except (TimeoutError, subprocess.TimeoutExpired):
                raise RequestTimeout(f"{argv[0]} on this machine did not end within {timeout_s:g} s") from None
            finally:
                process.kill()  # does nothing to one that has ended
        return CompletedCommand(process.returncode, stdout, stderr)

    def close(self) -> None:
        """See `Transport.close`."""


def _listen(process: subprocess.Popen[bytes], what: str, deadline: float) -> list[bytes]:
    """What a program says on stdout and stderr, once it has ended."""
    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe]
    said = {pipe.fileno(): bytearray() for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            if (left_s := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            for key, _ in selector.select(left_s):
                if not (chunk := os.read(key.fd, CHUNK_BYTES)):
                    selector.unregister(key.fd)
                said[key.fd] += chunk
                check_output(said[key.fd], what)
    process.wait(max(0.0, deadline - time.monotonic()))
    return [bytes(one) for one in said.values()]
