"""What was not the same when two measurements were made, in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ferryman.runtime.contracts.comparison import Differing
from ferryman.runtime.contracts.measurement import Conditions, Measurement
from ferryman.runtime.contracts.record import Unavailable

CLOCK_SHARE = 0.03
"""Clocks nearer to each other are the same: they are read for a moment."""
HEAT_C = 5.0
BUSY_SHARE = 0.05
LOAD = 0.5
SCARCE_SHARE = 0.1
"""Of all memory: with less of it left, the kernel drops pages that are needed soon."""


def differing(baseline: Measurement, other: Measurement) -> tuple[Differing, ...]:
    """Everything on record that may move the numbers and is not the same in both, the gravest first."""
    found = []
    for one in _CONDITIONS:
        values = one.value(baseline), one.value(other)
        if not _alike(*values, one.same):
            words = [told(value, one.words) for value in values]
            bars = one.bars and not any(isinstance(value, Unavailable) for value in values)
            found.append(Differing(name=one.name, baseline=words[0], other=words[1], bars=bars))
    versions = [one.before.versions | one.after.versions for one in (baseline, other)]
    for name in sorted(versions[0].keys() | versions[1].keys()):
        pair = [of_one.get(name, "none") for of_one in versions]
        if pair[0] != pair[1]:
            found.append(Differing(name=f"version of {name}", baseline=pair[0], other=pair[1]))
    return tuple(sorted(found, key=lambda difference: not difference.bars))


def told(value: Any, words: Callable[[Any], str] = str) -> str:  # noqa: ANN401  # whatever the record holds
    """A value in words, or why there is none."""
    return f"unavailable ({value.reason})" if isinstance(value, Unavailable) else words(value)


def clock_mhz(one: Measurement) -> float | Unavailable:
    """Of the fastest core that the process might use, when its runs had just ended: others may have been idle."""
    clocks = one.after.clocks_mhz
    if isinstance(clocks, Unavailable):
        return clocks
    used = [clocks[core] for core in one.after.affinity if core < len(clocks)] or clocks
    return max(used) if used else Unavailable(reason="no clocks")


def hottest_c(one: Measurement) -> float | Unavailable:
    """The hottest zone when the runs had just ended."""
    readings = one.after.temperatures_c
    if isinstance(readings, Unavailable):
        return readings
    return max(reading.value for reading in readings) if readings else Unavailable(reason="no zones")


def busy_share(one: Measurement) -> float | Unavailable:
    """The median over the processes of what others took."""
    if shares := busy_shares(one):
        return statistics.median(shares)
    return one.starts[0].busy if one.starts else Unavailable(reason="no processes")


def busy_shares(one: Measurement) -> list[float]:
    """What others took beside each process, where that is known."""
    return [start.busy for start in one.starts if not isinstance(start.busy, Unavailable)]


def throttled_now(conditions: Conditions) -> tuple[str, ...] | Unavailable:
    """Reasons that hold; not those that held once since boot."""
    reasons = conditions.throttled
    if isinstance(reasons, Unavailable):
        return reasons
    return tuple(reason for reason in reasons if not reason.endswith(" before"))


def scarce(one: Measurement) -> bool | Unavailable:
    """Whether little memory was left."""
    left, all_of_it = one.after.memory_available_bytes, one.after.memory_total_bytes
    if isinstance(left, Unavailable):
        return left
    return all_of_it if isinstance(all_of_it, Unavailable) else left < SCARCE_SHARE * all_of_it


@dataclass(frozen=True)
class _Condition:
    name: str
    value: Callable[[Measurement], Any]
    bars: bool = False
    same: Callable[[Any, Any], bool] = lambda one, two: bool(one == two)
    words: Callable[[Any], str] = str


def _alike(one: Any, two: Any, same: Callable[[Any, Any], bool]) -> bool:  # noqa: ANN401
    if isinstance(one, Unavailable) or isinstance(two, Unavailable):
        return isinstance(one, Unavailable) and isinstance(two, Unavailable)
    return same(one, two)


def _near(share: float) -> Callable[[float, float], bool]:
    return lambda one, two: abs(one - two) <= share * max(abs(one), abs(two))


def _within(distance: float) -> Callable[[float, float], bool]:
    return lambda one, two: abs(one - two) <= distance


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    return " ".join(str(list(shape)) for shape in shapes)


def _ruled(runs: int | None, rule: str) -> str:
    return rule if runs is None else f"{runs} runs"


def _timed(one: Measurement) -> str:
    if one.spec.single_stream:
        return "single stream"
    return _ruled(one.spec.runs, f"until the median is known within {one.spec.error:g}")


def _percent(share: float) -> str:
    return f"{share:.0%}"


_CONDITIONS = (
    _Condition("device", lambda m: m.before.device_model, bars=True),
    _Condition("processor", lambda m: m.before.cpu_model, bars=True),
    _Condition("chip", lambda m: m.before.soc, bars=True),
    _Condition("machine", lambda m: m.before.machine, bars=True),
    _Condition("processors", lambda m: m.before.cpu_count, bars=True),
    _Condition("instruction sets", lambda m: m.before.isa, bars=True, words=_listed),
    _Condition("threads", lambda m: m.spec.threads, bars=True),
    _Condition("input shapes", lambda m: m.input_shapes, bars=True, words=_shapes),
    _Condition("warm-up", lambda m: _ruled(m.spec.warmup_runs, "until settled")),
    _Condition("timed runs", _timed),
    _Condition("package", lambda m: f"{m.package_name} {m.package_sha256[:12]}"),
    _Condition("variant", lambda m: m.variant),
    _Condition("form", lambda m: m.form),
    _Condition("interpreter", lambda m: f"{m.interpreter} {m.interpreter_version}"),
    _Condition("packed weights", lambda m: m.cache or "off"),
    _Condition("cores it might use", lambda m: m.before.affinity, words=_listed),
    _Condition("governor", lambda m: m.after.governor),
    _Condition("clock", clock_mhz, same=_near(CLOCK_SHARE), words=lambda mhz: f"{mhz:.0f} MHz"),
    _Condition("throttled", lambda m: throttled_now(m.after), words=_listed),
    _Condition("hottest zone", hottest_c, same=_within(HEAT_C), words=lambda c: f"{c:.1f} °C"),
    _Condition("taken by others", busy_share, same=_within(BUSY_SHARE), words=_percent),
    _Condition("load before", lambda m: m.before.load_1m, same=_within(LOAD), words=lambda load: f"{load:.2f}"),
    _Condition("power source", lambda m: m.after.power_source),
    _Condition("memory", lambda m: m.before.memory_total_bytes, same=_near(0.02), words=lambda b: f"{b / 1e6:.0f} MB"),
    _Condition("memory is scarce", scarce, words=lambda yes: "yes" if yes else "no"),
    _Condition("kernel", lambda m: m.before.kernel),
)
