"""Measurements as tables of words, which a terminal and a page lay out each in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby

from ferryman.profiler.report_words import (
    MISSING,
    NOT_ASKED,
    headline,
    label,
    mb,
    missing,
    ms,
    number,
    percent,
    printable,
    short,
    sound,
    threads,
    when,
)
from ferryman.profiler.stats import median_error, summarize
from ferryman.runtime.contracts.energy import Energy, EnergyEstimate
from ferryman.runtime.contracts.measurement import Arrival, Measurement, Memory, Pipeline, Start
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples

Found = Sequence[tuple[str, Measurement]]
"""Device name and what was measured there."""
Row = tuple[str, ...]
Columns = tuple[tuple[str, Callable[[Measurement], str]], ...]
_NAME_MAX = 64
BUSY_FROM = 0.1
"""Below it, what others take of the processors is the system's own bustle."""
_FEW = {
    1: "± of p50 is not known of one process: how processes differ is not in it; ask for --starts 5",
    2: "± of p50 is of two processes, so wide that it tells little (Student's t of one degree); ask for --starts 5",
}
"""What is to be said of an error from so few processes."""


@dataclass(frozen=True)
class Group:
    """Columns that stay together where a table is too wide."""

    heads: tuple[str, ...]
    """Each in two lines: what, and its unit."""
    rows: tuple[Row, ...]
    text: bool = False
    """Words, to the left; else numbers, to the right."""

    def filled(self) -> Group:
        """Without columns that tell nothing in any row."""
        told = [at for at in range(len(self.heads)) if any(row[at] not in {MISSING, NOT_ASKED} for row in self.rows)]
        return replace(
            self,
            heads=tuple(self.heads[at] for at in told),
            rows=tuple(tuple(row[at] for at in told) for row in self.rows),
        )


@dataclass(frozen=True)
class Grid:
    """A table."""

    title: str
    keys: Group
    """The first columns, words; repeated where the table is folded."""
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    def filled(self) -> Grid:
        """Without columns that tell nothing in any row; keys stay."""
        return replace(self, groups=tuple(group for one in self.groups if (group := one.filled()).heads))

    def heads(self) -> tuple[str, ...]:
        """Of all columns."""
        return tuple(head for group in (self.keys, *self.groups) for head in group.heads)

    def rows(self) -> list[Row]:
        """Cells of all columns."""
        return [tuple(chain(*cells)) for cells in zip(*(g.rows for g in (self.keys, *self.groups)), strict=True)]


def by_device(measurements: Found) -> list[tuple[str, list[Measurement]]]:
    """In the order of names."""
    ordered = sorted(measurements, key=lambda one: (one[0], *_order(one[1])))
    return [(device, [m for _, m in group]) for device, group in groupby(ordered, key=lambda one: one[0])]


def by_package(measurements: Sequence[Measurement]) -> list[tuple[str, list[Measurement]]]:
    """Title and measurements of each package."""
    return [
        (printable(f"{key[0]} ({key[1][:12]})"), list(group))
        for key, group in groupby(measurements, key=lambda m: (m.package_name, m.package_sha256))
    ]


def main_grid(measurements: Sequence[Measurement]) -> Grid:
    """Of one package on one device: a row for each (variant, interpreter)."""
    kinds = [(m.variant, m.interpreter, m.interpreter_version, m.spec.threads) for m in measurements]
    columns: list[Columns] = [*_COLUMNS]
    if any(m.energy is not None for m in measurements):
        columns.append(_ENERGY)
    if len({m.spec.threads for m in measurements}) > 1:
        columns.insert(0, (("threads\n", lambda m: str(m.spec.threads)),))
    if any(m.energy_estimate is not None for m in measurements):
        columns.append(_ESTIMATE)
    if len(set(kinds)) < len(kinds):
        columns.append((("measured\nUTC", when),))
    notes: dict[str, list[str]] = {}
    for m in measurements:
        for note in _warnings(m):
            notes.setdefault(note, []).append(label(m))
    said = [note if len(of) == len(measurements) else f"{'; '.join(of)}: {note}" for note, of in notes.items()]
    return Grid("", _keys(measurements), tuple(_group(measurements, each) for each in columns), tuple(said))


def about(measurements: Sequence[Measurement]) -> str:
    """Device, interpreters and threads in a line."""
    parts = [headline(measurements[0].after)]
    parts += sorted({printable(f"{m.interpreter} {m.interpreter_version}") for m in measurements})
    used = {threads(m) for m in measurements}
    return ", ".join([*parts, *(used if len(used) == 1 else ())])


def small_grids(measurements: Sequence[Measurement]) -> list[Grid]:
    """What was asked for beside the plain runs and is told in a line each: pipeline, arrival."""
    grids = []
    for title, columns, some in (
        (
            "runs at a fixed rate, latency from the time of asking",
            _ARRIVAL,
            [m for m in measurements if m.arrival is not None],
        ),
        ("time in the runtime's own call", _PIPELINE, [m for m in measurements if isinstance(m.pipeline, Pipeline)]),
    ):
        if some:
            grids.append(Grid(title, _keys(some), (_group(some, columns),)))
    return grids


