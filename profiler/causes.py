"""Why runs were slow: what on record tells so, named."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

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
from ferryman.profiler.verdict import percentile_ns
from ferryman.runtime.contracts.comparison import Cause
from ferryman.runtime.contracts.measurement import Measurement, Start
from ferryman.runtime.contracts.record import Unavailable

SLOWER = 1.05
"""What times the middle's a process or an interval takes before it is told of."""
_MOVERS = ("cores it might use", "packed weights", "power source", "kernel")
"""Conditions that may move times and have no name of their own."""


def why_slower(fast: Measurement, slow: Measurement) -> tuple[Cause, ...]:
    """What the slower of two had against it; where nothing on record tells, the artifact itself is named.

    Several may hold at once, and one that holds need not be the whole of it.
    """
    found = [*_held_down(fast, slow), *_crowded(fast, slow), *_set_up(fast, slow)]
    if found:
        return tuple(found)
    if (fast.package_sha256, fast.variant) != (slow.package_sha256, slow.variant):
        return (Cause(name="artifact", words="nothing else on record differs that could: it is the artifact itself"),)
    if fast.interpreter != slow.interpreter:
        return (Cause(name="artifact", words=f"{slow.interpreter} runs the same artifact slower"),)
    return (Cause(name="unknown", words="the artifact is the same, and nothing on record differs that could"),)


def what_disturbed(one: Measurement) -> tuple[Cause, ...]:
    """What in a single measurement kept it from being as fast as it might be."""
    found = []
    if now := throttled_now(one.after):
        if not isinstance(now, Unavailable):
            found.append(Cause(name="throttled", words=f"the clock was held down: {', '.join(now)}"))
    if scarce(one) is True:
        found.append(Cause(name="memory", words="little memory was left: pages may have been read again and again"))
    found += [*_busy_processes(one), *_unsettled(one), *_drift(one)]
    return tuple(found)


def _held_down(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    before, now = throttled_now(fast.after), throttled_now(slow.after)
    if not isinstance(now, Unavailable):
        new = [reason for reason in now if isinstance(before, Unavailable) or reason not in before]
        if new:
            yield Cause(name="throttled", words=f"the clock was held down: {', '.join(new)}")
    clocks = clock_mhz(fast), clock_mhz(slow)
    if not _unknown(clocks) and clocks[1] < clocks[0] * (1 - CLOCK_SHARE):
        yield Cause(name="clock", words=f"a lower clock: {clocks[1]:.0f} MHz, not {clocks[0]:.0f} MHz")
    governors = fast.after.governor, slow.after.governor
    if not _unknown(governors) and governors[0] != governors[1]:
        yield Cause(name="governor", words=f"governor {governors[1]}, not {governors[0]}")
    heat = hottest_c(fast), hottest_c(slow)
    if not _unknown(heat) and heat[1] > heat[0] + HEAT_C:
        yield Cause(name="heat", words=f"hotter: {heat[1]:.1f} °C, not {heat[0]:.1f} °C")


def _crowded(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    shares = busy_share(fast), busy_share(slow)
    if not _unknown(shares) and shares[1] > shares[0] + BUSY_SHARE:
        words = f"other processes took {shares[1]:.0%} of the processors, not {shares[0]:.0%}"
        yield Cause(name="busy", words=words)
    if scarce(slow) is True and scarce(fast) is not True:
        yield Cause(name="memory", words="little memory was left: pages may have been read again and again")


def _set_up(fast: Measurement, slow: Measurement) -> Iterator[Cause]:
    for one in differing(fast, slow):
        if one.name.startswith("version of "):
            yield Cause(name="version", words=f"{one.name.removeprefix('version of ')} {one.other}, not {one.baseline}")
        elif one.name in _MOVERS or one.bars:
            yield Cause(name="setting", words=f"{one.name}: {one.other}, not {one.baseline}")
    unsettled = [len([start for start in one.starts if not start.settled]) for one in (fast, slow)]
    if unsettled[1] > unsettled[0]:
        yield from _unsettled(slow)


def _unsettled(one: Measurement) -> Iterator[Cause]:
    if count := sum(not start.settled for start in one.starts):
        words = f"{count} of {len(one.starts)} processes were still getting faster when timing began"
        yield Cause(name="warm-up", words=words)


def _busy_processes(one: Measurement) -> Iterator[Cause]:
    """Processes during which others were at work, and those that were slow for no reason on record."""
    medians = [percentile_ns(start.samples, 50) for start in one.starts if start.samples.count]
    if not medians:
        return
    middle = statistics.median(medians)
    for number, start in enumerate(one.starts, start=1):
        if not start.samples.count:
            continue
        times = percentile_ns(start.samples, 50) / middle
        which = f"process {number} of {len(one.starts)}"
        slow = f", and it took {times:.2f} times the middle one's time" if times > SLOWER else ""
        if not isinstance(start.busy, Unavailable) and start.busy > 2 * BUSY_SHARE:
            yield Cause(name="busy", words=f"during {which} others took {start.busy:.0%} of the processors{slow}")
        elif slow:
            yield Cause(name="unknown", words=f"{which} took {times:.2f} times the middle one's time")


def _drift(one: Measurement) -> Iterator[Cause]:
    """A sustained run that ends slower than it began, and what changed with it."""
    intervals = [interval for interval in one.sustained or () if interval.samples.count]
    if len(intervals) < 2:  # noqa: PLR2004  # a change takes two
        return
    first, last = intervals[0], intervals[-1]
    times = percentile_ns(last.samples, 50) / max(percentile_ns(first.samples, 50), 1)
    if times <= SLOWER:
        return
    told = []
    if not _unknown((last.throttled,)) and last.throttled:
        told.append(f"throttled: {', '.join(last.throttled)}")
    if not _unknown((first.clocks_mhz, last.clocks_mhz)) and sum(last.clocks_mhz) < sum(first.clocks_mhz):
        told.append(f"clock {max(first.clocks_mhz):.0f} to {max(last.clocks_mhz):.0f} MHz")
