"""What is told of one measurement at length, as tables: operators, layers, a sustained run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ferryman.profiler.report_tables import BUSY_FROM, Grid, Group
from ferryman.profiler.report_words import MISSING, NOT_ASKED, ms, number, percent, printable, short, took
from ferryman.profiler.stats import summarize
from ferryman.runtime.contracts.layers import Layer, LayerStatistics
from ferryman.runtime.contracts.measurement import Interval, Measurement
from ferryman.runtime.contracts.operators import Operator, Operators, Peak
from ferryman.runtime.contracts.record import Unavailable

_NAME_MAX = 30
_EARLY = 10
"""A sustained run's start is this part of its intervals."""
_CLOCK_STEP_S = 1e-6
"""Of the interpreters' own clocks: what took less may be on record as nothing."""
_BEYOND = "*"


def detail_grids(m: Measurement, rows_max: int) -> list[Grid]:
    """Those of its parts that were measured, each cut to so many rows, with a note that says how many are left out.

    Columns without a value in any row are left out: what could not be measured is told beside the tables.
    """
    grids = []
    if m.sustained:
        grids.append(sustained_grid(m.sustained, rows_max))
    if isinstance(m.operators, Operators):
        grids.append(operators_grid(m.operators, rows_max))
    if isinstance(m.layers, LayerStatistics):
        grids.append(layers_grid(m.layers, rows_max))
    return [grid.filled() for grid in grids]


