"""The agent as a device runs it: `ferryman agent` of the device environment, a process of its own."""

from __future__ import annotations

import fcntl
import subprocess
import termios
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Delivery, Link
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode
from tests.support.interpreters import DEVICE_PYTHON


class AgentProcess:
    """Use with `with`; whatever it started is gone afterwards."""

    def __init__(self, broker: BrokerConfig, root: Path, device: str = "pi", options: Sequence[str] = ()) -> None:
        self.log = root.with_name(f"{root.name}.log")
        url = f"mqtt://{broker.host}:{broker.port}"
        command = [DEVICE_PYTHON.with_name("ferryman"), "-v", "agent"]
        self._command = [*map(str, command), "--device", device, "--broker", url, "--root", str(root), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def workers(self) -> list[psutil.Process]:
        """Processes that run artifacts for it."""
        return self.process.children(recursive=True)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, timeout_s: float) -> int:
        """The exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        children = self.workers() if self._process.poll() is None else []
        self._process.kill()
        self._process.wait(60)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue


def unread_bytes(process: psutil.Process) -> int:
    """What waits in the pipe that is its standard input."""
    count = array("i", [0])
    with Path(f"/proc/{process.pid}/fd/0").open("rb", buffering=0) as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


class StatusWatch:
    """Every status a device published, from the retained one on; use with `with`."""

    def __init__(self, broker: BrokerConfig, device: str = "pi") -> None:
        self.seen: list[Status] = []
        self._link = Link(broker, f"watch-{device}")
        self._link.subscribe(topics.status(device), self._on_status)

    def _on_status(self, delivery: Delivery) -> None:
        self.seen.append(decode(delivery.payload, Status))

    def wait_for(self, condition: Callable[[Status], bool], timeout_s: float = 60.0) -> Status:
        """The last status, once it meets `condition`."""
        deadline = time.monotonic() + timeout_s
        while not (self.seen and condition(self.seen[-1])):
            assert time.monotonic() < deadline, f"waited in vain; seen: {self.seen}"
            time.sleep(0.02)
        return self.seen[-1]

    def __enter__(self) -> Self:
        self._link.start()
        self._link.wait_ready(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.stop()
