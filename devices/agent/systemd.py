"""What systemd is told of the agent (sd_notify(3)): ready, status, stopping; and that it is alive, while it is.

Without systemd, or in a unit that is not of `Type=notify`, nothing is told and no thread runs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import MutableMapping
from contextlib import ExitStack
from typing import Literal, Self

from ferryman.runtime.alive import silent, watched

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""How often systemd hears of the agent at least, and how late it may hear of a new status."""
EXTEND_S = 30.0
"""A start or a stop that goes on is given so much longer, each time."""
STUCK_S = 120.0
"""A main thread that does not go on for so long hangs: a slow disk, or another process at the outbox, takes 30 s."""
_STATUS_MAX_CHARS = 400


class Service:
    """This process as a service of systemd; use with `with`, around start, serving and stop."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Take what systemd said out of the environment, so that no worker process takes it for its own."""
        self._address = environ.pop("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        self._watchdog_s = _watchdog_s(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
        self._phase: Literal["starting", "serving", "stopping"] = "starting"
        self._status, self._status_at = "", float("-inf")
        self._problem = ""
        self._ended = threading.Event()
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._run, name="systemd", daemon=True)

    def ready(self, status: str) -> None:
        """The agent serves."""
        self._phase = "serving"
        self._status, self._status_at = status, time.monotonic()
        self._tell("READY=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """What it does, in a line; what changes sooner than it may be told is told by a later call."""
        now = time.monotonic()
        if status != self._status and now - self._status_at >= EVERY_S:
            self._status, self._status_at = status, now
            self._tell(f"STATUS={_line(status)}")

    def stopping(self) -> None:
        """The agent ends what it does."""
        self._phase = "stopping"
        self._tell("STOPPING=1", "STATUS=stopping: ends what is under way")

    def __enter__(self) -> Self:
        self._stack.enter_context(watched("the main thread", STUCK_S))
        if self._address:
            if self._watchdog_s is not None:
                faulthandler.enable()  # systemd ends what hangs by SIGABRT: the journal then has every thread's stack
            self._thread.start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._ended.set()
        self._stack.close()
        if error is not None:
            self._tell(f"STATUS={_line(str(error))}")

    def _run(self) -> None:
        every_s = EVERY_S if self._watchdog_s is None else min(EVERY_S, self._watchdog_s / 3)
        while not self._ended.wait(every_s):
            self._look()

    def _look(self) -> None:
        """Tell that the agent is alive, if it is."""
        if problem := "; ".join(silent()):
            if not self._problem:
                log.critical("the agent hangs: %s; systemd is told nothing more, and ends it", problem)
                self._tell(f"STATUS={_line(f'hangs: {problem}')}")
            self._problem = problem
            return
        if self._problem:
            log.warning("the agent goes on after all")
            self._problem, self._status = "", ""
        told = [] if self._watchdog_s is None else ["WATCHDOG=1"]
        if self._phase != "serving":
            told.append(f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1e6:.0f}")
        if told:
            self._tell(*told)

    def _tell(self, *fields: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(EVERY_S)
                out.connect(self._address)
                out.send("\n".join(fields).encode())
        except OSError as error:  # a restart of systemd itself, or no socket: it asks again by its time-outs
            log.debug("systemd is not told %s: %s", fields[0], error)


def _line(text: str) -> str:
    return " ".join(text.split())[:_STATUS_MAX_CHARS]


def _watchdog_s(usec: str, pid: str) -> float | None:
    """How often systemd wants to hear from this process; None: not at all."""
    if not usec or (pid and pid != str(os.getpid())):
        return None
    try:
        found = int(usec) / 1e6
    except ValueError:
        found = 0.0
    if found <= 0:
        log.warning("WATCHDOG_USEC is no number of microseconds: %r; the watchdog is off", usec[:40])
        return None
    return found