def missing_notes(measurements: Sequence[Measurement]) -> list[str]:
    """What could not be measured and why, a line for each reason."""
    return [f"{what}: {reason}" for what, reason in missing(list(measurements))]


def energy_words(energy: Energy | Unavailable | None) -> str:
    """Joules an inference, and where they come from."""
    if energy is None:
        return "not asked for"
    if isinstance(energy, Unavailable):
        return f"unavailable: {printable(energy.reason)}"
    if sound(energy) is None:
        return "the record is damaged"
    source, off = energy.source, energy.source.uncertainty
    steps = [
        f"{number(step)} {unit} {what}"
        for step, unit, what in (
            (source.resolution, source.unit, "a step"),
            (off if isinstance(off, Unavailable) else 100 * off, "%", "uncertain"),
        )
        if not isinstance(step, Unavailable)
    ]
    active = energy.active
    window = f"{number(active.window_s)} s, {active.runs:.0f} inferences, {number(active.rate_hz)} readings a second"
    window += f", {active.failed} failed" if active.failed else ""
    note = f"; {source.note}" if source.note else ""
    return printable(f"{source.name}, rails {', '.join(source.rails)}; {'; '.join([window, *steps])}{note}")


def joules(energy: Energy | Unavailable | None) -> tuple[str, str]:
    """Millijoules an inference, gross and net, each with its error."""
    if energy is None:
        return NOT_ASKED, NOT_ASKED
    known = sound(energy)
    if known is None:
        return MISSING, MISSING
    return _millijoules(known.gross_j, known.error_j), _millijoules(known.net_j, known.net_error_j)


def _millijoules(value_j: float | None, error_j: float | None) -> str:
    if value_j is None:
        return MISSING
    return number(1e3 * value_j) + ("" if error_j is None else f" ±{number(1e3 * error_j, 2)}")


def _order(one: Measurement) -> tuple[str, str, str, str, int, int]:
    return one.package_name, one.package_sha256, one.variant, one.interpreter, one.spec.threads, one.started_at_ns


def _keys(measurements: Sequence[Measurement]) -> Group:
    """Names; an interpreter's version only where there are several of it, else it stands above."""
    versions = {(m.interpreter, m.interpreter_version) for m in measurements}
    several = len(versions) > len({name for name, _ in versions})

    def interpreter(m: Measurement) -> str:
        return f"{m.interpreter} {m.interpreter_version}" if several else m.interpreter

    return Group(
        ("variant\n", "interpreter\n"),
        tuple((short(m.variant, _NAME_MAX), short(interpreter(m), _NAME_MAX)) for m in measurements),
        text=True,
    )


def _group(measurements: Sequence[Measurement], columns: Columns) -> Group:
    return Group(tuple(head for head, _ in columns), tuple(tuple(cell(m) for _, cell in columns) for m in measurements))


def _runs(m: Measurement) -> int:
    return sum(start.samples.count for start in m.starts)


def _median(m: Measurement) -> str:
    if not _runs(m):
        return MISSING
    starts = _with_runs(m)
    error = MISSING if len(starts) == 1 else percent(median_error(starts))
    return f"{ms(summarize(_samples(m)).p50_ns)} ±{error}{'' if error == MISSING else ' %'}"


def _with_runs(m: Measurement) -> list[Start]:
    return [start for start in m.starts if start.samples.count]


def _samples(m: Measurement) -> list[Samples]:
    return [start.samples for start in m.starts]


def _percentile(percents: float) -> Callable[[Measurement], str]:
    return lambda m: ms(summarize(_samples(m)).percentile_ns(percents)) if _runs(m) else MISSING


def _cold(m: Measurement) -> str:
    return ms(m.process_ns + m.import_ns + m.load_ns + m.first_run_ns)


def _pss(phase: Memory | Unavailable) -> float | Unavailable:
    return phase if isinstance(phase, Unavailable) else phase.pss_bytes


def _retained(m: Measurement) -> str:
    """What is still there once the session is closed, over what was there before the artifact."""
    start, closed = _pss(m.memory.start), _pss(m.memory.closed)
    if isinstance(start, Unavailable) or isinstance(closed, Unavailable):
        return MISSING
    return number((closed - start) / 1e6)


