"""Statistics over whole distributions.

Percentiles interpolate linearly between the two nearest samples (numpy's default).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Start
from ferryman.runtime.contracts.samples import Samples

BLOCKS = 20
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, of 1 to 10 degrees of freedom (any table of it)."""
_T_BEYOND = ((12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042), (60, 2.000))
Z_975 = 1.960
"""Of the normal distribution, at 97.5 %."""


@dataclass(frozen=True)
class Summary:
    """Latency statistics in nanoseconds over a whole distribution."""

    values_ns: NDArray[np.int64]
    """Ascending."""
    counts: NDArray[np.int64]
    """How often each was taken."""

    def percentile_ns(self, percent: float) -> float:
        """Below which `percent` of the samples lie."""
        place = percent / 100 * (self.count - 1)
        below, above = self._at(int(place)), self._at(min(int(place) + 1, self.count - 1))
        return below + (above - below) * (place - int(place))

    def _at(self, rank: int) -> float:
        return float(self.values_ns[np.searchsorted(np.cumsum(self.counts), rank, side="right")])

    @property
    def count(self) -> int:
        """How many samples there are."""
        return int(self.counts.sum())

    @property
    def p50_ns(self) -> float:
        """The median."""
        return self.percentile_ns(50)

    @property
    def p90_ns(self) -> float:
        """The 90th percentile."""
        return self.percentile_ns(90)

    @property
    def p99_ns(self) -> float:
        """The 99th percentile; of fewer than 100 samples it is nearly their maximum."""
        return self.percentile_ns(99)

    @property
    def mean_ns(self) -> float:
        """The arithmetic mean."""
        return float(np.average(self.values_ns, weights=self.counts))

    @property
    def min_ns(self) -> int:
        """The fastest run."""
        return int(self.values_ns[0])

    @property
    def max_ns(self) -> int:
        """The slowest run."""
        return int(self.values_ns[-1])

    @property
    def mad_ns(self) -> float:
        """Median absolute deviation from the median: a spread that single outliers do not move."""
        apart, middle = np.abs(self.values_ns - self.p50_ns), (self.count - 1) / 2
        order = np.argsort(apart, kind="stable")
        ends = np.cumsum(self.counts[order])
        both = np.searchsorted(ends, (math.floor(middle), math.ceil(middle)), side="right")
        return float(np.mean(apart[order][both]))


def summarize(samples: Samples | Sequence[int] | Iterable[Samples]) -> Summary:
    """One distribution of some samples, or of several such together.

    Raises:
        CallerError: there are none.
    """
    parts = [samples] if isinstance(samples, Samples) else list(samples)
    together = [part for part in parts if isinstance(part, Samples)]
    if len(together) < len(parts):
        together = [Samples.of(np.asarray(parts, np.int64))]
    pairs = [part.weighted() for part in together]
    values = np.concatenate([values for values, _ in pairs]) if pairs else np.empty(0, np.int64)
    if len(values) == 0:
        raise CallerError("statistics need at least one sample, found none")
    unique, where = np.unique(values, return_inverse=True)
    counts = np.bincount(where, weights=np.concatenate([counts for _, counts in pairs]))
    return Summary(unique, counts.astype(np.int64))


def block_error(samples_ns: Sequence[int] | NDArray[np.int64]) -> float:
    """Half of the median's 95 % confidence interval over the median, from one process's runs; infinite of too few.

    Neighbouring runs are alike, so they are taken in blocks: the spread of the blocks' medians, by Student's t.
    """
    values = np.asarray(samples_ns, np.float64)
    size = len(values) // BLOCKS
    if size == 0 or not (middle := float(np.median(values))) > 0:
        return float("inf")
    medians = np.median(values[: size * BLOCKS].reshape(BLOCKS, size), axis=1)
    return student_t(BLOCKS - 1) * float(np.std(medians, ddof=1)) / math.sqrt(BLOCKS) / middle


def median_error(starts: Sequence[Start]) -> float:
    """Half of the 95 % confidence interval of the median over it, for a measurement in several processes.

    Where memory lies differs from process to process, and moves a whole process's runs together; so it is the
    processes' medians whose spread counts, by Student's t. Of one process, its blocks' (`block_error`), which
    is too optimistic.
    """
    if len(starts) == 1:
        return block_error(starts[0].samples.values_ns())
    medians = np.array([summarize(start.samples).p50_ns for start in starts])
    return (
        student_t(len(starts) - 1) * float(np.std(medians, ddof=1)) / math.sqrt(len(starts)) / float(np.mean(medians))
    )


def student_t(freedom: int) -> float:
    """Student's t at 97.5 %, rounded up to a table's next line."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    known = [value for least, value in _T_BEYOND if least <= freedom]
    return known[-1] if known else _T_975[-1]
