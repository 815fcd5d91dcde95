"""A device's costs, fitted; and what they say of a network."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record, decode, encode

Floats = NDArray[np.float64]
SCHEMA = 1
BEYOND = 1.25
"""Times the largest that was measured: so far a straight line is trusted to go on."""


class HasWork(Protocol):
    """A `Work`, or an `Operator` as it was measured."""

    @property
    def kind(self) -> str:
        """See `Work`."""

    @property
    def macs(self) -> int | None:
        """See `Work`."""

    @property
    def bytes_moved(self) -> int | None:
        """See `Work`."""


class Cost(Record):
    """What operators of one kind take, and how large those were that taught it."""

    kind: str
    ns_per_mac: float
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
