"""A process of a chaos run: started, killed, frozen, and started again where it ended by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLOCK = ROOT / "tests" / "chaos" / "clock"
_AGAIN_S = 0.5


class Process:
    """One command; its output goes to NAME.log, its wall clock is shifted by what is in NAME.clock."""

    def __init__(self, name: str, folder: Path, command: Sequence[str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.ends: list[int] = []
        """Exit statuses where it ended though nobody ended it."""
        self._clock = folder / f"{name}.clock"
        self._clock.write_bytes(bytes(8))
        self._command = list(command)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{CLOCK}:{ROOT}",
            "CHAOS_CLOCK": str(self._clock),
            "XDG_STATE_HOME": str(self.log.parent),
        }
        with self._lock, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environment
            )

    def end(self, how: signal.Signals = signal.SIGKILL, wait_s: float = 20.0) -> None:
        """End it, if it runs; one that does not obey is killed."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def signal(self, what: signal.Signals) -> None:
        with self._lock:
            if self._process is not None:
                self._process.send_signal(what)

    def shift(self, by_ns: int) -> None:
        with self._clock.open("r+b") as file:  # not made anew: the process has it mapped
            file.write(by_ns.to_bytes(8, "little", signed=True))

    def supervise(self) -> None:
        """Start it again, as an init system would, where it has ended by itself."""
        with self._lock:
            status = None if self._process is None else self._process.poll()
        if status is not None:
            self.ends.append(status)
            time.sleep(_AGAIN_S)
            self._process = None
            self.start()
