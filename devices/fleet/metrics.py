"""What a search asks of a measurement: one number each, the less the better, with its unit in its name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from ferryman.profiler.stats import median_error, summarize
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import Unavailable

Value = float | Unavailable
_NOT_ASKED = Unavailable(reason="energy was not asked for")


def _percentile(percent: float) -> Callable[[Measurement], Value]:
    return lambda found: summarize([start.samples for start in found.starts]).percentile_ns(percent) / 1e6


def _latency_error(found: Measurement) -> Value:
    """Half of the 95 % confidence interval of the median, over it."""
    error = median_error(found.starts)
    return error if math.isfinite(error) else Unavailable(reason="too few runs to tell how far they spread")


def _cold_start_ms(found: Measurement) -> Value:
    """From asking for a process to the first answer."""
    return statistics.median(s.process_ns + s.import_ns + s.load_ns + s.first_run_ns for s in found.starts) / 1e6


def _memory_mb(found: Measurement) -> Value:
    """The most the whole process held."""
    peak = found.memory.peak_rss_bytes
    return peak if isinstance(peak, Unavailable) else peak / 1e6


def _model_memory_mb(found: Measurement) -> Value:
    """What the artifact added to a process with the interpreter in it, shared pages left out."""
    start, steady = found.memory.start, found.memory.steady
    if isinstance(start, Unavailable):
        return start
    return steady if isinstance(steady, Unavailable) else (steady.uss_bytes - start.uss_bytes) / 1e6


def _energy_mj(found: Measurement) -> Value:
    return found.energy.gross_j * 1e3 if isinstance(found.energy, Energy) else found.energy or _NOT_ASKED


def _energy_net_mj(found: Measurement) -> Value:
    """Beyond what the idle device takes."""
    if not isinstance(found.energy, Energy):
        return found.energy or _NOT_ASKED
    if found.energy.net_j is None:
        return found.energy.idle if isinstance(found.energy.idle, Unavailable) else _NOT_ASKED
    return found.energy.net_j * 1e3


def _busy(found: Measurement) -> Value:
    """Share of the processors that others took: how far the other numbers are disturbed."""
    most = 0.0
    for start in found.starts:
        if isinstance(start.busy, Unavailable):
            return start.busy
        most = max(most, start.busy)
    return most


METRICS: dict[str, Callable[[Measurement], Value]] = {
    "latency_ms": _percentile(50),
    "latency_error": _latency_error,
    "latency_p90_ms": _percentile(90),
    "latency_p99_ms": _percentile(99),
    "load_ms": lambda found: found.load_ns / 1e6,
    "first_run_ms": lambda found: found.first_run_ns / 1e6,
    "cold_start_ms": _cold_start_ms,
    "memory_mb": _memory_mb,
    "model_memory_mb": _model_memory_mb,
    "energy_mj": _energy_mj,
    "energy_net_mj": _energy_net_mj,
    "artifact_kb": lambda found: found.artifact_bytes / 1e3,
    "busy": _busy,
}
"""Medians over runs or processes where there are several; 1 MB is 10^6 bytes; energy is of one inference."""
OF_ENERGY = frozenset({"energy_mj", "energy_net_mj"})
"""Measured only where one of them is asked for: it takes twenty seconds a process."""


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        CallerError: there are none, or one is not known.
    """
    if isinstance(names, str):
        raise CallerError(f"metrics are names in a tuple, found {names!r}; write ({names!r},)")
    if unknown := [name for name in names if name not in METRICS]:
        raise CallerError(f"no metric {', '.join(map(repr, unknown))}; there are: {', '.join(METRICS)}")
    if not names:
        raise CallerError(f"no metric is asked for; there are: {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))
