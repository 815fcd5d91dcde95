"""How far drift statistics are apart: sketches merged, and compared with a reference; needs no sketch library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferryman.runtime.contracts.drift import Drift, DriftSketch, Role
from ferryman.runtime.contracts.errors import CallerError

BINS = 10


@dataclass(frozen=True)
class Distribution:
    """The values of one tensor, from one sketch or several merged."""

    values: NDArray[np.float32]
    """Ascending."""
    weights: NDArray[np.int64]
    """How many of the `count` each stands for."""
    count: int
    rank_error: float
    share_error: float

    def share_up_to(self, points: ArrayLike) -> NDArray[np.float64]:
        """Share of the values that are at most each of `points`."""
        counts = np.concatenate([[0], np.cumsum(self.weights)])
        return counts[np.searchsorted(self.values, np.asarray(points, np.float32), side="right")] / self.count

    def quantiles(self, shares: ArrayLike) -> NDArray[np.float32]:
        """The least values which such shares are at most."""
        ranks = np.ceil(np.asarray(shares) * self.count)
        at = np.searchsorted(np.cumsum(self.weights), ranks)
        found: NDArray[np.float32] = self.values[np.minimum(at, len(self.values) - 1)]
        return found


def merge(sketches: Iterable[DriftSketch]) -> Distribution | None:
    """All values of several sketches together; None: they hold none.

    The error of the whole is the mean of their errors, each weighted by its count: never more than the largest.
    """
    held = [(sketch, *sketch.weighted()) for sketch in sketches]
    values = np.concatenate([values for _, values, _ in held] or [np.empty(0, np.float32)])
    weights = np.concatenate([weights for _, _, weights in held] or [np.empty(0, np.int64)])
    if not len(values):
        return None
    count = int(weights.sum())
    order = np.argsort(values, kind="stable")
    return Distribution(
        values=values[order],
        weights=weights[order],
        count=count,
        rank_error=sum(sketch.rank_error * int(w.sum()) for sketch, _, w in held) / count,
        share_error=sum(sketch.share_error * int(w.sum()) for sketch, _, w in held) / count,
    )


def kolmogorov_smirnov(reference: Distribution, found: Distribution) -> float:
    """The largest difference between the two shares of values up to a point, 0 to 1, less what the sketches may err.

    So far apart they are at least, as far as the sketches go; that both are samples is not in it.
    """
    points = np.concatenate([reference.values, found.values])
    apart = np.abs(reference.share_up_to(points) - found.share_up_to(points)).max()
    return max(0.0, float(apart) - reference.rank_error - found.rank_error)


def population_stability(reference: Distribution, found: Distribution) -> float:
    """Population stability index over the reference's deciles: sum of (q - p) ln(q / p), p and q the shares in a bin.

    Each difference is first made smaller by what the sketches may err. A value that is more than a decile of the
    reference (such as 0 behind a ReLU) has a bin of its own. By custom, below 0.1 is little and above 0.25 much.
    """
    edges = reference.quantiles(np.arange(1, BINS) / BINS)
    repeated = np.unique(edges[1:][np.diff(edges) == 0])
    edges = np.unique(np.concatenate([edges, np.nextafter(repeated, np.float32(-np.inf))]))
    p, q = (np.diff(one.share_up_to(edges), prepend=0.0, append=1.0) for one in (reference, found))
    error = reference.share_error + found.share_error
    q = p + np.sign(q - p) * np.maximum(np.abs(q - p) - error, 0.0)
    least = 0.5 / min(reference.count, found.count)  # an empty bin counts as half a value
    p, q = np.maximum(p, least), np.maximum(q, least)
    return float(((q - p) * np.log(q / p)).sum())


class Distance(NamedTuple):
    """How far one tensor has drifted."""

    name: str
    role: Role
    kolmogorov_smirnov: float
    population_stability: float
    reference_inferences: int
    inferences: int
    """The fewer, the more of the distance is chance: values of one inference resemble each other."""
    nan_share: float
    """Among the values found."""


def distances(reference: Sequence[Drift], found: Sequence[Drift]) -> list[Distance]:
    """How far the tensors of `found` are from those of `reference`, each merged over its records.

    Raises:
        CallerError: they have no tensor in common that holds values.
    """
    apart = []
    for name, role in dict.fromkeys((t.name, t.role) for record in found for t in record.tensors):
        old, new = (_of(records, name, role) for records in (reference, found))
        before, after = merge(old), merge(new)
        if before is None or after is None:
            continue
        apart.append(
            Distance(
                name=name,
                role=role,
                kolmogorov_smirnov=kolmogorov_smirnov(before, after),
                population_stability=population_stability(before, after),
                reference_inferences=sum(record.inferences for record in reference),
                inferences=sum(record.inferences for record in found),
                nan_share=sum(t.nan for t in new) / max(sum(t.values for t in new), 1),
            )
        )
    if not apart:
        raise CallerError(
            "these drift records have no tensor in common that holds values; compare those of one package"
        )
    return apart


def _of(records: Sequence[Drift], name: str, role: Role) -> list[DriftSketch]:
    return [tensor for record in records for tensor in record.tensors if (tensor.name, tensor.role) == (name, role)]
