"""Measurements as a trace in the JSON trace event format, which ui.perfetto.dev and chrome://tracing open.

Each fresh process of a measurement is a process of the trace, and so is each run of its own kind (sustained, arrival,
energy, operators). A record keeps durations and not the gaps between them: slices are laid end to end, and where a
record says when something began, there. Source: "Trace Event Format" (the catapult project): slices are `X`, counters
`C`, names `M`, times in microseconds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ferryman.profiler.files import write_whole
from ferryman.profiler.report_details import interval_state, operator_seconds
from ferryman.profiler.report_tables import Found
from ferryman.profiler.report_words import printable, sound
from ferryman.runtime.contracts.energy import Energy, EnergyWindow
from ferryman.runtime.contracts.measurement import Arrival, Conditions, Interval, Measurement, Memory, Start
from ferryman.runtime.contracts.operators import Operators
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples

EVENTS_MAX = 200_000
"""In one file, about 30 MB; of more, every so manieth slice is kept."""
_YEAR_NS = 3.2e16
"""Longer than anything that is measured: what a damaged record cannot stretch a trace beyond."""
_STEPS, _WAITING = 1, 2
"""Threads of a process of the trace."""


def trace(measurements: Found, events_max: int = EVENTS_MAX) -> dict[str, Any]:
    """The trace as JSON values; about `events_max` events at most."""
    parts = max(1, sum(_parts(m) for _, m in measurements))
    begin_ns = min((m.started_at_ns for _, m in measurements), default=0)
    events: list[dict[str, Any]] = []
    processes = 0
    several = len({device for device, _ in measurements}) > 1
    for device, m in measurements:
        about = printable(f"{f'{device}: ' if several else ''}{m.variant} on {m.interpreter}")
        at_ns = max(0, m.started_at_ns - begin_ns)
        for track in _tracks(m, max(1, events_max // parts)):
            processes += 1
            events += track.events(processes, about, at_ns)
            at_ns += track.end_ns
    events.sort(key=lambda event: (event["ph"] != "M", event.get("ts", 0), -event.get("dur", 0)))
    times = "durations are measured and laid end to end; the gaps between them are not in the record"
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"made by": "ferryman", "time 0 as Unix ns": str(begin_ns), "times": times},
    }


def write_trace(measurements: Found, path: Path) -> None:
    """Write a trace file.

    Raises:
        CallerError: the disk refused; see `write_whole`.
    """
    write_whole(path, json.dumps(trace(measurements), separators=(",", ":"), allow_nan=False, ensure_ascii=False))


@dataclass
class _Track:
    """A process of the trace, from its own time 0."""

    name: str
    rows: dict[int, str] = field(default_factory=lambda: {_STEPS: "steps"})
    found: list[dict[str, Any]] = field(default_factory=list)
    end_ns: int = 0

    def slice(
        self, name: str, start_ns: int, took_ns: int, told: dict[str, Any] | None = None, *, thread: int = _STEPS
    ) -> int:
        """Add one and return where it ends."""
        self.found.append(
            {"ph": "X", "name": printable(name), "tid": thread, "ts": start_ns, "dur": took_ns, "args": told or {}}
        )
        self.end_ns = max(self.end_ns, start_ns + took_ns)
        return start_ns + took_ns

    def count(self, name: str, at_ns: int, values: dict[str, float | None]) -> None:
        """Counters that change here, by unit or part; what is None was not measured."""
        known = {key: value for key, value in values.items() if value is not None}
        if known:
            self.found.append({"ph": "C", "name": name, "tid": 0, "ts": at_ns, "args": known})
            self.end_ns = max(self.end_ns, at_ns)

    def events(self, process: int, about: str, at_ns: int) -> list[dict[str, Any]]:
        """With names, in the trace's own time and in microseconds."""
        named: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": f"{self.name}: {about}"}},
            {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}},
        ]
        for thread, name in self.rows.items():
            named.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}})
        for event in self.found:
            begin, end = at_ns + event["ts"], at_ns + event["ts"] + event.get("dur", 0)
            timed = {**event, "cat": "ferryman", "pid": process, "ts": begin / 1e3}
            named.append({**timed, "dur": (end - begin) / 1e3} if "dur" in event else timed)
        return named


