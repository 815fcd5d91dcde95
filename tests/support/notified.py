"""What systemd would hear: the socket of sd_notify(3)."""

from __future__ import annotations

import contextlib
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
        self._seen = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1) if abstract else self.address)

    def environment(self, watchdog_s: float | None = None) -> dict[str, str]:
        """What systemd says to a service."""
        told = {"NOTIFY_SOCKET": self.address}
        return told if watchdog_s is None else {**told, "WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"}

    def read(self) -> list[str]:
        """What nobody looked at yet; waits for nothing."""
        self._receive()
        found, self._seen = self.heard[self._seen :], len(self.heard)
        return found

    def wait_for(self, condition: Callable[[str], bool], timeout_s: float = 60.0) -> str:
        """The first field that meets `condition` that nobody looked at yet; what follows it is still to see."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._receive()
            while self._seen < len(self.heard):
                self._seen += 1
                if condition(field := self.heard[self._seen - 1]):
                    return field
            assert time.monotonic() < deadline, f"waited in vain; heard: {self.heard}"
            time.sleep(0.01)

    def _receive(self) -> None:
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard += self._socket.recv(65536).decode().split("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
