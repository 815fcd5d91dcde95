"""One at a time: a folder on the phone, held while a beat in it goes on.

Whoever is gone holds nothing: the phone was started anew since, or its process on this machine is dead, or no beat came
for a minute. Every line that changes something first looks whether the lock is still its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from ferryman.devices.fleet.phone.phone import Phone
from ferryman.runtime.contracts.errors import BusyError, FerrymanError
from ferryman.runtime.contracts.numbers import whole

BEAT_S = 10.0
STALE_S = 60.0
_UNNAMED_S = 3.0
"""Between making the folder and writing whose it is lies an instant, unless its maker died there."""
_POLL_S = 0.25
_OWNER_WORDS = 5
_LOST = 75
"""Exit status of a line that found the lock someone else's."""
_NOW = (
    "B=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null); U=$(cat /proc/uptime 2>/dev/null); U=${U%%.*}; "
    '[ -n "$U" ] || U=$(date +%s 2>/dev/null)'
)
"""Where the time since boot may not be read, the wall clock tells as well how long ago the last beat was."""
_held: set[str] = set()
"""Tokens of this process."""


@dataclass(frozen=True)
class Holder:
    """Who holds it, as read on the phone."""

    owner: str
    """`TOKEN HOST PID START`, and the phone's boot; empty where nobody has written it yet."""
    beat_s: float
    """By the clock of `uptime_s`."""
    boot: str
    uptime_s: float
    """Since the phone's boot, or of its wall clock where that cannot be read; 0 where neither can."""

    def gone(self, here: str, start_of: Callable[[int], int | None], held: AbstractSet[str]) -> bool:
        """Whether nobody is behind it any more.

        Args:
            here: this machine, see `_here`.
            start_of: when a process of it started; None: there is no such process.
            held: tokens of this very process.
        """
        words = self.owner.split(" ")
        if len(words) != _OWNER_WORDS:
            return True
        token, where, _, _, boot = words
        pid, start = whole(words[2]), whole(words[3])
        if pid is None or start is None:
            return True
        if boot != self.boot or self.beat_s > self.uptime_s or self.uptime_s - self.beat_s > STALE_S:
            return True
        if where != here:
            return False
        return start_of(pid) != start or (pid == os.getpid() and token not in held)

    def __str__(self) -> str:
        _, where, pid, *_ = self.owner.split(" ")
        return f"process {pid} on {where}"


class Lock:
    """Held between `take` and `release`."""

    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self.token = secrets.token_hex(8)
        self._owner = f"{self.token} {_here()} {os.getpid()} {_start_of(os.getpid())}"
        self._guard = f'case "$(cat "$R/lock/owner" 2>/dev/null)" in "{self.token} "*) ;; *) exit {_LOST};; esac; '
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="phone lock", daemon=True)

    def do(self, line: str, *, timeout_s: float = 60.0) -> str:
        """See `Phone.do`; the line is not done where the lock was taken from us.

        Raises:
            BusyError: it was.
            DeviceError, LinkError: see `Phone.do`.
        """
        done = self._phone.ask(self._guard + line, timeout_s=timeout_s)
        if done.exit_status == _LOST:
            raise BusyError(f"{self._phone.name}: someone else took over, for nothing was heard from here; do it again")
        if done.exit_status:
            raise self._phone.refusal(done)
        return done.stdout.decode(errors="replace")

    def take(self) -> None:
        """Take it, from whoever is gone.

        Raises:
            BusyError: someone is at work on the phone.
            DeviceError: the root cannot be written.
            LinkError: the link broke.
        """
        deadline = time.monotonic() + _UNNAMED_S
        while (holder := self._try()) is not None:
            if not holder.owner and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            elif not holder.owner or holder.gone(_here(), _start_of, _held):
                self._evict(holder.owner)
            else:
                raise BusyError(f"{self._phone.name}: {holder} is at work on the phone; {self._advice(holder)}")
        _held.add(self.token)
        self._beats.start()

    def _advice(self, holder: Holder) -> str:
        if holder.uptime_s:
            return "wait until it is done"
        return (
            "no clock of it can be read, so nothing tells here whether it still is; where it is not, remove "
            f"{self._phone.root}/lock from the phone"
        )

    def _try(self) -> Holder | None:
        """Take it; or who has it."""
        said = self._phone.do(
            f'umask 022; {_NOW}; mkdir -p "$R/slots" "$R/incoming" "$R/runner" || exit 1; '
            'if mkdir "$R/lock" 2>/dev/null; then '
            f'{{ echo {shlex.quote(self._owner)} "$B" >"$R/lock/owner" && echo "$U" >"$R/lock/beat"; }} '
            '|| { rm -rf "$R/lock"; exit 1; }; '
            'elif [ -d "$R/lock" ]; then '
            'echo "busy"; echo "$B"; echo "$U"; echo "$(cat "$R/lock/owner" 2>/dev/null)"; '
            'echo "$(cat "$R/lock/beat" 2>/dev/null)"; else mkdir "$R/lock"; exit 1; fi'
        )
        lines = said.split("\n")
        if lines[0] != "busy":
            return None
        _, boot, uptime, owner, beat, *_ = [*lines, "", "", "", ""]
        return Holder(owner, _seconds(beat), boot, _seconds(uptime))

    def _evict(self, owner: str) -> None:
        """Of several who try at once, the one whose rename succeeds."""
        self._phone.do(
            f'if [ "$(cat "$R/lock/owner" 2>/dev/null)" = {shlex.quote(owner)} ]; then '
            f'mv "$R/lock" "$R/lock.{self.token}" 2>/dev/null; rm -rf "$R/lock.{self.token}"; fi; true'
        )

    def release(self) -> None:
        """Let go; where the link is gone, the next one sees that nobody is behind it."""
        _held.discard(self.token)
        self._stop.set()
        if self._beats.ident is not None:
            self._beats.join()
        with contextlib.suppress(FerrymanError):
            self.do(f'mv "$R/lock" "$R/lock.{self.token}" && rm -rf "$R"/lock.*')

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(FerrymanError):
                self.do(f'{_NOW}; echo "$U" >"$R/lock/beat"')


@contextlib.contextmanager
def locked(phone: Phone) -> Iterator[Lock]:
    """Hold the phone's store.

    Raises:
        BusyError: someone else is at work there.
        DeviceError, LinkError: see `Lock.take`.
    """
    lock = Lock(phone)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


def _here() -> str:
    """This machine, as far as process numbers mean the same."""
    name = "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter in "-._")
    return f"{name}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_of(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot (proc(5), field 22 of stat)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _seconds(text: str) -> float:
    return float(whole(text) or 0)