def _parts(m: Measurement) -> int:
    """Among how many series of slices a file's room is divided."""
    rows = len(m.operators.rows) if isinstance(m.operators, Operators) else 0
    return 2 * len(m.starts) + len(m.sustained or ()) + 2 * (m.arrival is not None) + 2 * bool(m.energy) + bool(rows)


def _tracks(m: Measurement, room: int) -> Iterable[_Track]:
    for number, start in enumerate(m.starts):
        yield _start_track(m, number, start, room)
    if m.arrival is not None:
        yield _arrival_track(m.arrival, room)
    if m.sustained:
        yield _sustained_track(m.sustained, room)
    if (energy := sound(m.energy)) is not None:
        yield _energy_track(energy, room)
    if isinstance(m.operators, Operators) and m.operators.rows:
        yield _operators_track(m.operators, room)


def _start_track(m: Measurement, number: int, start: Start, room: int) -> _Track:
    track = _Track(f"process {number + 1} of {len(m.starts)}")
    first = number == 0
    _count_conditions(track, 0, m.before if first else None)
    at_ns = 0
    for name, took_ns, phase in (
        ("process start", start.process_ns, m.memory.process),
        ("import interpreter", start.import_ns, m.memory.start),
        ("load", start.load_ns, m.memory.loaded),
        ("first run", start.first_run_ns, m.memory.first_run),
    ):
        at_ns = track.slice(name, at_ns, took_ns)
        _count_memory(track, at_ns, phase if first else None)
    at_ns = _runs(track, "warm-up", at_ns, start.warmup, room)
    at_ns = _runs(track, "timed runs", at_ns, start.samples, room)
    _count_memory(track, at_ns, m.memory.steady if first else None)
    if number == len(m.starts) - 1:
        _count_conditions(track, at_ns, m.after)
    return track


