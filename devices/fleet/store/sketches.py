"""Many values as a few numbers and a quantile sketch, which merge over time and devices.

The sketch is KLL of 32-bit floats (Karnin, Lang, Liberty 2016, as Apache DataSketches has it) with K = 200: the rank of
a quantile it tells is off by at most RANK_ERROR, with 99 % confidence, however many sketches were merged.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasketches import kll_floats_sketch

from ferryman.runtime.contracts.telemetry import METRICS, Sample

K = 200
RANK_ERROR = 0.0133
"""Of the median asked alone; K fixes it (`kll_floats_sketch.get_normalized_rank_error(200, False)`)."""
WEIGHT_MAX = 100_000
"""Of one sample: so many inferences in a period weigh; more count as so many."""
NAMES_MAX = 32
"""Metrics of one device in an hour: ferryman's own, and of others those that came first."""
PACKAGES_MAX = 16
"""Named of one device in an hour: what more there were is together, as of no package."""
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Summary:
    """What is kept of many values of one metric, in its unit."""

    count: int
    total: float
    least: float
    most: float
    sketch: bytes

    @property
    def mean(self) -> float:
        """Arithmetic."""
        return self.total / self.count

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """The values at `ranks` (0 to 1); 0 and 1 are exact to a 32-bit float."""
        return [float(value) for value in kll_floats_sketch.deserialize(self.sketch).get_quantiles(list(ranks))]


def summarise(samples: Iterable[Sample]) -> dict[tuple[str, str], Summary]:
    """(metric, package) -> summary; `latency_ms` is of all inferences, the other metrics of one value a sample."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    times: dict[tuple[str, str], list[int]] = defaultdict(list)
    names, packages = set(METRICS), {""}
    for sample in samples:
        package = _known(packages, sample.package_sha256 or "", PACKAGES_MAX + 1)
        for metric, value in sample.values.items():
            if not _known(names, metric, NAMES_MAX):
                continue
            if metric != "latency_ms" or not sample.latencies_ms:
                values[metric, package].append(value)
                times[metric, package].append(1)
        if sample.latencies_ms:
            values["latency_ms", package] += sample.latencies_ms
            times["latency_ms", package] += _weights(sample)
    summaries = ((key, _of(np.repeat(np.array(found, np.float64), times[key]))) for key, found in values.items())
    return {key: summary for key, summary in summaries if summary is not None}


def _known(known: set[str], name: str, most: int) -> str:
    """The name, or none where there are enough others."""
    if name not in known:
        if len(known) >= most:
            return ""
        known.add(name)
    return name


def merge(summaries: Iterable[Summary]) -> Summary | None:
    """One of several, of other hours or other devices; None of none."""
    count, total, least, most = 0, 0.0, math.inf, -math.inf
    sketch = kll_floats_sketch(K)
    for one in summaries:
        count += one.count
        total += one.total
        least, most = min(least, one.least), max(most, one.most)
        sketch.merge(kll_floats_sketch.deserialize(one.sketch))
    return Summary(count, total, least, most, bytes(sketch.serialize())) if count else None


def _weights(sample: Sample) -> list[int]:
    """How many inferences each of the evenly spaced order statistics stands for; the sum is `inferences`."""
    told = sample.values.get("inferences", 0.0)
    kept = len(sample.latencies_ms)
    inferences = int(min(max(told, kept), WEIGHT_MAX)) if math.isfinite(told) else kept
    edges = [inferences * n // kept for n in range(kept + 1)]
    return [after - before for before, after in itertools.pairwise(edges)]


def _of(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Summary | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    sketch = kll_floats_sketch(K)
    sketch.update(np.clip(values, -_FLOAT_MAX, _FLOAT_MAX).astype(np.float32))
    total, least, most = float(values.sum()), float(values.min()), float(values.max())
    return Summary(len(values), total, least, most, bytes(sketch.serialize()))
