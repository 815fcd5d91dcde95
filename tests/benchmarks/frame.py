"""What every benchmark shares: bars, interleaved measuring, one JSON shape, one table.

A benchmark is a file `NAME.py` that ends in `main(NAME, PARTS)`. Progress goes to stderr, the answer to stdout.
"""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import click
import numpy as np
import numpy.typing as npt

from ferryman.profiler.conditions import read_conditions
from ferryman.runtime.contracts.measurement import Conditions
from ferryman.runtime.contracts.record import Record, encode

Values = npt.NDArray[np.float64]
Comparison = Literal["<", "<=", ">", ">="]

_HOLDS: dict[Comparison, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class CannotRun(Exception):
    """Something a part needs is not on this machine; the message says what to do."""


class Figure(Record):
    """A measured number nobody set a target for."""

    name: str
    value: float
    """The median."""
    unit: str
    spread: tuple[float, float]
    """The quartiles around it."""
    samples: int


class Bar(Record):
    """A measured number and its target."""

    name: str
    value: float | None
    """The median; None where it could not be measured."""
    unit: str
    """Empty for a ratio."""
    comparison: Comparison
    target: float
    ok: bool | None
    """Whether `value comparison target`; None where it could not be measured."""
    spread: tuple[float, float] | None = None
    samples: int = 0
    not_run: str | None = None
    """Why there is no value."""


class Result(Record):
    """What one benchmark found."""

    bars: tuple[Bar, ...]
    figures: tuple[Figure, ...]
    conditions: Conditions
    seconds: float


@dataclass(frozen=True)
class Goal:
    """A bar before it is measured."""

    name: str
    comparison: Comparison
    target: float
    unit: str = ""

    def measured(self, values: Sequence[float] | Values) -> Bar:
        """Hold the median of `values` against the target."""
        found = figure(self.name, values, self.unit)
        return Bar(
            name=self.name,
            value=found.value,
            unit=self.unit,
            comparison=self.comparison,
            target=self.target,
            ok=bool(_HOLDS[self.comparison](found.value, self.target)),
            spread=found.spread,
            samples=found.samples,
        )

    def not_run(self, reason: str) -> Bar:
        """Say why there is nothing to hold against it."""
        return Bar(
            name=self.name,
            value=None,
            unit=self.unit,
            comparison=self.comparison,
            target=self.target,
            ok=None,
            not_run=reason,
        )


@dataclass(frozen=True)
class Part:
    """Goals that are measured together; `measure` may raise CannotRun."""

    goals: tuple[Goal, ...]
    measure: Callable[[], Iterable[Bar | Figure]]


def figure(name: str, values: Sequence[float] | Values, unit: str = "") -> Figure:
    """Median and quartiles of `values`."""
    low, middle, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return Figure(name=name, value=middle, unit=unit, spread=(low, high), samples=len(values))


def interleave(rounds: int, *measures: Callable[[], float]) -> Values:
    """Call every measure once a round and return values[measure, round].

    Every other round goes backwards, so that neither a drift of the machine nor going first favours anyone.
    """
    values = np.empty((len(measures), rounds))
    order = list(enumerate(measures))
    for index in range(rounds):
        for row, measure in order if index % 2 == 0 else order[::-1]:
            values[row, index] = measure()
    return values


def seconds_of(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def progress(text: str) -> None:
    """Tell whoever waits."""
    click.echo(f"  {text}", err=True)


def run_parts(parts: Iterable[Part], versions: dict[str, str]) -> Result:
    """Measure every part in order."""
    start = time.monotonic()
    conditions = read_conditions(versions)
    found: list[Bar | Figure] = []
    for part in parts:
        try:
            found += list(part.measure())
        except CannotRun as error:
            found += [goal.not_run(str(error)) for goal in part.goals]
    return Result(
        bars=tuple(one for one in found if isinstance(one, Bar)),
        figures=tuple(one for one in found if isinstance(one, Figure)),
        conditions=conditions,
        seconds=time.monotonic() - start,
    )


def table(name: str, result: Result) -> str:
    """Bars, then figures, for people."""
    rows = [("bar", "median", "target", "quartiles", "")]
    for bar in result.bars:
        target = f"{bar.comparison} {_number(bar.target)}{_space(bar.unit)}"
        if bar.value is None:
            rows.append((bar.name, "-", target, "", f"NOT RUN: {bar.not_run}"))
        else:
            rows.append((bar.name, *_shown(bar.value, bar.unit, target, bar.spread), "ok" if bar.ok else "FAILS"))
    rows += [(one.name, *_shown(one.value, one.unit, "", one.spread), "") for one in result.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    cpu = result.conditions.cpu_model
    where = cpu if isinstance(cpu, str) else result.conditions.machine
    head = f"{name}: {result.seconds:.0f} s on {where}, {result.conditions.cpu_count} cores"
    return "\n".join([head, *(line.rstrip() for line in lines)])


def _shown(value: float, unit: str, target: str, spread: tuple[float, float] | None) -> tuple[str, str, str]:
    quartiles = f"{_number(spread[0])} .. {_number(spread[1])}" if spread else ""
    return f"{_number(value)}{_space(unit)}", target, quartiles


def _number(value: float) -> str:
    return f"{value:.4g}"


def _space(unit: str) -> str:
    return f" {unit}" if unit else ""


def failed(result: Result) -> bool:
    """Whether a bar that was measured fails."""
    return any(bar.ok is False for bar in result.bars)


def main(name: str, parts: Iterable[Part], versions: Callable[[], dict[str, str]] = dict) -> None:
    """Command line of one benchmark; ends the process, with status 1 when a bar fails."""

    @click.command(help=f"Measure the bars of `{name}`.")
    @click.option("--json", "as_json", is_flag=True, help="End with one JSON object on a line of its own.")
    def command(*, as_json: bool) -> None:
        result = run_parts(parts, versions())
        click.echo(encode(result) if as_json else table(name, result))
        sys.exit(failed(result))

    command()