def _runs(track: _Track, name: str, at_ns: int, samples: Samples, room: int, **told: str) -> int:
    """A slice around all of them, and one for each that there is room for; returns where it ends."""
    kept = samples.values_ns()
    step = -(-len(kept) // room) if len(kept) else 1
    stands_for = samples.every * step
    inner: list[tuple[int, int, int]] = []
    end_ns = at_ns
    for index in range(0, len(kept), step):
        inner.append((end_ns, int(kept[index]), index * samples.every))
        # Where durations were left out, those kept stand where they were, as far as can be told.
        end_ns += sum(kept[index : index + step].tolist()) * samples.every
    if stands_for > 1:
        told["shown"] = f"1 of every {stands_for} runs"
    track.slice(name, at_ns, end_ns - at_ns, {"runs": samples.count, **told})
    for start_ns, took_ns, index in inner:
        track.slice("run", start_ns, took_ns, {"run": index})
    return end_ns


def _arrival_track(arrival: Arrival, room: int) -> _Track:
    latency, service = arrival.latency, arrival.service
    step = max(1, -(-len(service) // room))
    shown = "" if step * service.every == 1 else f", 1 of every {step * service.every} shown"
    rows = {_STEPS: "runs", _WAITING: "waiting in line"}
    track = _Track(f"asked {arrival.rate_hz:g} times a second{shown}", rows)
    period_ns = min(1e9 / arrival.rate_hz, _YEAR_NS) if arrival.rate_hz > 0 else 0.0
    free_ns = line_ns = 0
    pairs = zip(latency.values_ns().tolist(), service.values_ns().tolist(), strict=False)
    for index, (late_ns, took_ns) in enumerate(pairs):
        asked_ns = int(index * service.every * period_ns)
        begin_ns = max(asked_ns + late_ns - took_ns, asked_ns, free_ns)
        if index % step == 0:
            if begin_ns > max(asked_ns, line_ns):
                track.slice("line", max(asked_ns, line_ns), begin_ns - max(asked_ns, line_ns), thread=_WAITING)
                line_ns = begin_ns
            track.slice("run", begin_ns, took_ns, {"asked_us": asked_ns / 1e3, "latency_us": late_ns / 1e3})
        free_ns = begin_ns + took_ns
    return track


def _sustained_track(intervals: Sequence[Interval], room: int) -> _Track:
    track = _Track("without a pause")
    free_ns = 0
    for index, one in enumerate(intervals):
        at_ns = max(_ns(one.start_s), free_ns)
        told = {} if isinstance(one.throttled, Unavailable) else {"throttled": printable(", ".join(one.throttled))}
        free_ns = _runs(track, f"interval {index + 1}", at_ns, one.samples, room, **told)
        end_ns = max(free_ns, at_ns + _ns(one.seconds))
        for name, value in interval_state(one).items():
            counter, unit = name.split("\n")
            track.count(counter, end_ns, {unit: value})
        if not isinstance(one.throttled, Unavailable):
            track.count("throttled", end_ns, {"reasons": len(one.throttled)})
    return track


def _energy_track(energy: Energy, room: int) -> _Track:
    track = _Track(f"energy, {printable(energy.source.name)}")
    at_ns = 0
    windows = [("idle", energy.idle), ("runs", energy.active)]
    for name, window in windows:
        if isinstance(window, Unavailable):
            continue
        for time_ns, watts in power_points(window, energy.source.unit)[:: max(1, -(-len(window.values) // room))]:
            track.count("power", at_ns + time_ns, {"W": watts})
        told = {"joules": window.energy_j, "runs": window.runs}
        at_ns = track.slice(name, at_ns, _ns(window.window_s), told)
    return track


def _ns(seconds: float) -> int:
    return round(min(max(seconds, 0.0) * 1e9, _YEAR_NS))


def power_points(window: EnergyWindow, unit: str) -> list[tuple[int, float]]:
    """When, in ns from the window's begin, and watts: as read, or from one reading of a counter to the next."""
    points = list(zip(window.times_ns, window.values, strict=False))
    if unit == "W":
        return points
    pairs = itertools.pairwise(points)
    return [
        (before[0], (after[1] - before[1]) / (after[0] - before[0]) * 1e9)
        for before, after in pairs
        if after[0] > before[0]
    ]


def _operators_track(operators: Operators, room: int) -> _Track:
    shown = "" if len(operators.rows) <= room else f", the first {room} of {len(operators.rows)}"
    track = _Track(f"operators of one run{shown}")
    at_ns = 0
    inner = []
    for row in operators.rows[:room]:
        took_ns = round(1e9 * operator_seconds(row)) if row.samples.count else 0
        told = {
            "operator": printable(row.name), "module": printable(row.module or "not known"),
            "delegate": printable(row.delegate or "none"), "share": row.share, "bytes": row.bytes_moved,
            "macs": row.macs, "flags": ", ".join(row.flags),
        }  # fmt: skip
        inner.append((f"{row.kind} {row.module or ''}".strip(), at_ns, took_ns, told))
        at_ns += took_ns
    track.slice("run", 0, at_ns, {"source": printable(operators.source)})
    for name, start_ns, took_ns, told in inner:
        track.slice(name, start_ns, took_ns, told)
    return track


def _count_memory(track: _Track, at_ns: int, phase: Memory | Unavailable | None) -> None:
    if phase is None or isinstance(phase, Unavailable):
        return
    track.count("RSS", at_ns, {"MB": phase.rss_bytes / 1e6})
    track.count("PSS", at_ns, {"private MB": phase.anonymous_bytes / 1e6, "file MB": phase.file_bytes / 1e6})


def _count_conditions(track: _Track, at_ns: int, conditions: Conditions | None) -> None:
    if conditions is None:
        return
    clocks, temperatures = conditions.clocks_mhz, conditions.temperatures_c
    if not isinstance(clocks, Unavailable) and clocks:
        track.count("clock", at_ns, {"MHz": sum(clocks) / len(clocks)})
    if not isinstance(temperatures, Unavailable) and temperatures:
        track.count("hottest", at_ns, {"°C": max(reading.value for reading in temperatures)})
