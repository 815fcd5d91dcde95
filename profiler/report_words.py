"""Values of measurements as words: three digits, a unit where no head names it, nothing that steers a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.measurement import Conditions, Measurement, Reading
from ferryman.runtime.contracts.record import Record, Unavailable

MISSING = "n/a"
"""In a table: could not be measured; why stands below it."""
NOT_ASKED = "-"
_UNITS = {"bytes": "MB", "mhz": "MHz", "c": "°C"}


def number(value: float, digits_min: int = 3) -> str:
    """So many significant digits, without an exponent unless it is longer than any measurement."""
    if not math.isfinite(value):
        return MISSING
    if abs(value) >= 1e15:  # noqa: PLR2004
        return f"{value:.2e}"
    if abs(value) < 1e-9:  # noqa: PLR2004  # what is smaller is no measurement
        return "0"
    digits = 0
    while abs(value) * 10**digits < 10 ** (digits_min - 1):
        digits += 1
    return f"{value:.{digits}f}"


def ms(value_ns: float) -> str:
    """Nanoseconds in milliseconds."""
    return number(value_ns / 1e6)


def took(value_ms: float) -> str:
    """Milliseconds of what was timed and ran: nothing is less than a step of the clocks that count in microseconds."""
    return "<0.001" if value_ms == 0 else number(value_ms)


def mb(value_bytes: float | Unavailable) -> str:
    """Bytes in 10^6 bytes."""
    return MISSING if isinstance(value_bytes, Unavailable) else number(value_bytes / 1e6)


def percent(share: float | Unavailable) -> str:
    """A share of 1 in percent, to a tenth."""
    return MISSING if isinstance(share, Unavailable) or not math.isfinite(share) else f"{100 * share:.1f}"


def sound(energy: Energy | Unavailable | None) -> Energy | None:
    """What can be divided; None of a window without runs or length, which only a damaged record has."""
    if not isinstance(energy, Energy) or not min(energy.active.runs, energy.active.window_s) > 0:
        return None
    return energy if isinstance(energy.idle, Unavailable) or energy.idle.window_s > 0 else None


def printable(text: str) -> str:
    """One line, without what could steer a terminal or break a page's encoding."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def short(text: str, most: int) -> str:
    """Printable and at most so many characters: of longer ones the middle is left out."""
    text = printable(text)
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def display_width(text: str) -> int:
    """Columns a terminal gives it: ideographs take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def when(m: Measurement) -> str:
    """UTC, by the device's clock."""
    try:
        return datetime.fromtimestamp(m.started_at_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "unknown"


def label(m: Measurement) -> str:
    """What was measured, in a line."""
    return printable(f"{m.variant} on {m.interpreter} {m.interpreter_version}, {threads(m)}")


def threads(m: Measurement) -> str:
    """How many, with the noun."""
    return "1 thread" if m.spec.threads == 1 else f"{m.spec.threads} threads"


def headline(conditions: Conditions) -> str:
    """The device in a line."""
    parts = (
        conditions.device_model, conditions.soc, conditions.cpu_model, conditions.machine,
        f"kernel {conditions.kernel}",
    )  # fmt: skip
    told = [printable(part) for part in parts if not isinstance(part, Unavailable)]
    if conditions.emulated:
        told.append(f"EMULATED by {printable(conditions.emulated)}: no time here is a device's")
    return ", ".join(dict.fromkeys(told))


def named(field: str) -> str:
    """A field's name with its unit after a comma."""
    stem, _, unit = field.rpartition("_")
    return f"{stem.replace('_', ' ')}, {_UNITS[unit]}" if unit in _UNITS else field.replace("_", " ")


def words(field: str, value: Any) -> str:  # noqa: ANN401  # whatever the record holds
    """A value of a field in its unit."""
    if isinstance(value, Unavailable):
        return f"unavailable: {printable(value.reason)}"
    if isinstance(value, Reading):
        return f"{number(value.value)} ({printable(value.source)})"
    if isinstance(value, tuple):
        return ", ".join(words(field, one) for one in value) or "none"
    if isinstance(value, dict):
        return ", ".join(printable(f"{name} {version}") for name, version in sorted(value.items())) or "none"
    if field.endswith("_bytes"):
        return number(value / 1e6)
    return number(value) if isinstance(value, float) else printable(str(value))


def items(record: Record) -> list[tuple[str, Any]]:
    """Each field's name and value."""
    return [(field.name, getattr(record, field.name)) for field in msgspec.structs.fields(record)]


def unavailable(record: Record, path: str = "") -> Iterator[tuple[str, str]]:
    """Where in a record something could not be measured, and the reason."""
    for name, value in items(record):
        where = f"{path} {named(name)}".strip()
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Unavailable):
                yield where, printable(one.reason)
            elif isinstance(one, Record):
                yield from unavailable(one, where)


def missing(measurements: list[Measurement]) -> list[tuple[str, str]]:
    """What could not be measured in any of them, those with the same reason together, and the reason."""
    by_reason: dict[str, list[str]] = {}
    for m in measurements:
        for path, reason in unavailable(m):
            by_reason.setdefault(reason, []).append(path.removeprefix("before ").removeprefix("after "))
    return [("; ".join(dict.fromkeys(paths)), reason) for reason, paths in by_reason.items()]
