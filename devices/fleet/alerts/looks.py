"""What each rule sees in the picture: for which devices it holds, does not, or cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferryman.devices.fleet.alerts import rules, windows
from ferryman.devices.fleet.alerts.drifting import OLD_S
from ferryman.devices.fleet.alerts.past import Past, Pasts
from ferryman.devices.fleet.alerts.picture import Picture

Bools = NDArray[np.bool_]
CONFIDENCE = 0.95
LISTEN_S = 15.0
"""So long after connecting it is not known who is offline: the broker may yet have to tell who came back."""


class Found(NamedTuple):
    """Why a rule holds for a device."""

    text: str
    value: float | None = None
    bound: float | None = None
    subject: str = ""
    since_s: float | None = None
    """None: since now."""


class Look(NamedTuple):
    """One rule over all devices, by row."""

    holds: Bools
    clear: Bools
    """Neither: it cannot be told, and what was known stays."""
    found: Callable[[int], Found]


class Open(NamedTuple):
    """An alert that was raised and holds."""

    id: int
    subject: str
    bound: float | None


class View(NamedTuple):
    """What rules may look at."""

    picture: Picture
    pasts: Pasts
    now_s: float
    heard_s: float | None
    """Since when the collector hears the broker; None: it does not."""
    opened: Mapping[int, Open]
    """The rule's open alerts, by row."""


def offline(rule: rules.Offline, view: View) -> Look:
    """See `Offline`."""
    picture = view.picture
    seen, changed = picture.seen_s.values, picture.changed_s.values
    heard_s = np.inf if view.heard_s is None else view.heard_s
    away = (picture.online.values == 0) & (view.now_s - heard_s > LISTEN_S)
    silent_since = np.maximum(seen, heard_s) + max(0.0, rule.silent_s - rule.for_s)
    silent = view.now_s - silent_since > rule.for_s
    there = (picture.online.values == 1) & (view.now_s - seen <= rule.silent_s)

    def found(row: int) -> Found:
        if away[row]:
            return Found("is offline", view.now_s - changed[row], rule.for_s, since_s=float(changed[row]))
        text = "says that it is online, and is silent"
        return Found(text, view.now_s - seen[row], rule.silent_s, since_s=float(silent_since[row]))

    meant = picture.away.values == 1
    return Look((away | silent) & ~meant, there | meant, found)


def _lowest(periods: int) -> int:
    """Which of so many ascending values is surely (CONFIDENCE, one-sided) no more than their median; 0: none.

    The order statistic k is above the median with the chance that fewer than k of n values are below it, which are
    binomial with one half, whatever the distribution.
    """
    below, lowest = 0.0, 0
    for k in range(periods):
        below += comb(periods, k) / 2**periods
        if below > 1 - CONFIDENCE:
            break
        lowest = k + 1
    return lowest


_LOWEST = np.array([_lowest(n) for n in range(windows.PERIODS + 1)])


