"""A real mosquitto on a free loopback port."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from ferryman.devices.broker import BrokerConfig

BINARY = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")


PORTS, WORKERS = range(10_000, 32_000), 8
"""Below those that Linux gives to whoever connects (32768 and up): what is chosen here is free until a server takes it.
Each of so many of pytest's worker processes has a part of its own."""


def _own_ports() -> Iterator[int]:
    part = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    own = PORTS[part::WORKERS]
    yield from itertools.islice(itertools.cycle(own), os.getpid() % len(own), None)  # another run may be under way


_candidates = _own_ports()
_choosing = threading.Lock()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and nobody else is told of."""
    while True:
        with _choosing:
            port = next(_candidates)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_port(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


class Mosquitto:
    """Start, kill and start again; use with `with`."""

    def __init__(self, folder: Path, config: str = "", *, listen: str = "127.0.0.1", port: int = 0) -> None:
        if BINARY is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        self.port = port or free_port()
        self.config = BrokerConfig(host="127.0.0.1", port=self.port)
        self._file = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        anonymous = "" if "allow_anonymous" in config else "allow_anonymous true\n"
        user = "user root\n" if os.getuid() == 0 else ""  # else it becomes one that may not read our files
        kept = "" if "persistence" in config else "persistence false\n"
        self._file.write_text(f"listener {self.port} {listen}\n{kept}{user}{anonymous}{config}\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([BINARY, "-c", str(self._file)], stdout=log, stderr=log)
        try:
            wait_for_port(self.port)
        except OSError as error:
            self.kill()
            raise AssertionError(f"mosquitto did not start: {self._log.read_text()}") from error

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def reload(self) -> None:
        """Have it read its access rules again."""
        self.signal(signal.SIGHUP)

    def signal(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
