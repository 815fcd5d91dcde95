"""What systemd would hear: the socket of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self


class NotifySocket:
    """A datagram socket with everything that was told through it; use with `with`."""

    def __init__(self, folder: Path, *, abstract: bool = False) -> None:
        self.address = f"@ferryman-test-{os.getpid()}-{time.monotonic_ns()}" if abstract else str(folder / "notify")
        self.heard: list[str] = []
        """Every field, in order."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1) if abstract else self.address)

    def environment(self, watchdog_s: float | None = None) -> dict[str, str]:
        """What systemd says to a service."""
        told = {"NOTIFY_SOCKET": self.address}
        return told if watchdog_s is None else {**told, "WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"}

    def read(self) -> list[str]:
        """What came since the last look; waits for nothing."""
        self._socket.setblocking(False)
        found: list[str] = []
        while True:
            try:
                found += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                self.heard += found
                return found

    def wait_for(self, condition: Callable[[str], bool], timeout_s: float = 10.0) -> str:
        """The first field from now on that meets `condition`."""
        deadline = time.monotonic() + timeout_s
        while True:
            for field in self.read():
                if condition(field):
                    return field
            assert time.monotonic() < deadline, f"waited in vain; heard: {self.heard}"
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