def regressed(rule: rules.Slower | rules.Costlier, view: View) -> Look:
    """Whether the median over the last periods is above `ratio` times that of the past, with CONFIDENCE.

    Of each period its median counts, once: inferences of one period resemble each other. It is over once the median is
    below the bound again, or another package serves; in between nothing changes. An open alert keeps its bound, or what
    it tells of would become the past itself.
    """
    slower = isinstance(rule, rules.Slower)
    metric, unit = ("latency_ms", "ms") if slower else ("energy_mj", "mJ")
    picture = view.picture
    ascending = np.sort(picture.windows.served(windows.LATENCY if slower else windows.ENERGY, view.now_s), axis=1)
    count = (~np.isnan(ascending)).sum(axis=1)
    rows = np.arange(len(count))
    median = ascending[rows, np.maximum(count - 1, 0) // 2]
    lowest = np.where(_LOWEST[count] > 0, ascending[rows, np.maximum(_LOWEST[count] - 1, 0)], np.nan)
    pasts = [view.pasts.of(row, metric) if count[row] >= rule.periods_min else None for row in range(len(count))]
    bound = np.array([_bound(rule, past) for past in pasts], float)
    replaced = np.zeros(len(count), bool)
    for row, one in view.opened.items():
        if one.subject != (picture.packages[row] or ""):
            replaced[row] = True
        elif one.bound is not None:
            bound[row] = one.bound
    enough = count >= rule.periods_min
    with np.errstate(invalid="ignore"):
        holds = ~replaced & enough & (lowest > bound)
        clear = replaced | (enough & (median <= bound))

    def found(row: int) -> Found:
        past = pasts[row]
        was = "the same package" if past is None or past.before is None else f"the package before, {past.before[:12]}"
        text = (
            f"{'latency' if slower else 'energy of an inference'} is {median[row]:.3g} {unit}, more than "
            f"{rule.ratio:g} times that of {was} ({bound[row] / rule.ratio:.3g} {unit})"
        )
        return Found(text, float(median[row]), float(bound[row]), picture.packages[row] or "")

    return Look(holds, clear, found)


def _bound(rule: rules.Slower | rules.Costlier, past: Past | None) -> float:
    if past is None or past.values < rule.inferences_min:
        return np.nan
    return rule.ratio * past.median


def drifted(rule: rules.Drifted, view: View) -> Look:
    """See `Drifted`."""
    seen = view.picture.drift.found
    apart = np.full(len(view.picture.names), np.nan)
    for row, one in seen.items():
        if view.now_s - one.found_s < OLD_S:
            apart[row] = one.distance

    def found(row: int) -> Found:
        one = seen[row]
        text = (
            f"{one.tensor} of {one.package_name} is {one.distance:.2f} from what it was when the package began to "
            f"serve (Kolmogorov-Smirnov, {one.inferences} inferences)"
        )
        return Found(text, one.distance, rule.distance, one.tensor)

    return Look(apart > rule.distance, apart <= rule.distance, found)


def throttled(rule: rules.Throttled, view: View) -> Look:
    """See `Throttled`."""
    told = view.picture.windows.metric(windows.HELD_DOWN, view.now_s)
    count = (~np.isnan(told)).sum(axis=1)
    share = np.nansum(told, axis=1) / np.maximum(count, 1)
    enough = count >= rule.periods_min
    return Look(
        enough & (share >= rule.share),
        enough & (share < rule.share),
        lambda row: Found(f"is throttled in {share[row]:.0%} of its samples", float(share[row]), rule.share),
    )


def failing(rule: rules.Failing, view: View) -> Look:
    """See `Failing`."""
    seen = view.picture.windows
    failed = np.nansum(seen.metric(windows.FAILED, view.now_s), axis=1)
    requests = failed + np.nansum(seen.metric(windows.ANSWERED, view.now_s), axis=1)
    share = failed / np.maximum(requests, 1)
    enough = requests >= rule.requests_min

    def found(row: int) -> Found:
        text = f"{failed[row]:.0f} of {requests[row]:.0f} inferences failed"
        return Found(text, float(share[row]), rule.share, view.picture.packages[row] or "")

    return Look(enough & (share >= rule.share), enough & (share < rule.share), found)


def dropping(rule: rules.Dropping, view: View) -> Look:
    """See `Dropping`."""
    return _counted(
        view.picture.dropped, rule.records, rule.window_s, view, "its outbox was full and dropped {:.0f} records"
    )


def garbled(rule: rules.Garbled, view: View) -> Look:
    """See `Garbled`."""
    text = "{:.0f} messages on its topics could not be taken and are in quarantine"
    return _counted(view.picture.garbled, rule.messages, rule.window_s, view, text)


def _counted(events: Mapping[int, Any], least: int, window_s: float, view: View, text: str) -> Look:
    sums = np.zeros(len(view.picture.names))
    for row, some in events.items():
        sums[row] = sum(count for at_s, count in some if view.now_s - at_s < window_s)
    return Look(sums >= least, sums == 0, lambda row: Found(text.format(sums[row]), float(sums[row]), float(least)))


def full_disk(rule: rules.FullDisk, view: View) -> Look:
    """See `FullDisk`."""
    free = view.picture.free_mb.values
    return Look(
        free < rule.free_mb,
        free >= rule.free_mb,
        lambda row: Found(f"{free[row]:.0f} MB are free on its disk", float(free[row]), rule.free_mb),
    )


def refusing_disk(rule: rules.RefusingDisk, view: View) -> Look:  # noqa: ARG001  # as all rules
    """See `RefusingDisk`; of a device that is away it cannot be told."""
    there = view.picture.online.values == 1
    refuses = np.zeros(len(there), bool)
    refuses[list(view.picture.storage)] = True
    return Look(
        there & refuses,
        there & ~refuses,
        lambda row: Found(f"its disk takes no telemetry and no updates: {view.picture.storage[row]}"),
    )


def lost_clock(rule: rules.LostClock, view: View) -> Look:
    """See `LostClock`."""
    since = view.picture.unsure_s.values
    return Look(
        np.isfinite(since),
        np.isposinf(since),
        lambda row: Found(
            "its clock is not synchronised", view.now_s - since[row], rule.for_s, since_s=float(since[row])
        ),
    )


_LOOKS: dict[type[Any], Callable[[Any, View], Look]] = {
    rules.Offline: offline,
    rules.Slower: regressed,
    rules.Costlier: regressed,
    rules.Drifted: drifted,
    rules.Throttled: throttled,
    rules.Failing: failing,
    rules.Dropping: dropping,
    rules.FullDisk: full_disk,
    rules.RefusingDisk: refusing_disk,
    rules.LostClock: lost_clock,
    rules.Garbled: garbled,
}


def look(rule: rules.Rule, view: View) -> Look:
    """Have a rule look."""
    return _LOOKS[type(rule)](rule, view)
