"""Measurements for other programs and for people: CSV in two tables, JSON with every packed duration unpacked.

The record itself (`ferryman profile --json`) is described by docs/profiler/measurement.schema.json, which
`python -m ferryman.profiler.export` writes; the columns of the tables by docs/profiler/output.md.
"""

from __future__ import annotations

import ast
import csv
import inspect
import io
import itertools
import json
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from ferryman.profiler.files import write_whole
from ferryman.profiler.report_tables import Found
from ferryman.profiler.report_words import missing, sound
from ferryman.profiler.stats import median_error, summarize
from ferryman.runtime.contracts.energy import Energy, EnergyEstimate
from ferryman.runtime.contracts.measurement import Measurement, Memory, Pipeline
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.samples import Samples

PLAIN_VERSION = 1
"""Of `plain`: raised when a field's meaning changes."""
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
Cell = str | int | float | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would run, as the first character of a cell of text."""


def to_csv(measurements: Found) -> str:
    """A row for each measurement; an empty cell: not asked for, or could not be measured, which `unavailable` tells."""
    rows = [[device, *(cell(m) for cell in SUMMARY.values())] for device, m in measurements]
    return _csv(["device", *SUMMARY], rows)


def samples_csv(measurements: Found) -> str:
    """A row for each duration that was kept, in order: the long form."""
    return _csv(list(SAMPLE_COLUMNS), (row for device, m in measurements for row in _sample_rows(device, m)))


def samples_path(path: Path) -> Path:
    """Where the long form lies beside a summary: x.csv and x.samples.csv."""
    return path.with_name(f"{path.stem}.samples{path.suffix or '.csv'}")


def write_csv(measurements: Found, path: Path) -> tuple[Path, Path]:
    """Write the summary to `path`, and the long form beside it.

    Raises:
        CallerError: the disk refused; see `write_whole`.
    """
    second = samples_path(path)
    write_whole(path, to_csv(measurements))
    write_whole(second, samples_csv(measurements))
    return path, second


def plain(measurement: Measurement) -> dict[str, Any]:
    """The record as JSON values, its packed durations as numbers beside their percentiles."""
    found: dict[str, Any] = {"plain": PLAIN_VERSION, **_plain(measurement)}
    return found


def schema() -> bytes:
    """The JSON Schema of a measurement, indented."""
    return schema_of(Measurement, "ferryman measurement")


def schema_of(kind: Any, title: str) -> bytes:  # noqa: ANN401  # a record, or a union of some
    """The JSON Schema of records, with what the source says of each field, indented."""
    found = {"$schema": SCHEMA_URL, "title": title, **msgspec.json.schema(kind)}
    for record in _records(kind, {}).values():
        for field, words in _field_docs(record).items():
            found["$defs"][record.__name__]["properties"][field]["description"] = words
    return json.dumps(found, indent=1, sort_keys=True).encode() + b"\n"


def _records(kind: Any, found: dict[str, type[Record]]) -> dict[str, type[Record]]:  # noqa: ANN401  # any annotation
    """Every record that a type's fields lead to, by name."""
    if isinstance(kind, type) and issubclass(kind, Record):
        if kind.__name__ not in found:
            found[kind.__name__] = kind
            for annotation in typing.get_type_hints(kind).values():
                _records(annotation, found)
    else:
        for inner in typing.get_args(kind):
            _records(inner, found)
    return found


def _field_docs(record: type[Record]) -> dict[str, str]:
    """The string below each field in the source; msgspec's own schema has only the class's."""
    body = ast.parse(inspect.getsource(record)).body[0]
    docs = {}
    for field, below in itertools.pairwise(getattr(body, "body", [])):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                docs[name] = inspect.cleandoc(words).replace("\n", " ")
    return docs


