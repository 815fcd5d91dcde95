"""Devices, models, labels or packages side by side, from what devices sent while they served.

A device counts as one value, its median over the window, however much it served: its samples resemble each other, and
a busy device shall not speak for a group. So the 95 % interval of a ratio is by ranks of devices' medians (see
`ferryman.profiler.verdict`): of those that are in both groups, each is held against itself (Wilcoxon's signed ranks);
else the groups as they are (Mann and Whitney's rank sum). Where devices are compared with each other, an hour counts as
one value instead, and hours that both served are pairs. This tells of how devices did, not why: a group may be busier,
hotter, or given harder inputs. `ferryman compare` measures packages in turn on one device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ferryman.devices.fleet.query.asked import check_names, check_several, check_texts, shown
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.parts import Part, empty, hours, parts
from ferryman.devices.fleet.query.records import Compared, Comparison
from ferryman.devices.fleet.query.who import Known, Who, labels_of, who
from ferryman.devices.fleet.query.window import window
from ferryman.devices.fleet.store.store import Store
from ferryman.profiler.verdict import MARGIN, ROUNDS_LEAST, judge, log_ratio
from ferryman.runtime.contracts.errors import CallerError

METRICS = ("latency_ms", "memory_used_mb", "agent_memory_mb", "cpu_percent", "temperature_c", "energy_mj", "power_w")
OTHERS = "(none)"
"""Devices without the label, or samples without a package."""
_TOLD = ("package", "model", "device", "release", "ferryman")
UNITS_MAX = 60
"""Of each group: ranks of more take long, and settle nothing that these do not."""
Unit = str | int


class _Medians(NamedTuple):
    """A group in one metric."""

    medians: dict[Unit, float]
    devices: int
    samples: int


def compare(
    store: Store,
    *,
    now_ns: int,
    by: str = "package",
    metrics: Sequence[str] = METRICS,
    baseline: str | None = None,
    query: str | None = None,
    device: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    margin: float = MARGIN,
) -> Comparison:
    """Hold groups of devices against one of them.

    Args:
        store: where.
        now_ns: the present.
        by: `package`, `model`, `device`, `release`, `ferryman`, or the name of a label. Packages are those that
            samples name; all others are what the device says of itself now.
        metrics: names in `Sample.values`; what a group does not tell is left out.
        baseline: what the others are over: a group, or how its name begins; None: that of most samples.
        query: only these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only this one.
        since: where the window begins, in whole hours; None: a day before its end.
        until: where it ends; None: now.
        margin: what counts as the same.

    Raises:
        CallerError: an argument is none of its kind, or there is no such device or baseline.
        StoreError: the database cannot be read.
    """
    check_names(by=by)
    check_several("metrics", metrics)
    check_texts(baseline=baseline)
    if not isinstance(margin, int | float) or not 0 < margin < 1:
        raise CallerError(f"a margin is more than 0 and less than 1, such as {MARGIN}; found {shown(margin)}")
    left_out = LeftOut()
    within = window(since, until, now_ns, "1d")
    span = hours(within, now_ns)
    devices = who(store, query, device, left_out)
    if by not in _TOLD and devices.known and not any(by in one.status.labels for one in devices.known.values()):
        raise CallerError(
            f"no device has the label {shown(by)}; {labels_of(devices.known.values())}; or by {', '.join(_TOLD)}"
        )
    gathered: dict[tuple[str, str], dict[Unit, list[Part]]] = defaultdict(lambda: defaultdict(list))
    for part in parts(store, span, devices, left_out, sketched=metrics, days=by != "device"):
        group = _group(by, part, devices)
        gathered[group, part.metric][part.start_s if by == "device" else part.device].append(part)
    found = {key: _medians(units) for key, units in gathered.items()}
    groups = sorted({group for group, _ in found}, key=lambda group: (-_weight(found, group, metrics), group))
    if not groups:
        raise CallerError("no samples in the window; ask for a longer one with --since, or for other devices")
    base = groups[0] if baseline is None else _named(groups, baseline)
    rows = [
        _row(
            group, metric, found[group, metric], None if group == base else found.get((base, metric)), margin, left_out
        )
        for metric in metrics
        for group in (base, *(one for one in groups if one != base))
        if (group, metric) in found
    ]
    return Comparison(
        by=by,
        baseline=base,
        margin=margin,
        since_ns=span[0] * 10**9,
        until_ns=min(within.until_ns, now_ns),
        rows=tuple(rows),
        names=_package_names(devices, groups) if by == "package" else {},
        left_out=left_out.words(),
    )


def _group(by: str, part: Part, devices: Who) -> str:
    if by == "package":
        return part.package or OTHERS
    if by == "device":
        return part.device
    known = devices.known.get(part.device)
    return OTHERS if known is None else _told(by, known)


def _package_names(devices: Who, groups: Sequence[str]) -> dict[str, str]:
    """Of groups, as far as devices say."""
    said = {one.status.package_sha256: one.status.package_name for one in devices.known.values()}
    return {sha256: name for sha256 in groups if (name := said.get(sha256))}


def _told(by: str, known: Known) -> str:
    status = known.status
    if by == "model":
        return status.model or OTHERS
    if by == "release":
        return status.release or OTHERS
    if by == "ferryman":
        return status.ferryman or OTHERS
    return status.labels.get(by) or OTHERS


def _medians(units: Mapping[Unit, Sequence[Part]]) -> _Medians:
    medians: dict[Unit, float] = {}
    for unit, its in units.items():
        sketch = empty()
        for part in its:
            sketch.merge(part.sketch)
        medians[unit] = float(sketch.get_quantile(0.5, True))
    every = [part for its in units.values() for part in its]
    return _Medians(medians, len({part.device for part in every}), sum(part.values for part in every))


def _weight(found: Mapping[tuple[str, str], _Medians], group: str, metrics: Sequence[str]) -> int:
    return max(found[group, metric].samples for metric in metrics if (group, metric) in found)


def _named(groups: Sequence[str], baseline: str) -> str:
    if baseline in groups:
        return baseline
    meant = [group for group in groups if group.startswith(baseline)]
    if len(meant) != 1:
        which = "is no group" if not meant else f"begins {len(meant)} groups"
        raise CallerError(f"{baseline[:100]!r} {which}; there are: {', '.join(group[:64] for group in groups[:20])}")
    return meant[0]


def _row(group: str, metric: str, one: _Medians, base: _Medians | None, margin: float, left_out: LeftOut) -> Compared:
    row: dict[str, Any] = {"ratio": None, "low": None, "high": None, "pairs": None, "verdict": None}
    if base is not None:
        row |= _against(metric, one.medians, base.medians, margin, left_out)
    return Compared(
        group=group,
        metric=metric,
        devices=one.devices,
        units=len(one.medians),
        samples=one.samples,
        median=float(np.median(list(one.medians.values()))),
        **row,
    )


def _against(
    metric: str, one: Mapping[Unit, float], base: Mapping[Unit, float], margin: float, left_out: LeftOut
) -> dict[str, Any]:
    if min(*one.values(), *base.values()) <= 0:
        left_out.say(f"ratios of {metric}, of which some medians are not above zero")
        return {}
    both = sorted(one.keys() & base.keys(), key=str)
    paired = len(both) >= ROUNDS_LEAST
    pair = ([base[unit] for unit in both], [one[unit] for unit in both]) if paired else (base.values(), one.values())
    first, second = (_some(np.asarray(list(values), np.float64)) for values in pair)
    if max(len(base), len(one)) > UNITS_MAX:
        left_out.say(f"of groups beyond {UNITS_MAX} values, evenly chosen ones are compared; medians are of all")
    interval = log_ratio(first, second, paired=paired)
    low, high = interval.low, interval.high
    return {
        "ratio": math.exp(interval.middle),
        "low": None if low is None else math.exp(low),
        "high": None if high is None else math.exp(high),
        "pairs": len(first) if paired else None,
        "verdict": judge(interval, margin, ("less", "more")),
    }


def _some(values: Any) -> Any:  # noqa: ANN401  # arrays
    """At most UNITS_MAX, evenly chosen by place: of pairs the same of both."""
    if len(values) <= UNITS_MAX:
        return values
    return values[np.linspace(0, len(values) - 1, UNITS_MAX).round().astype(int)]
