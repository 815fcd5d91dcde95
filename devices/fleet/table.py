"""What a fleet answers to a search: a row for each candidate, device, variant and interpreter."""

from __future__ import annotations

import csv
import io

from ferryman.devices.fleet.metrics import Value
from ferryman.runtime.contracts.errors import CallerError, WireError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import Record, Unavailable, decode, encode
from ferryman.runtime.say import printable

_ERROR_CHARS = 100


class Row(Record, kw_only=True):
    """Of one variant on one interpreter; or of a candidate that failed before there was any."""

    candidate: str
    number: int
    """Of the candidate, as they were given, from 0 on."""
    device: str
    variant: str | None = None
    interpreter: str | None = None
    values: dict[str, float | Unavailable]
    """By metric; each is there."""
    measurement: Measurement | None = None
    """With its raw samples; None where it failed."""
    error: WireError | None = None
    cached: bool = False
    """Whether it was measured by an earlier call."""

    def __getitem__(self, metric: str) -> Value:
        if metric not in self.values:
            raise CallerError(f"metric {metric!r} was not asked for; there are: {', '.join(self.values)}")
        return self.values[metric]


class Table(Record):
    """Rows in the order of the candidates, and of the devices for each."""

    metrics: tuple[str, ...]
    rows: tuple[Row, ...]

    def best(self, metric: str) -> Row:
        """The row with the least of it.

        Raises:
            CallerError: it was not asked for, or no row has it; the message says why not.
        """
        found = [(value, row) for row in self.rows if not isinstance(value := row[metric], Unavailable)]
        if not found:
            raise CallerError(f"no candidate has {metric}: {'; '.join(self._reasons(metric)) or 'there are none'}")
        return min(found, key=lambda pair: pair[0])[1]

    def within(self, **limits: float) -> Table:
        """The rows that have each of these metrics, and at most so much of it."""
        kept = [
            row
            for row in self.rows
            if all(not isinstance(row[name], Unavailable) and row[name] <= limit for name, limit in limits.items())  # type: ignore[operator]
        ]
        return Table(metrics=self.metrics, rows=tuple(kept))

    def of(self, candidate: str) -> Table:
        """The rows of one candidate."""
        return Table(metrics=self.metrics, rows=tuple(row for row in self.rows if row.candidate == candidate))

    @property
    def failed(self) -> tuple[Row, ...]:
        """Those with an error."""
        return tuple(row for row in self.rows if row.error is not None)

    def to_json(self) -> str:
        """All of it, raw samples included."""
        return encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Read what `to_json` wrote.

        Raises:
            CallerError: it is something else.
        """
        try:
            return decode(text.encode(), cls)
        except ValueError as error:
            raise CallerError(f"this is no table of a fleet: {error}") from error

    def to_csv(self) -> str:
        """Values alone; an empty cell is one that could not be had, and `error` says why."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("candidate", "device", "variant", "interpreter", *self.metrics, "cached", "error"))
        for row in self.rows:
            cells = ["" if isinstance(row[name], Unavailable) else row[name] for name in self.metrics]
            where = (row.candidate, row.device, row.variant or "", row.interpreter or "")
            writer.writerow((*where, *cells, "yes" if row.cached else "no", self._why(row)))
        return text.getvalue()

    def __str__(self) -> str:
        rows = [("candidate", "device", "variant", "interpreter", *self.metrics, "")]
        for row in self.rows:
            cells = ["-" if isinstance(value := row[name], Unavailable) else f"{value:.4g}" for name in self.metrics]
            note = self._why(row)[:_ERROR_CHARS] or ("cached" if row.cached else "")
            rows.append((row.candidate, row.device, row.variant or "-", row.interpreter or "-", *cells, note))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        aligned = [
            "  ".join(
                cell.rjust(width) if 4 <= column < 4 + len(self.metrics) else cell.ljust(width)  # noqa: PLR2004  # the words come first
                for column, (cell, width) in enumerate(zip(row, [*widths, 0], strict=True))
            )
            for row in rows
        ]
        return "\n".join(printable(line.rstrip()) for line in aligned)

    def _why(self, row: Row) -> str:
        """Why a row has not all that was asked for."""
        if row.error is not None:
            return f"{row.error.party}: {row.error.message}"
        reasons = [f"{name}: {row[name].reason}" for name in self.metrics if isinstance(row[name], Unavailable)]  # type: ignore[union-attr]
        return "; ".join(reasons)

    def _reasons(self, metric: str) -> list[str]:
        return list(dict.fromkeys(one.reason for row in self.rows if isinstance(one := row[metric], Unavailable)))
