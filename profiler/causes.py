"""Why runs were slow: what on record tells so, named."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TypeVar

from ferryman.profiler.differences import (
    BUSY_SHARE,
    CLOCK_SHARE,
    HEAT_C,
    busy_share,
    clock_mhz,
    differing,
    hottest_c,
    scarce,
    throttled_now,
)
from ferryman.profiler.stats import summarize
from ferryman.runtime.contracts.comparison import Cause
from ferryman.runtime.contracts.measurement import Interval, Measurement
from ferryman.runtime.contracts.record import Unavailable

T = TypeVar("T")
SLOWER = 1.05
"""What times the middle's a process or an interval takes before it is told of."""
_SETTINGS = ("warm-up", "timed runs", "cores it might use", "packed weights", "power source", "kernel")
"""Conditions that may move times and have no name of their own."""
_SCARCE = Cause(name="memory", words="little memory was left: pages may have been dropped and read again")


def why_slower(fast: Measurement, slow: Measurement, *, interleaved: bool = False) -> tuple[Cause, ...]:
    """What the slower of two had against it; where nothing on record tells, the artifact itself is named.

    Several may hold at once, and one that holds need not be the whole of it. What others took is no cause where the
    two took turns: others meet both alike, and take more beside the one that leaves them more, as one that waits does.
    """
    crowded = () if interleaved else _crowded(fast, slow)
    if found := [*_held_down(fast, slow), *crowded, *_scarce(fast, slow), *_set_up(fast, slow)]:
        return tuple(found)
    if (fast.package_sha256, fast.variant) != (slow.package_sha256, slow.variant):
        return (Cause(name="artifact", words="nothing else on record differs that could: it is the artifact itself"),)
    if fast.interpreter != slow.interpreter:
        return (Cause(name="artifact", words=f"{slow.interpreter} takes longer for the same artifact"),)
    return (Cause(name="unknown", words="the artifact is the same, and nothing on record differs that could"),)


def what_disturbed(one: Measurement) -> tuple[Cause, ...]:
    """What kept a single measurement from being as fast, or as steady, as it might be."""
    now = throttled_now(one.after)
    found = [] if isinstance(now, Unavailable) or not now else [_throttled(now)]
    if scarce(one) is True:
        found.append(_SCARCE)
    return (*found, *_slow_processes(one), *_unsettled(one), *_drift(one.sustained or ()))


def _held_down(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    before, now = throttled_now(fast.after), throttled_now(slow.after)
    if not isinstance(now, Unavailable):
        new = tuple(reason for reason in now if isinstance(before, Unavailable) or reason not in before)
        if new:
            yield _throttled(new)
    if (clocks := _both(clock_mhz(fast), clock_mhz(slow))) and clocks[1] < clocks[0] * (1 - CLOCK_SHARE):
        yield Cause(name="clock", words=f"a lower clock: {clocks[1]:.0f} MHz, not {clocks[0]:.0f} MHz")
    if (governors := _both(fast.after.governor, slow.after.governor)) and governors[0] != governors[1]:
        yield Cause(name="governor", words=f"governor {governors[1]}, not {governors[0]}")
    if (heat := _both(hottest_c(fast), hottest_c(slow))) and heat[1] > heat[0] + HEAT_C:
        yield Cause(name="heat", words=f"hotter: {heat[1]:.1f} °C, not {heat[0]:.1f} °C")


def _crowded(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    if (shares := _both(busy_share(fast), busy_share(slow))) and shares[1] > shares[0] + BUSY_SHARE:
        words = f"other processes took {shares[1]:.0%} of the processors, not {shares[0]:.0%}"
        yield Cause(name="busy", words=words)


def _scarce(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    if scarce(slow) is True and scarce(fast) is not True:
        yield _SCARCE


def _set_up(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    for one in differing(fast, slow):
        what = one.name.removeprefix("version of ")
        if what != one.name:
            if "none" not in {one.baseline, one.other}:  # what only one of them needs is the artifact's own
                yield Cause(name="version", words=f"{what} {one.other}, not {one.baseline}")
        elif one.bars or one.name in _SETTINGS:
            yield Cause(name="setting", words=f"{one.name}: {one.other}, not {one.baseline}")
    if sum(not start.settled for start in slow.starts) > sum(not start.settled for start in fast.starts):
        yield from _unsettled(slow)


def _throttled(reasons: tuple[str, ...]) -> Cause:
    return Cause(name="throttled", words=f"the clock was held down: {', '.join(reasons)}")


def _unsettled(one: Measurement) -> Iterator[Cause]:
    if count := sum(not start.settled for start in one.starts):
        words = f"{count} of {len(one.starts)} processes had not been shown to have settled when timing began"
        yield Cause(name="warm-up", words=words)


def _slow_processes(one: Measurement) -> Iterator[Cause]:
    """Processes beside which others were at work, and those that were slow for no reason on record."""
    medians = {number: summarize(s.samples).p50_ns for number, s in enumerate(one.starts, 1) if s.samples.count}
    middle = statistics.median(medians.values()) if medians else 0.0
    crowded: dict[int, float] = {}
    for number, start in enumerate(one.starts, 1):
        if not isinstance(start.busy, Unavailable) and start.busy > 2 * BUSY_SHARE:
            crowded[number] = start.busy
    if crowded:
        took = f"{min(crowded.values()):.0%} to {max(crowded.values()):.0%}"
        beside = f"beside {len(crowded)} of {len(one.starts)} processes"
        yield Cause(name="busy", words=f"{beside} others took {took} of the processors")
    slow = {number: median / middle for number, median in medians.items() if median > SLOWER * middle}
    if alone := [number for number in slow if number not in crowded]:
        which = f"process {', '.join(map(str, alone))} of {len(one.starts)}"
        times = max(slow[number] for number in alone)
        yield Cause(name="unknown", words=f"{which} took up to {times:.2f} times as long as the middle one")


def _drift(intervals: tuple[Interval, ...]) -> Iterator[Cause]:
    """A sustained run that ends slower than it began, and what changed on the way."""
    timed = [interval for interval in intervals if interval.samples.count]
    if not timed:
        return
    first, last = timed[0], timed[-1]
    times = summarize(last.samples).p50_ns / max(summarize(first.samples).p50_ns, 1)
    if times <= SLOWER:
        return
    told = []
    if not isinstance(last.throttled, Unavailable) and last.throttled:
        told.append(f"the clock was held down: {', '.join(last.throttled)}")
    if (clocks := _both(first.clocks_mhz, last.clocks_mhz)) and max(clocks[1], default=0) < max(clocks[0], default=0):
        told.append(f"the clock fell from {max(clocks[0]):.0f} to {max(clocks[1], default=0):.0f} MHz")
    if (shares := _both(first.busy, last.busy)) and shares[1] > shares[0] + BUSY_SHARE:
        told.append(f"others took {shares[1]:.0%} of the processors, not {shares[0]:.0%}")
    words = "; ".join(told) or "nothing on record tells why"
    yield Cause(name="drift", words=f"the last interval took {times:.2f} times as long as the first: {words}")


def _both(one: T | Unavailable, two: T | Unavailable) -> tuple[T, T] | None:
    return None if isinstance(one, Unavailable) or isinstance(two, Unavailable) else (one, two)
