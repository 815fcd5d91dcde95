"""A fleet's telemetry as tables for a terminal; what could steer one is replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from ferryman.devices.fleet.alerts.silences import SilenceRow
from ferryman.devices.fleet.query.records import (
    AlertRow,
    Alerts,
    Compared,
    Comparison,
    DeviceRow,
    Devices,
    FleetStatus,
    LogRow,
    RunRow,
    Runs,
    Silences,
    Worst,
)
from ferryman.devices.fleet.query.who import is_silent
from ferryman.profiler.report_tables import Grid, Group
from ferryman.profiler.report_text import show_grid, show_lines
from ferryman.profiler.report_words import MISSING, NOT_ASKED, number, printable, short
from ferryman.runtime.contracts.record import Unavailable

_NAMED_MAX = 6
_TEXT_MAX = 48
_REVISION = re.compile(r" Rev [\d.]+$")
R = TypeVar("R")
Columns = Sequence[tuple[str, Callable[[R], str]]]
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def status_text(found: FleetStatus, width: int, *, colour: bool) -> str:
    """One screen."""
    apart = {"offline": found.devices - found.online, "silent": found.silent}
    alerts = ", ".join(f"{count:,} {severity}" for severity, count in found.open_alerts.items())
    latency = "none in the window"
    if (q := found.latency_ms) is not None:
        percentiles = ", ".join(f"{name} {number(getattr(q, name))}" for name in ("p50", "p90", "p95", "p99", "most"))
        latency = f"{percentiles} ms, of {q.count:,}"
    lines = {
        "online": f"{found.online - found.silent:,} of {found.devices:,} devices"
        + "".join(f", {count:,} {name}" for name, count in apart.items() if count),
        "alerts": alerts or "none open",
        "samples": f"{number(found.samples_per_minute)} a minute, over the last five",
        "inferences": f"{found.inferences:,}, {found.errors:,} errors",
        "latency": latency,
        "dropped": f"{found.drops:,} records, {found.dropped_total:,} ever; {found.waiting:,} wait in outboxes",
        "packages": _named(found.packages),
        "releases": _named(found.releases),
        "ferryman": _named(found.ferryman),
        "models": _named(found.models),
    }
    title = f"fleet at {utc(found.now_ns)} UTC; inferences, latency, dropped since {utc(found.since_ns)}"
    text = show_lines(title, [f"{name:<11}{words}" for name, words in lines.items()], width, colour=colour, strong=True)
    worst: list[tuple[str, str, str, str]] = []
    for what, unit, those in (
        ("errors", "%", found.worst_error_percent),
        ("latency", "ms", found.worst_latency_ms),
        ("temperature", "°C", found.worst_temperature_c),
    ):
        worst += [_worst(what if not at else "", unit, one, found.now_ns) for at, one in enumerate(those)]
    if not worst:
        return text
    columns = [("most\n", 0), ("device\n", 1), ("value\n", 2), ("ago\n", 3)]
    texts: Columns[tuple[str, str, str, str]] = [(head, _nth(at)) for head, at in columns[:2]]
    numbers: Columns[tuple[str, str, str, str]] = [(head, _nth(at)) for head, at in columns[2:]]
    return f"{text}\n\n{_table('by the newest samples', worst, texts, numbers, width, colour=colour)}"


def _there(row: DeviceRow, now_ns: int) -> str:
    """Metered and paused: so its mode on the device says. Silent: it never said that it went, and is not heard."""
    if is_silent(row.online, row.seen_ns, now_ns):
        return "SILENT"
    if row.online:
        return "metered" if row.mode == "metered" else "online"
    return "paused" if row.mode == "offline" else "OFFLINE"


def _trouble(row: DeviceRow) -> str:
    said = {
        f"disk {row.storage}": row.storage,
        "throttled": row.throttled,
        "clock unsure": row.clock_sure is False,
    }
    words = [words for words, holds in said.items() if holds]
    more = f" +{len(words) - 1}" if len(words) > 1 else ""
    return words[0] + more if words else NOT_ASKED


def _model(row: DeviceRow) -> str:
    return short(_REVISION.sub("", row.model), _TEXT_MAX) or NOT_ASKED


def devices_text(found: Devices, now_ns: int, width: int, *, colour: bool) -> str:
    """A row for each; columns in which no device has anything are left out, and what fits no row is in the JSON."""
    words: Columns[DeviceRow] = [
        ("device\n", lambda row: row.device),
        ("\n", lambda row: _there(row, now_ns)),
        ("trouble\n", _trouble),
        ("model\n", _model),
        ("labels\n", lambda row: labels(row.labels) or NOT_ASKED),
        ("package\n", lambda row: _package(row.package, row.package_sha256)),
        ("release\n", lambda row: row.release or NOT_ASKED),
    ]
    numbers: Columns[DeviceRow] = [
        ("seen\nago", lambda row: age(now_ns - row.seen_ns)),
        ("for\n", lambda row: age(now_ns - row.changed_ns)),
        ("p50\nms", lambda row: _number(row.latency_p50_ms)),
        ("p95\nms", lambda row: _number(row.latency_p95_ms)),
        ("infer-\nences", lambda row: f"{row.inferences:,}"),
        ("err-\nors", lambda row: f"{row.errors:,}"),
        ("temp\n°C", lambda row: _number(row.temperature_c)),
        ("out-\nbox", lambda row: f"{row.waiting:,}"),
        ("drop-\nped", lambda row: f"{row.dropped:,}" if row.dropped else NOT_ASKED),
        ("ferry-\nman", lambda row: row.ferryman or NOT_ASKED),
    ]
    title = (
        f"{len(found.rows):,} of {found.total or 0:,} devices; latency, inferences, errors since {utc(found.since_ns)}"
    )
    if len(versions := {row.ferryman for row in found.rows if row.ferryman}) == 1:
        title += f"; ferryman {versions.pop()}"
        numbers = numbers[:-1]
    words, numbers = (
        [one for one in columns if any(one[1](row) != NOT_ASKED for row in found.rows)] for columns in (words, numbers)
    )
    return _table(title, found.rows, words, numbers, width, colour=colour)


def runs_text(found: Runs, width: int, *, colour: bool) -> str:
    """A row for each measurement."""
    words: Columns[RunRow] = [
        ("when\nUTC", lambda row: utc(row.time_ns)),
        ("device\n", lambda row: row.device),
        ("variant\n", lambda row: row.variant),
        ("package\n", lambda row: _package(row.package, row.package_sha256)),
        ("interpreter\n", lambda row: f"{row.interpreter} {row.interpreter_version}"),
    ]
    numbers: Columns[RunRow] = [
        ("threads\n", lambda row: str(row.threads)),
        ("p50\nms", lambda row: _value(row.latency_ms)),
        ("p90\nms", lambda row: _value(row.latency_p90_ms)),
        ("p99\nms", lambda row: _value(row.latency_p99_ms)),
        ("load\nms", lambda row: _value(row.load_ms)),
        ("first run\nms", lambda row: _value(row.first_run_ms)),
        ("memory\nMB", lambda row: _value(row.memory_mb)),
        ("energy\nmJ", lambda row: _value(row.energy_mj)),
        ("artifact\nkB", lambda row: _value(row.artifact_kb)),
    ]
    return _table(f"{len(found.rows):,} measurements", found.rows, words, numbers, width, colour=colour, keys=3)


def alerts_text(found: Alerts, now_ns: int, width: int, *, colour: bool) -> str:
    """A row for each."""
    words: Columns[AlertRow] = [
        ("since\nUTC", lambda row: utc(row.since_ns)),
        ("until\nUTC", lambda row: "it holds" if row.until_ns is None else utc(row.until_ns)),
        ("severity\n", lambda row: row.severity),
        ("device\n", lambda row: row.device),
        ("rule\n", lambda row: row.rule),
        ("silenced until\nUTC", _silenced),
        ("text\n", lambda row: row.text),
    ]
    numbers: Columns[AlertRow] = [("for\n", lambda row: age((row.until_ns or now_ns) - row.since_ns))]
    return _table(
        f"{len(found.rows):,} of {found.total or 0:,} alerts", found.rows, words, numbers, width, colour=colour
    )


def _silenced(row: AlertRow) -> str:
    return NOT_ASKED if row.silenced_until_ns is None else f"{utc(row.silenced_until_ns)}, by {row.silence}"


def silences_text(found: Silences, width: int, *, colour: bool) -> str:
    """A row for each."""
    words: Columns[SilenceRow] = [
        ("number\n", lambda row: str(row.id)),
        ("devices\n", lambda row: row.devices),
        ("rules\n", lambda row: ", ".join(row.rules) or "all"),
        ("since\nUTC", lambda row: utc(row.since_ns)),
        ("until\nUTC", lambda row: utc(row.until_ns)),
        ("by\n", lambda row: row.by),
        ("ended by\n", lambda row: NOT_ASKED if row.ended_ns is None else f"{row.ended_by}, {utc(row.ended_ns)}"),
        ("why\n", lambda row: row.why),
    ]
    count = sum(row.since_ns <= found.now_ns < row.ends_ns for row in found.rows)
    return _table(f"silences: {count} in force", found.rows, words, [], width, colour=colour)


def comparison_text(found: Comparison, width: int, *, colour: bool) -> str:
    """A row for each metric and group."""
    words: Columns[Compared] = [
        ("metric\n", lambda row: row.metric),
        (f"{found.by}\n", lambda row: _group(found, row.group)),
    ]
    numbers: Columns[Compared] = [
        ("devices\n", lambda row: f"{row.devices:,}"),
        ("values\n", lambda row: f"{row.units:,}"),
        ("samples\n", lambda row: f"{row.samples:,}"),
        ("median\n", lambda row: number(row.median)),
        ("ratio\n", lambda row: "1" if row.group == found.baseline else _number(row.ratio)),
        ("95 %\nfrom", lambda row: _number(row.low)),
        ("\nto", lambda row: _number(row.high)),
        ("pairs\n", lambda row: NOT_ASKED if row.pairs is None else f"{row.pairs:,}"),
        ("verdict\n", lambda row: row.verdict or NOT_ASKED),
    ]
    unit = "an hour" if found.by == "device" else "a device"
    title = (
        f"since {utc(found.since_ns)}, over {_group(found, found.baseline)}: {unit} is one value, its median; "
        f"margin {found.margin * 100:g} %"
    )
    return _table(title, found.rows, words, numbers, width, colour=colour)


def log_line(row: LogRow) -> str:
    """One line."""
    mark = "" if row.clock == "sure" else "?" if row.clock == "unsure" else "~"
    times = f" ({row.times} times)" if row.times > 1 else ""
    return printable(f"{utc(row.time_ns)}{mark} {row.device} {row.level} {row.logger}: {row.message}{times}")


def utc(time_ns: int) -> str:
    """To the second."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def age(age_ns: int) -> str:
    """In the largest unit that there are two of, or seconds."""
    seconds = max(0, age_ns // 10**9)
    for length, unit in _AGES:
        if seconds >= 2 * length or length == 1:
            return f"{seconds // length:,} {unit}"
    raise AssertionError


def labels(told: Mapping[str, str]) -> str:
    """In the words of queries."""
    return ", ".join(f"{name}={value}" for name, value in sorted(told.items()))


def _named(counts: Mapping[str, int]) -> str:
    words = [f"{name} {count:,}" for name, count in [*counts.items()][:_NAMED_MAX]]
    beyond = len(counts) - _NAMED_MAX
    return printable(", ".join([*words, *([f"and {beyond:,} others"] if beyond > 0 else [])])) or "none"


def _nth(at: int) -> Callable[[tuple[str, ...]], str]:
    return lambda row: row[at]


def _worst(what: str, unit: str, one: Worst, now_ns: int) -> tuple[str, str, str, str]:
    return what, one.device, f"{number(one.value)} {unit}", age(now_ns - one.time_ns)


def _package(name: str | None, sha256: str | None) -> str:
    return f"{short(name or '', _TEXT_MAX)} {sha256[:12]}" if sha256 else NOT_ASKED


def _group(found: Comparison, group: str) -> str:
    return _package(found.names[group], group) if group in found.names else short(group, 24)


def _number(value: float | None) -> str:
    return NOT_ASKED if value is None else number(value)


def _value(value: float | Unavailable) -> str:
    return MISSING if isinstance(value, Unavailable) else number(value)


def _table(
    title: str,
    rows: Iterable[R],
    words: Columns[R],
    numbers: Columns[R],
    width: int,
    *,
    colour: bool,
    keys: int = 1,
) -> str:
    """The first `keys` columns are repeated where the table is folded."""
    rows = list(rows)
    if not rows:
        return printable(title)

    def group(columns: Columns[R], *, text: bool) -> Group:
        cells = tuple(tuple(printable(of(row)) for _, of in columns) for row in rows)
        return Group(tuple(head for head, _ in columns), cells, text=text)

    single = [group([column], text=False) for column in numbers]
    beside = [group([column], text=True) for column in words[keys:]]
    grid = Grid(printable(title), group(words[:keys], text=True), (*beside, *single))
    return show_grid(grid, width, colour=colour)
