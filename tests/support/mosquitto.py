"""A real mosquitto on a free loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import pytest

from ferryman.devices.broker import BrokerConfig

BINARY = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, timeout_s: float = 10.0) -> None:
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
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
