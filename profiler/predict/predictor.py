"""A device's costs, fitted; and what they say of a network."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.operators import Operator
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.work import Work

Floats = NDArray[np.float64]
HasWork = Work | Operator
"""What is known before it runs, or of one that was measured."""
SCHEMA = 1
BEYOND = 1.25
"""Times the largest that was measured: so far a straight line is trusted to go on."""


class Cost(Record):
    """What operators of one kind take, and how large those were that taught it."""

    kind: str
    ns_per_mac: float
    ns_per_loop: float
    """For each channel."""
    ns_per_byte: float
    ns_per_call: float
    macs_most: int
    bytes_most: int
    networks: int
    """In how many there was one."""


class HeldOut(Record):
    """A network as it was predicted from the others."""

    network: str
    measured_ns: float
    predicted_ns: float

    @property
    def error(self) -> float:
        """Relative, above 0 where too long was predicted."""
        return self.predicted_ns / self.measured_ns - 1


class Prediction(Record):
    """Of one network."""

    latency_ns: float
    error: float
    """Relative: within it lay nine of ten networks that were held out."""

    @property
    def latency_ms(self) -> float:
        """The same in ms."""
        return self.latency_ns / 1e6


class Predictor(Record, kw_only=True):
    """Latency of networks on one device, interpreter, form and number of threads."""

    schema: int = SCHEMA
    standing: dict[str, str]
    """Of the device, see `ferryman.profiler.standing`."""
    interpreter: str
    interpreter_version: str
    threads: int
    form: str
    costs: tuple[Cost, ...]
    tile: int
    """Channels that kernels compute at a time, as the data say: of fewer, multiply-adds and loops cost as much."""
    ns_per_run: float
    """Whatever the network."""
    least_ns: float
    """Of the networks it was fitted from."""
    most_ns: float
    held_out: tuple[HeldOut, ...]
    """Each of them, predicted without it: what the errors below are over."""

    @property
    def median_error(self) -> float:
        """Relative; half of the held-out networks were nearer."""
        return float(np.median(self._errors))

    @property
    def error(self) -> float:
        """Relative; nine of ten held-out networks were nearer."""
        return float(np.percentile(self._errors, 90))

    def within(self, share: float) -> float:
        """How many of the held-out networks, 0 to 1, were predicted with at most this relative error."""
        return float(np.mean(self._errors <= share))

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of held-out predictions and measurements: 1 where all are in the right order."""
        return rank_correlation([one.measured_ns for one in self.held_out], [one.predicted_ns for one in self.held_out])

    @property
    def _errors(self) -> Floats:
        return np.abs([one.error for one in self.held_out])

    def predict(self, work: Sequence[HasWork]) -> Prediction:
        """How long a network takes.

        Args:
            work: its operators, counted the same way as those it was fitted from.

        Raises:
            CallerError: an operator is of a kind that was not measured, one is larger than any that was, or the network
                takes less or more time than any that was.
        """
        latency_ns = estimate_ns(self.costs, self.ns_per_run, self.tile, work)
        if problems := self._beyond(work, latency_ns):
            raise CallerError(
                f"nothing can be said of this network: {'; '.join(problems)}. Measure it and some like it, and fit anew"
            )
        return Prediction(latency_ns=latency_ns, error=self.error)

    def _beyond(self, work: Sequence[HasWork], latency_ns: float) -> list[str]:
        """How the network differs from all that were measured."""
        costs = {cost.kind: cost for cost in self.costs}
        if unknown := sorted({one.kind for one in work} - set(costs)):
            return [f"{', '.join(unknown)} was not measured, only {', '.join(costs)}"]
        problems = []
        for one in work:
            cost = costs[one.kind]
            asked = ((one.macs or 0, cost.macs_most, "multiply-adds"), (one.bytes_moved or 0, cost.bytes_most, "bytes"))
            problems += [
                f"it has {one.kind} of {found:,} {unit}, and the largest measured had {most:,}"
                for found, most, unit in asked
                if found > most * BEYOND
            ]
        if not self.least_ns / BEYOND <= latency_ns <= self.most_ns * BEYOND:
            problems.append(f"it would take {latency_ns / 1e6:.3g} ms, and those measured took {self._span}")
        return problems

    @property
    def _span(self) -> str:
        return f"{self.least_ns / 1e6:.3g} to {self.most_ns / 1e6:.3g} ms"

    def describe(self) -> str:
        """One line: of what it tells, and how well."""
        return (
            f"{self.form} on {self.interpreter} {self.interpreter_version}, {self.threads} threads, from "
            f"{len(self.held_out)} networks of {self._span}; held out, they were predicted within "
            f"{self.median_error:.1%} (half), {self.error:.1%} (nine of ten); {self.within(0.1):.0%} within 10 %; "
            f"rank correlation {self.rank_correlation:.3f}"
        )

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            OSError: the disk refused.
        """
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            partial.write_bytes(encode(self))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load(path: Path) -> Predictor:
    """Read what `Predictor.save` wrote.

    Raises:
        CallerError: there is no such file, or it is something else, or of another version.
    """
    try:
        found = decode(path.read_bytes(), Predictor)
    except (OSError, ValueError) as error:
        raise CallerError(f"{path} is no predictor: {error}; fit one and save it") from error
    if found.schema != SCHEMA:
        raise CallerError(f"{path} is of schema {found.schema}, this ferryman reads {SCHEMA}; fit it anew")
    return found


def features(one: HasWork, tile: int) -> tuple[float, float, float, float]:
    """What costs are multiplied with: multiply-adds, loops of all channels, bytes, calls; what is not known is 0."""
    macs, channels, loops = float(one.macs or 0), 0, 0
    if isinstance(one, Work):
        channels, loops = one.channels, one.loops
    tiled = -(-channels // tile) * tile
    return macs * tiled / channels if channels else macs, float(loops * tiled), float(one.bytes_moved or 0), 1.0


def estimate_ns(costs: Sequence[Cost], ns_per_run: float, tile: int, work: Sequence[HasWork]) -> float:
    """What costs add up to; operators of other kinds count nothing."""
    of_kind = {cost.kind: cost for cost in costs}
    return ns_per_run + sum(
        cost.ns_per_mac * macs + cost.ns_per_loop * loops + cost.ns_per_byte * moved + cost.ns_per_call * calls
        for one in work
        if (cost := of_kind.get(one.kind)) is not None
        for macs, loops, moved, calls in (features(one, tile),)
    )


def rank_correlation(some: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's; equal numbers share their ranks' mean, and 0 where all of one side are equal."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (some, others)]
    first, second = (one - one.mean() for one in ranks)
    spread = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / spread if spread else 0.0


def _ranks(values: Floats) -> Floats:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = ((2 * ends - counts - 1) / 2)[which]
    return ranks