_COLUMNS: tuple[Columns, ...] = (
    (
        ("runs\n", lambda m: str(_runs(m))),
        ("p50\nms", _median),
        ("p90\nms", _percentile(90)),
        ("p99\nms", _percentile(99)),
    ),
    (
        ("cold\nstart ms", _cold),
        ("process\nms", lambda m: ms(m.process_ns)),
        ("import\nms", lambda m: ms(m.import_ns)),
        ("load\nms", lambda m: ms(m.load_ns)),
        ("first\nrun ms", lambda m: ms(m.first_run_ns)),
    ),
    (
        ("artifact\nkB", lambda m: number(m.artifact_bytes / 1e3)),
        ("loaded\nPSS MB", lambda m: mb(_pss(m.memory.loaded))),
        ("peak\nRSS MB", lambda m: mb(m.memory.peak_rss_bytes)),
        ("retained\nMB", _retained),
    ),
)
_ENERGY: Columns = (
    ("energy\nmJ, gross", lambda m: joules(m.energy)[0]),
    ("energy\nmJ, net", lambda m: joules(m.energy)[1]),
)
"""Only where it was asked for."""


def _of_estimate(joules: Callable[[EnergyEstimate], float]) -> Callable[[Measurement], str]:
    def cell(m: Measurement) -> str:
        if m.energy_estimate is None:
            return NOT_ASKED
        return number(1e3 * joules(m.energy_estimate)) if m.energy_estimate.runs > 0 else MISSING

    return cell


_ESTIMATE: Columns = (
    ("by a model\nmJ, gross", _of_estimate(lambda estimate: estimate.gross_j)),
    ("by a model\nmJ, net", _of_estimate(lambda estimate: estimate.net_j)),
)
"""Apart from what was measured, and only where it was asked for."""


def _of_arrival(cell: Callable[[Arrival], str]) -> Callable[[Measurement], str]:
    return lambda m: NOT_ASKED if m.arrival is None else cell(m.arrival) if m.arrival.latency.count else MISSING


def _of_pipeline(cell: Callable[[Pipeline], str]) -> Callable[[Measurement], str]:
    return lambda m: MISSING if isinstance(m.pipeline, Unavailable) or not m.pipeline.whole.count else cell(m.pipeline)


_ARRIVAL: Columns = (
    ("asked\na second", _of_arrival(lambda a: number(a.rate_hz))),
    ("runs\n", _of_arrival(lambda a: str(a.latency.count))),
    ("p50\nms", _of_arrival(lambda a: ms(summarize(a.latency).p50_ns))),
    ("p90\nms", _of_arrival(lambda a: ms(summarize(a.latency).p90_ns))),
    ("p99\nms", _of_arrival(lambda a: ms(summarize(a.latency).p99_ns))),
    ("run alone\np50 ms", _of_arrival(lambda a: ms(summarize(a.service).p50_ns))),
    ("keeps up\n", _of_arrival(lambda a: "no" if a.behind else "yes")),
)
_PIPELINE: Columns = (
    ("whole\np50 ms", _of_pipeline(lambda p: ms(summarize(p.whole).p50_ns))),
    ("model\np50 ms", _of_pipeline(lambda p: ms(summarize(p.model).p50_ns))),
    ("beside it\nus", _of_pipeline(lambda p: number((summarize(p.whole).p50_ns - summarize(p.model).p50_ns) / 1e3))),
    ("model's\nshare %", _of_pipeline(lambda p: percent(_ratio(summarize(p.model).p50_ns, summarize(p.whole).p50_ns)))),
)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _warnings(m: Measurement) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    many = len(m.starts)
    if few := _FEW.get(len(_with_runs(m))):
        found.append(few)
    if restless := [str(n + 1) for n, start in enumerate(m.starts) if not start.settled]:
        found.append(f"runs had not settled after warm-up in process {', '.join(restless)} of {many}")
    found += _not_cool(m)
    busy = [start.busy for start in m.starts if not isinstance(start.busy, Unavailable)]
    if busy and max(busy) >= BUSY_FROM:
        found.append(f"others took up to {percent(max(busy))} % of the processors during the timed runs")
    now = () if isinstance(m.after.throttled, Unavailable) else m.after.throttled
    if now:
        found.append(f"throttled: {printable(', '.join(now))}")
    if m.arrival is not None and m.arrival.behind:
        found.append(f"cannot keep {number(m.arrival.rate_hz)} runs a second: the line was still growing at the end")
    return found


def _not_cool(m: Measurement) -> Iterator[str]:
    """Processes that began although it was not known that the device was cool: too hot, or of unknown temperature."""
    hot: list[str] = []
    unknown: dict[str, list[str]] = {}
    for place, start in enumerate(m.starts, 1):
        if start.gate is None or start.gate.opened:
            continue
        found = start.gate.temperature_c
        (unknown.setdefault(found.reason, []) if isinstance(found, Unavailable) else hot).append(str(place))
    if hot:
        yield f"began too hot in process {', '.join(hot)} of {len(m.starts)}: waiting did not cool the device enough"
    for reason, processes in unknown.items():
        yield (
            f"began at an unknown temperature in process {', '.join(processes)} of {len(m.starts)}, "
            f"without waiting for the device to cool: {printable(reason)}"
        )
