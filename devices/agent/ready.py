"""Whether now is a good moment for an update: power, heat, requests, and the hours that were agreed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from ferryman.profiler.conditions import power_source, temperatures_c, throttled
from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.rollout import Window

BATTERY_MIN = 0.2
DAY_MINUTES = 1440
_BEFORE = " before"
"""Ends what `throttled` tells of the time since boot."""
Power = Literal["mains", "battery"]
T = TypeVar("T")


class Limits(Record):
    """When an update may begin. What is None is not asked for: a sensor that is missing then does not matter."""

    battery_min: float | None = None
    """Share of a full charge, at least, while the battery discharges; None: 0.2 where it can be read."""
    mains: bool = False
    """Only while something supplies power."""
    hottest_max_c: float | None = None
    """Of the hottest zone; None: only what the kernel itself holds the clock down for counts."""
    idle_s: float = 0.0
    """Nobody may have asked for an inference for so long."""


class Readings(NamedTuple):
    """The device now."""

    power: Power | Unavailable
    battery: float | Unavailable
    """Share of a full charge, 0 to 1."""
    hottest_c: float | Unavailable
    throttled: tuple[str, ...] | Unavailable
    idle_s: float
    minute: int | Unavailable
    """Of the day, in local time; Unavailable where the clock cannot be right."""


def read_now(
    idle_s: float, clock_floor_ns: int = 0, root: Path = Path("/"), clock_ns: Callable[[], int] = time.time_ns
) -> Readings:
    """Take the readings.

    Args:
        idle_s: since the last request.
        clock_floor_ns: a moment that has passed for sure, such as when the release was published: a clock before it
            was never set.
        root: of the file system to read.
        clock_ns: wall clock.
    """
    return Readings(
        power=_try(lambda: _power(root)),
        battery=_try(lambda: battery_share(root)),
        hottest_c=_try(lambda: max(reading.value for reading in temperatures_c(root))),
        throttled=_try(lambda: tuple(one for one in throttled(root) if not one.endswith(_BEFORE))),
        idle_s=idle_s,
        minute=_minute(clock_ns(), clock_floor_ns),
    )


def why_not_yet(limits: Limits, window: Window | None, now: Readings) -> str:
    """What speaks against an update at this moment; empty: nothing does."""
    return _hours(window, now) or _power_low(limits, now) or _hot(limits, now) or _busy(limits, now)


def is_open(window: Window, minute: int) -> bool:
    """Whether a minute of the day is in a window; one that ends where it begins is open all day."""
    begin, end = window.begin_minute % DAY_MINUTES, window.end_minute % DAY_MINUTES
    if begin < end:
        return begin <= minute < end
    return begin == end or minute >= begin or minute < end


def battery_share(root: Path) -> float:
    """The least charge of the batteries that feed this device, 0 to 1.

    Raises:
        SensorError: there is none, or it does not tell.
    """
    shares = []
    for folder in paths(root / "sys/class/power_supply", "*"):
        if _feeds(folder):
            percent = read_int(folder / "capacity")
            if not 0 <= percent <= 100:  # noqa: PLR2004  # per cent
                raise SensorError(f"{folder / 'capacity'}: {percent} is no percentage")
            shares.append(percent / 100)
    if not shares:
        raise SensorError("no battery")
    return min(shares)


def _feeds(folder: Path) -> bool:
    """A mouse's battery says `Device`; one that feeds the system says `System` or nothing."""
    if _text(folder / "type") not in {"Battery", "UPS"}:
        return False
    return _text(folder / "scope") != "Device"


def _power(root: Path) -> Power:
    """What a device without a battery runs on comes from outside, whether or not the kernel knows of a supply."""
    try:
        return "battery" if power_source(root) == "battery" else "mains"
    except SensorError:
        if any(_feeds(folder) for folder in paths(root / "sys/class/power_supply", "*")):
            raise
        return "mains"


def _hours(window: Window | None, now: Readings) -> str:
    if window is None:
        return ""
    hours = f"the maintenance window, {_clock(window.begin_minute)} to {_clock(window.end_minute)}"
    if isinstance(now.minute, Unavailable):
        return f"{hours}, cannot be told from a clock that is wrong: {now.minute.reason}"
    return "" if is_open(window, now.minute) else f"outside of {hours}; it is {_clock(now.minute)} here"


def _power_low(limits: Limits, now: Readings) -> str:
    if limits.mains and now.power != "mains":
        told = "is not told" if isinstance(now.power, Unavailable) else "comes from the battery"
        return f"an update waits for mains, and power {told}"
    if now.power == "mains":
        return ""
    if isinstance(now.battery, Unavailable):
        return "" if limits.battery_min is None else f"the battery's charge cannot be read: {now.battery.reason}"
    least = BATTERY_MIN if limits.battery_min is None else limits.battery_min
    return "" if now.battery >= least else f"the battery holds {now.battery:.0%}, less than {least:.0%}"


def _hot(limits: Limits, now: Readings) -> str:
    if limits.hottest_max_c is not None:
        if isinstance(now.hottest_c, Unavailable):
            return f"the temperature cannot be read: {now.hottest_c.reason}"
        if now.hottest_c > limits.hottest_max_c:
            return f"the device is at {now.hottest_c:.1f} degrees, more than {limits.hottest_max_c:g}"
    if isinstance(now.throttled, Unavailable) or not now.throttled:
        return ""
    return f"the clock is held down: {', '.join(now.throttled)}"


def _busy(limits: Limits, now: Readings) -> str:
    if now.idle_s >= limits.idle_s:
        return ""
    return f"the last request was {now.idle_s:.0f} s ago, and an update waits for {limits.idle_s:g} s without one"


def _minute(now_ns: int, floor_ns: int) -> int | Unavailable:
    try:
        local = time.localtime(now_ns / 1e9)
    except (OverflowError, ValueError, OSError) as error:
        return Unavailable(reason=f"{now_ns} ns is no time: {error}")
    if now_ns < floor_ns:
        found = time.strftime("%Y-%m-%d", local)
        return Unavailable(reason=f"it says {found}, which is before what has happened already")
    return local.tm_hour * 60 + local.tm_min


def _clock(minute: int) -> str:
    return f"{minute // 60 % 24:02d}:{minute % 60:02d}"


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except SensorError:
        return ""


def _try(read: Callable[[], T]) -> T | Unavailable:
    try:
        return read()
    except SensorError as error:
        return Unavailable(reason=str(error))
