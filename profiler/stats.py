"""Statistics over raw samples. Percentiles interpolate linearly between the two nearest samples (numpy's default)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ferryman.runtime.contracts.errors import CallerError


@dataclass(frozen=True)
class Summary:
    """Latency statistics in nanoseconds; the samples stay beside them, in the order they were taken."""

    samples_ns: tuple[int, ...]

    def percentile_ns(self, percent: float) -> float:
        """Below which `percent` of the samples lie."""
        return float(np.percentile(self.samples_ns, percent))

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
        return float(np.mean(self.samples_ns))

    @property
    def min_ns(self) -> int:
        """The fastest run."""
        return min(self.samples_ns)

    @property
    def max_ns(self) -> int:
        """The slowest run."""
        return max(self.samples_ns)

    @property
    def mad_ns(self) -> float:
        """Median absolute deviation from the median: a spread that single outliers do not move."""
        return float(np.median(np.abs(np.asarray(self.samples_ns, np.float64) - self.p50_ns)))


def summarize(samples_ns: Sequence[int]) -> Summary:
    """Wrap samples.

    Raises:
        CallerError: there are none.
    """
    if not samples_ns:
        raise CallerError("statistics need at least one sample, found none")
    return Summary(tuple(samples_ns))
