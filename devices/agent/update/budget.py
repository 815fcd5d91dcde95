"""What updates cost on the wire, and may cost: counted on the disk ahead of being spent, so that no kill hides a byte.

A day is 24 hours from its first byte. They are counted by the clock that runs since boot; over a restart by the wall
clock, where it was set before and after it, and else by the time since boot: a clock that jumps ends no day early.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ferryman.runtime.contracts.errors import BudgetError, CallerError, DeviceError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.durable import write_durable

DAY_S = 86_400.0
_SET_S = 1_700_000_000
"""An earlier wall clock was never set."""
_AHEAD_BYTES = 4 << 20
_AHEAD_LEAST_BYTES = 1 << 14
_UPDATES_MAX = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class DayBudgetError(BudgetError):
    """It would fit another day."""


class Now(NamedTuple):
    """The three clocks of a device."""

    boot: str
    uptime_s: float
    wall_s: float


def read_clocks() -> Now:
    """Ask the kernel."""
    return Now(_BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class Usage(Record):
    """What was spent, with what is set aside for the bytes to come."""

    boot: str = ""
    uptime_s: float = 0.0
    wall_s: float = 0.0
    day_elapsed_s: float = 0.0
    """Of the day, at those clocks."""
    day_bytes: int = 0
    total_bytes: int = 0
    updates: dict[str, int] = msgspec.field(default_factory=dict)
    """Of the newest few, the last one last."""


def elapsed_s(usage: Usage, now: Now) -> float:
    """Time that has passed for sure since `usage` was written."""
    if usage.boot == now.boot:
        return max(0.0, now.uptime_s - usage.uptime_s)
    if usage.wall_s >= _SET_S and now.wall_s >= _SET_S:
        return max(now.uptime_s, now.wall_s - usage.wall_s)
    return now.uptime_s


def passed(usage: Usage, now: Now, ahead: int = 0) -> Usage:
    """The same usage at a later time; a new day begins with nothing but what is set aside."""
    day_s = usage.day_elapsed_s + elapsed_s(usage, now)
    over = day_s >= DAY_S or not usage.day_bytes
    return Usage(
        boot=now.boot,
        uptime_s=now.uptime_s,
        wall_s=now.wall_s,
        day_elapsed_s=0.0 if over else day_s,
        day_bytes=ahead if over else usage.day_bytes,
        total_bytes=usage.total_bytes,
        updates=usage.updates,
    )


def spent(usage: Usage, update: str | None, count: int) -> Usage:
    """The same usage with so many bytes more, or fewer."""
    updates = dict(usage.updates)
    if update is not None:
        updates[update] = updates.pop(update, 0) + count
    return Usage(
        boot=usage.boot,
        uptime_s=usage.uptime_s,
        wall_s=usage.wall_s,
        day_elapsed_s=usage.day_elapsed_s,
        day_bytes=usage.day_bytes + count,
        total_bytes=usage.total_bytes + count,
        updates=dict(list(updates.items())[-_UPDATES_MAX:]),
    )


class DataBudget:
    """The account of one device, for several threads; only one is open at a time, or each forgets the other's."""

    def __init__(
        self, path: Path, *, day_max_bytes: int | None = None, clocks: Callable[[], Now] = read_clocks
    ) -> None:
        self.note = ""
        """What was wrong with the account on the disk; empty: nothing."""
        self._path = path
        self._day_max = day_max_bytes
        self._update_max: int | None = None
        self._update: str | None = None
        self._clocks = clocks
        self._lock = threading.Lock()
        self._ahead = 0
        self._closed = False
        self._usage = self._read()

    def begin(self, update: str, update_max_bytes: int | None = None) -> None:
        """From now on, count for this update, too; what it cost before, in other processes, counts with it."""
        with self._lock:
            self._settle()
            self._update, self._update_max = update, update_max_bytes

    @property
    def update_bytes(self) -> int:
        """What this update cost so far."""
        with self._lock:
            return self._spent_of_update()

    @property
    def total_bytes(self) -> int:
        """What all of them cost, ever."""
        with self._lock:
            return self._usage.total_bytes - self._ahead

    def left(self) -> int | None:
        """Bytes that may be spent still; None: no limit."""
        with self._lock:
            return self._left()

    def check(self, need_bytes: int, what: str) -> None:
        """See that so many bytes more may be spent.

        Raises:
            BudgetError: they may not; it says how many may.
            DayBudgetError: they may not today.
        """
        with self._lock:
            self._usage = self._now()
            spent_bytes = self._spent_of_update()
            if self._update_max is not None and spent_bytes + need_bytes > self._update_max:
                raise BudgetError(
                    f"{what} needs {need_bytes} bytes on the wire, and an update may cost {self._update_max}, of which "
                    f"this one spent {spent_bytes}; allow an update more (update_max_bytes), or ask for fewer variants"
                )
            if self._day_max is None:
                return
            day_bytes = self._usage.day_bytes - self._ahead
            if day_bytes + need_bytes > self._day_max:
                wait_h = (DAY_S - self._usage.day_elapsed_s) / 3600
                text = (
                    f"{what} needs {need_bytes} bytes on the wire, and this device may spend {self._day_max} a day, of "
                    f"which {day_bytes} are spent"
                )
                if need_bytes > self._day_max:
                    raise BudgetError(f"{text}; allow a day more (day_max_bytes), or ask for fewer variants")
                raise DayBudgetError(f"{text}; the next day begins in {wait_h:.1f} h")

    def spend(self, count: int) -> None:
        """Write down bytes that came, or went.

        Raises:
            CallerError: it is closed.
            DeviceError: the account cannot be written; nothing more must be fetched.
        """
        with self._lock:
            if self._closed:
                raise CallerError(f"{self._path} is closed: what comes now is nobody's; open it again to go on")
            if count > self._ahead:
                left, step = self._left(), self._step()
                ahead = step if left is None else max(0, min(step, left - count))
                self._write(spent(self._now(), self._update, count - self._ahead + ahead))
                self._ahead = ahead
            else:
                self._ahead -= count

    def settle(self) -> None:
        """Give back what was set aside and not spent; where the disk refuses, it stays counted."""
        with self._lock, contextlib.suppress(DeviceError):
            self._settle()

    def close(self) -> None:
        """Settle, and write nothing from now on: the next to open it may be at work already."""
        with self._lock, contextlib.suppress(DeviceError):
            try:
                self._settle()
            finally:
                self._closed = True

    def _settle(self) -> None:
        if self._ahead and not self._closed:
            self._write(spent(self._now(), self._update, -self._ahead))
            self._ahead = 0

    def _now(self) -> Usage:
        return passed(self._usage, self._clocks(), self._ahead)

    def _spent_of_update(self) -> int:
        return self._usage.updates.get(self._update, 0) - self._ahead if self._update is not None else 0

    def _left(self) -> int | None:
        left = []
        if self._day_max is not None:
            left.append(self._day_max - self._usage.day_bytes + self._ahead)
        if self._update is not None and self._update_max is not None:
            left.append(self._update_max - self._spent_of_update())
        return max(0, min(left)) if left else None

    def _step(self) -> int:
        least = min((limit for limit in (self._day_max, self._update_max) if limit is not None), default=None)
        return _AHEAD_BYTES if least is None else max(_AHEAD_LEAST_BYTES, min(_AHEAD_BYTES, least // 64))

    def _read(self) -> Usage:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return passed(Usage(), self._clocks())
        except OSError as error:
            raise DeviceError(
                f"cannot read {self._path}: {error.strerror}; what updates cost is counted there"
            ) from error
        try:
            usage = _checked(decode(data, Usage))
        except ValueError as error:
            self.note = f"{self._path} was damaged ({error}); this day's data budget counts as spent"
            usage = Usage(boot=self._clocks().boot, uptime_s=self._clocks().uptime_s, day_bytes=self._day_max or 0)
        return passed(usage, self._clocks())

    def _write(self, usage: Usage) -> None:
        """A kill loses nothing of it; a power cut only where there is no limit to keep to."""
        write_durable(self._path, encode(usage), sync=self._day_max is not None or self._update_max is not None)
        self._usage = usage


def _checked(usage: Usage) -> Usage:
    if min(usage.day_bytes, usage.day_elapsed_s, usage.total_bytes, *usage.updates.values()) < 0:
        raise ValueError("a count is less than 0")
    return usage
