"""Measurements for people: a plain table, and a page that stands alone (host side; the page takes ferryman[collector]).

Names in a measurement come from devices and packages: they are escaped, and characters that could steer a terminal
or break the page's encoding are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from ferryman.profiler.stats import Summary, summarize
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Conditions, Energy, Measurement, Memory, Reading
from ferryman.runtime.contracts.record import Record, Unavailable

Found = Sequence[tuple[str, Measurement]]
"""Device name and what was measured there."""

UNAVAILABLE = "unavailable"
_TEMPLATE = "report.html"


def table(measurements: Found) -> str:
    """A plain-text table for each device; every number's unit is in its column's head."""
    return "\n\n".join(
        f"{_printable(device)}\n{_table([[cell(m) for _, cell in COLUMNS] for m in of_device])}"
        for device, of_device in _by_device(measurements)
    )


def write_html(measurements: Found, path: Path, *, left_out: Sequence[str] = ()) -> None:
    """Write one page with every plot, condition and missing sensor in it; it loads nothing and runs no script.

    `left_out` tells, in words, what is not among `measurements`.

    Raises:
        CallerError: jinja2 or matplotlib is not installed.
        OSError: the disk refused.
    """
    try:
        import jinja2
        import markupsafe

        from ferryman.profiler.report_plot import latency_svg
    except ImportError as error:
        raise CallerError(f"{error}; install what pages need: pip install 'ferryman[collector]'") from error

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(resources.files("ferryman.profiler").joinpath(_TEMPLATE).read_text("utf-8"))
    devices = [
        {
            "name": device,
            "conditions": _headline(of_device[0].after),
            "rows": [[cell(m) for _, cell in COLUMNS] for m in of_device],
            "plots": [
                (package, markupsafe.Markup(latency_svg(_plotted(group))))  # noqa: S704  # matplotlib escapes
                for package, group in _by_package(of_device)
            ],
            "missing": _missing(of_device),
            "details": [_details(m) for m in of_device],
        }
        for device, of_device in _by_device(measurements)
    ]
    heads = [head for head, _ in COLUMNS]
    page = template.render(heads=heads, devices=devices, count=len(measurements), left_out=left_out)
    path.write_text(page, "utf-8")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not abs(value) >= 1e-9:  # noqa: PLR2004  # what is smaller is no measurement
        return "0"
    digits = 0
    while abs(value) * 10**digits < 100:  # noqa: PLR2004  # three digits before the point
        digits += 1
    return f"{value:.{digits}f}"


def _by_device(measurements: Found) -> list[tuple[str, list[Measurement]]]:
    ordered = sorted(measurements, key=lambda one: (one[0], *_order(one[1])))
    return [(device, [m for _, m in group]) for device, group in groupby(ordered, key=lambda one: one[0])]


def _by_package(measurements: list[Measurement]) -> list[tuple[str, list[Measurement]]]:
    return [
        (f"{key[0]} ({key[1][:12]})", list(group))
        for key, group in groupby(measurements, key=lambda m: (m.package_name, m.package_sha256))
    ]


def _order(one: Measurement) -> tuple[str, str, str, str, int]:
    return one.package_name, one.package_sha256, one.variant, one.interpreter, one.started_at_ns


def _table(rows: list[list[str]]) -> str:
    lines = [[head for head, _ in COLUMNS], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _percentile(percent: float) -> Callable[[Measurement], str]:
    return lambda m: _ms(summarize(m.samples_ns).percentile_ns(percent)) if m.samples_ns else UNAVAILABLE


def _ms(value_ns: float) -> str:
    return number(value_ns / 1e6)


def _mb(value: Memory | Unavailable, field: str) -> str:
    return UNAVAILABLE if isinstance(value, Unavailable) else number(getattr(value, field) / 1e6)


def _energy_mj(m: Measurement) -> str:
    if isinstance(m.energy, Unavailable) or m.energy.runs < 1:
        return UNAVAILABLE
    return number(m.energy.energy_j / m.energy.runs * 1e3)


def _when(m: Measurement) -> str:
    try:
        return datetime.fromtimestamp(m.started_at_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "unknown"


COLUMNS: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("package", lambda m: _printable(m.package_name)),
    ("SHA-256", lambda m: _printable(m.package_sha256[:12])),
    ("variant", lambda m: _printable(m.variant)),
    ("interpreter", lambda m: _printable(f"{m.interpreter} {m.interpreter_version}")),
    ("threads", lambda m: str(m.spec.threads)),
    ("runs", lambda m: str(len(m.samples_ns))),
    ("p50 ms", _percentile(50)),
    ("p90 ms", _percentile(90)),
    ("p99 ms", _percentile(99)),
    ("load ms", lambda m: _ms(m.load_ns)),
    ("first run ms", lambda m: _ms(m.first_run_ns)),
    ("PSS steady MB", lambda m: _mb(m.memory.steady, "pss_bytes")),
    ("peak RSS MB", lambda m: _mb(m.memory.steady, "peak_rss_bytes")),
    ("energy mJ/inference", _energy_mj),
    ("artifact kB", lambda m: number(m.artifact_bytes / 1e3)),
    ("measured UTC", _when),
)
_TEXT_COLUMNS = 4


def _label(m: Measurement) -> str:
    threads = "1 thread" if m.spec.threads == 1 else f"{m.spec.threads} threads"
    return _printable(f"{m.variant} on {m.interpreter} {m.interpreter_version}, {threads}")


def _plotted(measurements: list[Measurement]) -> list[tuple[str, tuple[int, ...]]]:
    """Label and samples of each; the time of day goes in front only where it tells two apart."""
    labels = [_label(m) for m in measurements]
    return [
        (label if labels.count(label) == 1 else f"{_when(m)} {label}", m.samples_ns)
        for label, m in zip(labels, measurements, strict=True)
        if m.samples_ns
    ]


def _headline(conditions: Conditions) -> str:
    parts = (conditions.device_model, conditions.cpu_model, conditions.machine, f"kernel {conditions.kernel}")
    return ", ".join(part for part in parts if not isinstance(part, Unavailable))


def _details(m: Measurement) -> dict[str, Any]:
    names = [field.name for field in msgspec.structs.fields(Conditions)]
    return {
        "title": f"{m.package_name}: {_label(m)}, {_when(m)} UTC",
        "facts": [
            *(_latency_facts(summarize(m.samples_ns)) if m.samples_ns else [("timed runs", "none")]),
            ("warm-up runs, not counted", f"{len(m.warmup_ns)}"),
            ("interpreter import", f"{_ms(m.import_ns)} ms"),
            ("load", f"{_ms(m.load_ns)} ms"),
            ("first run", f"{_ms(m.first_run_ns)} ms"),
            ("energy", _energy_words(m.energy)),
            ("input shapes", " ".join(str(list(shape)) for shape in m.input_shapes)),
            ("form, runtime", f"{m.form}, {m.runtime}"),
            ("package SHA-256", m.package_sha256),
        ],
        "memory": [(name.replace("_", " "), _memory_cells(phase)) for name, phase in _items(m.memory)],
        "conditions": [
            (_named(name), _words(name, getattr(m.before, name)), _words(name, getattr(m.after, name)))
            for name in names
        ],
    }


def _latency_facts(summary: Summary) -> list[tuple[str, str]]:
    spread = f"min {_ms(summary.min_ns)} ms, max {_ms(summary.max_ns)} ms"
    return [
        ("timed runs", f"{len(summary.samples_ns)}"),
        ("latency", f"p50 {_ms(summary.p50_ns)} ms, p90 {_ms(summary.p90_ns)} ms, p99 {_ms(summary.p99_ns)} ms"),
        ("spread", f"mean {_ms(summary.mean_ns)} ms, {spread}, median absolute deviation {_ms(summary.mad_ns)} ms"),
    ]


def _energy_words(energy: Energy | Unavailable) -> str:
    if isinstance(energy, Unavailable):
        return f"{UNAVAILABLE}: {energy.reason}"
    return (
        f"{number(energy.energy_j)} J in {number(energy.window_s)} s over {energy.runs} inferences (gross), from "
        f"{energy.source}, rails {', '.join(energy.rails)}, {len(energy.values)} readings in {energy.unit}"
    )


def _memory_cells(phase: Memory | Unavailable) -> list[str]:
    if isinstance(phase, Unavailable):
        return [f"{UNAVAILABLE}: {phase.reason}"]
    return [number(size / 1e6) for size in (phase.pss_bytes, phase.uss_bytes, phase.rss_bytes, phase.peak_rss_bytes)]


_UNITS = {"bytes": "MB", "mhz": "MHz", "c": "°C"}


def _named(field: str) -> str:
    stem, _, unit = field.rpartition("_")
    return f"{stem.replace('_', ' ')}, {_UNITS[unit]}" if unit in _UNITS else field.replace("_", " ")


def _words(field: str, value: Any) -> str:  # noqa: ANN401  # whatever the record holds
    if isinstance(value, Unavailable):
        return f"{UNAVAILABLE}: {value.reason}"
    if isinstance(value, Reading):
        return f"{number(value.value)} ({value.source})"
    if isinstance(value, tuple):
        return ", ".join(_words(field, one) for one in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in sorted(value.items()))
    if field.endswith("_bytes"):
        return number(value / 1e6)
    return number(value) if isinstance(value, float) else str(value)


def _missing(measurements: list[Measurement]) -> list[tuple[str, str]]:
    """What could not be measured, and the reason, each once."""
    found = [
        (path.removeprefix("before ").removeprefix("after "), reason)
        for m in measurements
        for path, reason in _unavailable(m, "")
    ]
    return list(dict.fromkeys(found))


def _unavailable(record: Record, path: str) -> Iterator[tuple[str, str]]:
    for name, value in _items(record):
        where = f"{path} {_named(name)}".strip()
        if isinstance(value, Unavailable):
            yield where, value.reason
        elif isinstance(value, Record):
            yield from _unavailable(value, where)


def _items(record: Record) -> list[tuple[str, Any]]:
    return [(field.name, getattr(record, field.name)) for field in msgspec.structs.fields(record)]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _clean(value: Any) -> Any:  # noqa: ANN401  # jinja's finalize takes whatever a template prints
    return _printable(value) if type(value) is str else value