def _plain(value: Any) -> Any:  # noqa: ANN401  # whatever a record holds
    if isinstance(value, Samples):
        return _plain_samples(value)
    if isinstance(value, Record):
        tag = value.__struct_config__.tag
        fields = {field.name: _plain(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
        return fields if tag is None else {"type": tag, **fields}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return dict(value) if isinstance(value, dict) else value


def _plain_samples(samples: Samples) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "samples", "count": samples.count, "every": samples.every}
    if samples.count:
        summary = summarize(samples)
        found |= {f"p{percent}_ns": summary.percentile_ns(percent) for percent in (50, 90, 99)}
    if samples.every > 1:
        values, counts = samples.weighted()
        found["distribution"] = [values.tolist(), counts.tolist()]
    return {**found, "ns": list(samples)}


def _csv(heads: list[str], rows: Any) -> str:  # noqa: ANN401  # lists, or a stream of them
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return file.getvalue()


def _safe(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    clean = "".join(c if c.isprintable() else "\ufffd" for c in cell)
    return f"'{clean}" if clean.startswith(_FORMULA) else clean


def _percentile(percent: float) -> Callable[[Measurement], Cell]:
    def cell(m: Measurement) -> Cell:
        samples = [start.samples for start in m.starts]
        return summarize(samples).percentile_ns(percent) if any(one.count for one in samples) else None

    return cell


def _error(m: Measurement) -> Cell:
    starts = [start for start in m.starts if start.samples.count]
    found = median_error(starts) if starts else float("inf")
    return found if found < float("inf") else None


def _memory(phase: str, field: str) -> Callable[[Measurement], Cell]:
    def cell(m: Measurement) -> Cell:
        found: Memory | Unavailable = getattr(m.memory, phase)
        return None if isinstance(found, Unavailable) else int(getattr(found, field))

    return cell


def _known(value: Any) -> Cell:  # noqa: ANN401  # a number or what stands for none
    return None if isinstance(value, Unavailable) else value


def _energy(value: Callable[[Energy], Cell]) -> Callable[[Measurement], Cell]:
    return lambda m: None if (known := sound(m.energy)) is None else value(known)


def _estimate(value: Callable[[EnergyEstimate], Cell]) -> Callable[[Measurement], Cell]:
    return lambda m: value(m.energy_estimate) if m.energy_estimate is not None and m.energy_estimate.runs > 0 else None


def _hottest(m: Measurement) -> Cell:
    found = m.after.temperatures_c
    return None if isinstance(found, Unavailable) else max((reading.value for reading in found), default=None)


def _sustained(at: int) -> Callable[[Measurement], Cell]:
    def cell(m: Measurement) -> Cell:
        known = [one for one in m.sustained or () if one.samples.count]
        return summarize(known[at].samples).p50_ns if known else None

    return cell


SUMMARY: dict[str, Callable[[Measurement], Cell]] = {
    "package": lambda m: m.package_name,
    "package_sha256": lambda m: m.package_sha256,
    "variant": lambda m: m.variant,
    "form": lambda m: m.form,
    "runtime": lambda m: m.runtime,
    "interpreter": lambda m: m.interpreter,
    "interpreter_version": lambda m: m.interpreter_version,
    "threads": lambda m: m.spec.threads,
    "started_at_ns": lambda m: m.started_at_ns,
    "processes": lambda m: len(m.starts),
    "runs": lambda m: sum(start.samples.count for start in m.starts),
    "p50_ns": _percentile(50),
    "p50_error": _error,
    "p90_ns": _percentile(90),
    "p99_ns": _percentile(99),
    "process_ns": lambda m: m.process_ns,
    "import_ns": lambda m: m.import_ns,
    "load_ns": lambda m: m.load_ns,
    "first_run_ns": lambda m: m.first_run_ns,
    "start_pss_bytes": _memory("start", "pss_bytes"),
    "loaded_pss_bytes": _memory("loaded", "pss_bytes"),
    "steady_pss_bytes": _memory("steady", "pss_bytes"),
    "steady_private_bytes": _memory("steady", "anonymous_bytes"),
    "steady_file_bytes": _memory("steady", "file_bytes"),
    "closed_pss_bytes": _memory("closed", "pss_bytes"),
    "peak_rss_bytes": lambda m: _known(m.memory.peak_rss_bytes),
    "arena_bytes": lambda m: _known(m.memory.arena_bytes),
    "energy_gross_j": _energy(lambda energy: energy.gross_j),
    "energy_net_j": _energy(lambda energy: energy.net_j),
    "energy_error_j": _energy(lambda energy: energy.error_j),
    "energy_net_error_j": _energy(lambda energy: energy.net_error_j),
    "energy_source": _energy(lambda energy: energy.source.name),
    "estimate_gross_j": _estimate(lambda estimate: estimate.gross_j),
    "estimate_net_j": _estimate(lambda estimate: estimate.net_j),
    "estimate_source": _estimate(lambda estimate: estimate.model.source),
    "artifact_bytes": lambda m: m.artifact_bytes,
    "sustained_first_p50_ns": _sustained(0),
    "sustained_last_p50_ns": _sustained(-1),
    "device_model": lambda m: _known(m.before.device_model),
    "soc": lambda m: _known(m.before.soc),
    "governor": lambda m: _known(m.before.governor),
    "kernel": lambda m: m.before.kernel,
    "power_source": lambda m: _known(m.before.power_source),
    "hottest_after_c": _hottest,
    "throttled_after": lambda m: None if isinstance(m.after.throttled, Unavailable) else " + ".join(m.after.throttled),
    "load_1m_before": lambda m: _known(m.before.load_1m),
    "unavailable": lambda m: " | ".join(f"{what}: {reason}" for what, reason in missing([m])),
}
"""Column -> cell, after `device`."""
SAMPLE_COLUMNS = (
    *("device", "package", "package_sha256", "variant", "interpreter", "started_at_ns"),
    *("kind", "part", "index", "every", "ns"),
)
"""`kind` is what was timed, `part` counts the processes or the intervals of that kind from 0, `index` within it."""


def _sample_rows(device: str, m: Measurement) -> Iterator[list[Cell]]:
    head: list[Cell] = [device, m.package_name, m.package_sha256, m.variant, m.interpreter, m.started_at_ns]
    for kind, part, samples in _timed(m):
        for index, value in enumerate(samples):
            yield [*head, kind, part, index * samples.every, samples.every, value]


def _timed(m: Measurement) -> Iterator[tuple[str, int, Samples]]:
    """What was timed, in the order of the measurement."""
    for part, start in enumerate(m.starts):
        yield "warmup", part, start.warmup
        yield "run", part, start.samples
    if isinstance(m.pipeline, Pipeline):
        yield "pipeline", 0, m.pipeline.whole
        yield "model", 0, m.pipeline.model
    if m.arrival is not None:
        yield "arrival", 0, m.arrival.latency
        yield "service", 0, m.arrival.service
    for part, interval in enumerate(m.sustained or ()):
        yield "sustained", part, interval.samples


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(schema())