def sustained_grid(intervals: Sequence[Interval], rows_max: int) -> Grid:
    """A row for each interval; of more than `rows_max`, several to a row.

    Rows are held against the first tenth of the intervals, as a single one scatters.
    """
    together = -(-len(intervals) // rows_max)
    stretches = [intervals[at : at + together] for at in range(0, len(intervals), together)]
    early = intervals[: max(together, -(-len(intervals) // _EARLY))]
    first = _p50_ns(early)
    end = _end_s(intervals)
    notes = [f"{together} intervals to a row; medians of all their runs"] if together > 1 else []
    notes.append(
        f"over the first: p50 over that of the first {number(_end_s(early))} s; runs a second count stalls, too"
    )
    if {_throttled(some) for some in stretches} == {NOT_ASKED}:
        notes.append("nothing was throttled")
    return Grid(
        f"without a pause for {number(end)} s",
        Group(("from\ns",), tuple((number(some[0].start_s),) for some in stretches)),
        (
            Group(
                ("runs\n", "runs\na second", "p50\nms", "over the\nfirst %", "p99\nms"),
                tuple(_latency_cells(some, first) for some in stretches),
            ),
            Group(
                _STATES,
                tuple(_state_cells(some) for some in stretches),
            ),
            Group(("throttled\n",), tuple((_throttled(some),) for some in stretches), text=True),
        ),
        tuple(notes),
    )


def operators_grid(operators: Operators, rows_max: int) -> Grid:
    """The heaviest first, by the place in which they run."""
    ranked = sorted(enumerate(operators.rows, 1), key=lambda one: -one[1].share)
    shown, rest = ranked[:rows_max], ranked[rows_max:]
    notes = [*_roof_notes(operators, [one for _, one in shown]), printable(operators.source)]
    if rest:
        share = percent(sum(one.share for _, one in rest))
        notes.append(f"{len(rest)} more operators, together {share} % of the time, are not shown")
    total_s = sum(operator_seconds(one) for one in operators.rows if one.samples.count)
    if operators.whole.count:
        whole = summarize(operators.whole).p50_ns
        notes.append(
            f"all operators add up to {ms(1e9 * total_s)} ms; whole runs beside them took {ms(whole)} ms (p50)"
        )
    notes += [
        f"{len(one)} {what}: {percent(sum(o.share for o in one))} % of the time" for what, one in _flagged(operators)
    ]
    return Grid(
        "time by operator",
        Group(
            ("#\n", "operator\n", "module\n"),
            tuple((str(at), short(o.kind, _NAME_MAX), short(o.module or NOT_ASKED, _NAME_MAX)) for at, o in shown),
            text=True,
        ),
        (
            Group(
                ("time\n%", "\nms"),
                tuple((_share(one, total_s), took(1e3 * operator_seconds(one))) for _, one in shown),
            ),
            Group(
                ("moved\nMB", "\nMMAC", "\nGMAC/s", "\nGB/s", "of fp32\nroof %"),
                tuple(_rates(one, operators.peak) for _, one in shown),
            ),
            Group(
                ("delegate\n", "flags\n", "its own name\n"),
                tuple(
                    (
                        short(o.delegate or NOT_ASKED, _NAME_MAX),
                        ", ".join(o.flags) or NOT_ASKED,
                        short(o.name, _NAME_MAX),
                    )
                    for _, o in shown
                ),
                text=True,
            ),
        ),
        tuple(notes),
    )


def layers_grid(layers: LayerStatistics, rows_max: int) -> Grid:
    """In the order of the record."""
    shown, rest = layers.rows[:rows_max], layers.rows[rows_max:]
    notes = [
        printable(f"{layers.source}; over {layers.inputs} input{'' if layers.inputs == 1 else 's'}"),
        f"a layer can tell at most {layers.information_max_bits:.3g} bit of which input it was"
        if layers.information_max_bits
        else "all inputs are alike, so what a layer tells of its input is not known; give several that differ",
    ]
    if rest:
        notes.append(f"{len(rest)} more layers are not shown")
    if layers.left_out:
        notes.append(f"{len(layers.left_out)} tensors cannot be seen, such as {printable(layers.left_out[0])}")
    return Grid(
        "activations by layer",
        Group(
            ("layer\n", "module\n"),
            tuple((short(one.name, _NAME_MAX), short(one.module or NOT_ASKED, _NAME_MAX)) for one in shown),
            text=True,
        ),
        (
            Group(
                ("dtype\n", "shape\n"),
                tuple((printable(one.dtype), "x".join(map(str, one.shape)) or "scalar") for one in shown),
                text=True,
            ),
            Group(
                ("least\n", "most\n", "mean\n", "std\n"),
                tuple(tuple(map(number, (o.least, o.most, o.mean, o.std))) for o in shown),
            ),
            Group(
                ("zeros\n%", "saturated\n%", "dead\nchannels %", "tells of\ninput, bit", "a unit\ntells, bit"),
                tuple(_shares(one) for one in shown),
            ),
        ),
        tuple(notes),
    )


def operator_seconds(operator: Operator) -> float:
    """Mean of the middle half of its samples, as for `Operator.share`; not a number where it was never timed."""
    count = operator.samples.count
    if not count:
        return math.nan
    values, counts = operator.samples.weighted()
    ends = np.cumsum(counts).clip(count // 4, count - count // 4)
    weights = np.diff(ends, prepend=count // 4)
    return float(values.astype(np.float64) @ weights) / int(weights.sum()) / 1e9


def of_roof(operator: Operator, peak: Peak | Unavailable) -> float:
    """The least time that the device's peaks allow, over the time taken; not a number where it cannot be told."""
    seconds = operator_seconds(operator)
    if isinstance(peak, Unavailable) or not seconds > 0 or (not operator.macs and not operator.bytes_moved):
        return math.nan
    if not min(peak.gmacs_per_s, peak.gbytes_per_s) > 0:
        return math.nan
    least = max((operator.macs or 0) / peak.gmacs_per_s, (operator.bytes_moved or 0) / peak.gbytes_per_s) / 1e9
    return least / seconds


def _share(one: Operator, total_s: float) -> str:
    """Of the time; of what took less than a step of the clock, what that step would be."""
    if operator_seconds(one) != 0:
        return percent(one.share)
    most = _CLOCK_STEP_S / total_s if total_s > 0 else 1.0
    return f"<{math.ceil(1e3 * most) / 10:.1f}" if most < 1 else MISSING


def _rates(one: Operator, peak: Peak | Unavailable) -> tuple[str, ...]:
    seconds = operator_seconds(one)

    def rate(amount: int | None) -> str:
        return MISSING if amount is None else number(amount / seconds / 1e9) if amount and seconds > 0 else NOT_ASKED

    return (
        MISSING if one.bytes_moved is None else number(one.bytes_moved / 1e6),
        MISSING if one.macs is None else number(one.macs / 1e6),
        rate(one.macs),
        rate(one.bytes_moved),
        (percent(of_roof(one, peak)) if seconds > 0 else NOT_ASKED) + (_BEYOND if _beyond(one, peak) else ""),
    )


def _beyond(one: Operator, peak: Peak | Unavailable) -> bool:
    """Whether it shows as more than the roof; not a number is not."""
    return of_roof(one, peak) > 1.0005  # noqa: PLR2004  # shown to a tenth of a percent


def _roof_notes(operators: Operators, shown: Sequence[Operator]) -> Iterator[str]:
    peak = operators.peak
    if isinstance(peak, Unavailable):
        return
    yield (
        f"roof: {number(peak.gmacs_per_s)} GMAC/s in fp32 and {number(peak.gbytes_per_s)} GB/s"
        ", one thread, measured on this device just before the operators; the share is the least time that allows over "
        "the time taken"
    )
    if isinstance(peak.busy, Unavailable):
        yield "what else ran while the roof was measured is not known: under load it comes out lower"
    elif peak.busy >= BUSY_FROM:
        yield (
            f"others took {percent(peak.busy)} % of the processors while the roof was measured: it is too low, and "
            "differs from one profile to the next; measure again on a quiet device"
        )
    if any(_beyond(one, peak) for one in shown):
        yield (
            f"{_BEYOND} more than the roof allows: data that lay in caches, int8, or so short a time that the clock's "
            "step of 1 us counts"
        )


def _flagged(operators: Operators) -> list[tuple[str, list[Operator]]]:
    words = {"undelegated": "undelegated (the interpreter's portable kernels)", "layout copy": "layout copies"}
    found = [(words[flag], [one for one in operators.rows if flag in one.flags]) for flag in words]
    return [(what, some) for what, some in found if some]


def _shares(one: Layer) -> tuple[str, ...]:
    dead = NOT_ASKED if one.dead is None else percent(one.dead)
    bits = (one.information_bits, one.unit_bits)
    told = (MISSING if isinstance(some, Unavailable) else number(some) for some in bits)
    return percent(one.zeros), percent(one.saturated), dead, *told


def _end_s(some: Sequence[Interval]) -> float:
    return some[-1].start_s + some[-1].seconds


def _p50_ns(some: Sequence[Interval]) -> float:
    return summarize([one.samples for one in some]).p50_ns if _runs(some) else math.nan


def _runs(some: Sequence[Interval]) -> int:
    return sum(one.samples.count for one in some)


def _latency_cells(some: Sequence[Interval], first_ns: float) -> tuple[str, ...]:
    seconds = sum(one.seconds for one in some)
    rate = number(_runs(some) / seconds) if seconds > 0 else MISSING
    if not _runs(some):
        return "0", rate, MISSING, MISSING, MISSING
    summary = summarize([one.samples for one in some])
    over = summary.p50_ns / first_ns - 1 if first_ns > 0 else math.nan
    grown = f"{100 * over:+.1f}" if math.isfinite(over) else MISSING
    return str(summary.count), rate, ms(summary.p50_ns), grown, ms(summary.p99_ns)


def interval_state(one: Interval) -> dict[str, float | None]:
    """What the device was like, by the heads of the table; None: could not be measured."""
    clocks = () if isinstance(one.clocks_mhz, Unavailable) else one.clocks_mhz
    hottest = () if isinstance(one.temperatures_c, Unavailable) else [reading.value for reading in one.temperatures_c]
    busy, load, free, rss = (
        None if isinstance(value, Unavailable) else float(value)
        for value in (one.busy, one.load_1m, one.memory_available_bytes, one.rss_bytes)
    )
    return {
        "clock\nMHz": statistics.mean(clocks) if clocks else None,
        "hottest\n°C": max(hottest, default=None),
        "others\n%": None if busy is None else 100 * busy,
        "load\n1 min": load,
        "free\nMB": None if free is None else free / 1e6,
        "own RSS\nMB": None if rss is None else rss / 1e6,
    }


_WORST: dict[str, Callable[[Sequence[float]], float]] = {"clock\nMHz": min, "free\nMB": min}
"""Of several intervals the lowest; of all other states the highest."""
_STATES = ("clock\nMHz", "hottest\n°C", "others\n%", "load\n1 min", "free\nMB", "own RSS\nMB")


def _state_cells(some: Sequence[Interval]) -> tuple[str, ...]:
    states = [interval_state(one) for one in some]
    cells = []
    for name in _STATES:
        known = [value for state in states if (value := state[name]) is not None]
        cells.append(number(_WORST.get(name, max)(known)) if known else MISSING)
    return tuple(cells)


def _throttled(some: Sequence[Interval]) -> str:
    known = [one.throttled for one in some if not isinstance(one.throttled, Unavailable)]
    if not known:
        return MISSING
    return printable(", ".join(dict.fromkeys(reason for reasons in known for reason in reasons))) or NOT_ASKED
