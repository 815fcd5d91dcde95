"""Is one slower than another: ratios with 95 % intervals, and verdicts that hold against a margin.

What varies from one process to the next (where memory came to lie, what else the machine did) is not seen within one,
and runs within one resemble their neighbours. So a process counts as one value, its median, however many runs it made,
and intervals come from ranks of those values, which ask for no shape of the distribution and are not moved by a few
processes that were disturbed:

- interleaved processes, by pairs of one round: Wilcoxon's signed-rank test, inverted. If nothing differs, A and B of a
  round could be swapped, so differences are symmetric, which is all that the test assumes;
- processes of two records: the rank-sum test of Mann and Whitney, inverted;
- too few for ranks to say anything at 95 % (under six rounds, or two records of three): Student's interval, Welch's of
  two records, which assumes that a process's median scatters normally.

All on logarithms. Ratios estimated are Hodges and Lehmann's: the median over pairs of differences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ferryman.profiler.stats import student_t, summarize
from ferryman.runtime.contracts.comparison import Ratio, Verdict
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement, Memory

MARGIN = 0.02
ROUNDS = 15
"""Find 5 % in nine of ten, where a process's median scatters by 1 % and every twentieth was disturbed by 10 %."""
ROUNDS_LEAST = 6
"""Of fewer, the signed ranks have no 95 % interval."""
ROUNDS_MOST = 100
"""What would take more is not settled by measuring longer."""
ROUNDS_TELLING = 12
"""Of fewer, scatter is known too badly to say that no number of rounds would settle it."""
_APART_MOST = math.log(10)
"""Ends of an interval from a few processes that lie further apart than tenfold only tell that these were too few."""
_TAIL = 0.025
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Of a difference, or of the logarithm of a ratio; low and high are None of too few values."""

    middle: float
    low: float | None
    high: float | None
    p_value: float | None


def ratios(
    baseline: Measurement, other: Measurement, *, interleaved: bool, margin: float = MARGIN
) -> tuple[Ratio, ...]:
    """Hold one measurement against another, quantity by quantity; those that are not in both are left out.

    Args:
        baseline: what the other is over.
        other: of the same number of processes if interleaved: those of the same place are a pair.
        interleaved: whether the processes took turns.
        margin: what counts as the same: 0.02 is a ratio within 1/1.02 to 1.02.

    Raises:
        CallerError: the margin is none, one of them has no timed runs, or they are interleaved and not of one length.
    """
    if not 0 < margin < 1:
        raise CallerError(f"a margin is more than 0 and less than 1, such as {MARGIN}; found {margin:g}")
    if interleaved and len(baseline.starts) != len(other.starts):
        raise CallerError(f"rounds are pairs; found {len(baseline.starts)} and {len(other.starts)} processes")
    found = []
    of_other = dict(_timed(other))
    for metric, values in _timed(baseline):
        if metric not in of_other:
            continue
        interval = log_ratio(values, of_other[metric], paired=interleaved)
        middles = float(np.median(values)), float(np.median(of_other[metric]))
        rounds = min(len(values), len(of_other[metric]))
        found.append(_ratio(metric, "ns", middles, interval, margin, rounds))
    if not found or found[0].metric != "p50":
        raise CallerError("there are no timed runs to compare in one of the two; profile again")
    if memories := _memory(baseline, other):
        found.append(_ratio("memory", "bytes", memories, _known(memories), margin))
    if isinstance(baseline.energy, Energy) and isinstance(other.energy, Energy):
        found += _energy(baseline.energy, other.energy, margin)
    return tuple(found)


def _timed(one: Measurement) -> Iterator[tuple[str, Values]]:
    """A value for each process."""
    starts = one.starts
    if all(start.samples.count for start in starts):
        distributions = [summarize(start.samples) for start in starts]
        yield from _positive("p50", [one.p50_ns for one in distributions])
        yield from _positive("p90", [one.p90_ns for one in distributions])
    yield from _positive("load", [start.load_ns for start in starts])
    yield from _positive("first run", [start.first_run_ns for start in starts])


def _positive(metric: str, values: Sequence[float]) -> Iterator[tuple[str, Values]]:
    if values and min(values) > 0:
        yield metric, np.asarray(values, np.float64)


def _memory(baseline: Measurement, other: Measurement) -> tuple[float, float] | None:
    one, two = baseline.memory.steady, other.memory.steady
    if isinstance(one, Memory) and isinstance(two, Memory) and one.pss_bytes and two.pss_bytes:
        return one.pss_bytes, two.pss_bytes
    return None


def _known(pair: tuple[float, float]) -> Interval:
    """One value each, of which no scatter is known."""
    return Interval(math.log(pair[1] / pair[0]), None, None, None)


def _energy(baseline: Energy, other: Energy, margin: float) -> Iterator[Ratio]:
    """By the errors the two state themselves; what they share, such as the source's own, counts as if they did not."""
    if min(baseline.active.runs, other.active.runs) <= 0:
        return
    joules, errors_j = (baseline.gross_j, other.gross_j), (baseline.error_j, other.error_j)
    if min(joules) > 0 and all(map(math.isfinite, (*joules, *errors_j))):
        middle = math.log(joules[1] / joules[0])
        half = math.hypot(errors_j[0] / joules[0], errors_j[1] / joules[1])
        yield _ratio("energy", "J", joules, Interval(middle, middle - half, middle + half, None), margin)


def _ratio(
    metric: str,
    unit: Literal["ns", "bytes", "J"],
    middles: tuple[float, float],
    interval: Interval,
    margin: float,
    rounds: int | None = None,
) -> Ratio:
    known = rounds is not None or interval.low is not None
    if rounds is not None and _says_nothing(interval, margin):
        interval = Interval(interval.middle, None, None, None)
    verdict = judge(interval, margin, ("faster", "slower") if unit == "ns" else ("less", "more")) if known else None
    low, high = interval.low, interval.high
    return Ratio(
        metric=metric,
        unit=unit,
        baseline=middles[0],
        other=middles[1],
        ratio=math.exp(interval.middle),
        low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(high),
        p_value=interval.p_value,
        verdict=verdict,
        rounds=rounds_to_settle(interval, margin, rounds) if verdict == "unclear" and rounds else None,
    )


def _says_nothing(interval: Interval, margin: float) -> bool:
    """Whether it is Student's, of few processes, too wide to be of use and without a verdict."""
    if interval.low is None or interval.high is None or interval.p_value is not None:
        return False
    return interval.high - interval.low > _APART_MOST and judge(interval, margin) == "unclear"


def judge(interval: Interval, margin: float, words: tuple[Verdict, Verdict] = ("faster", "slower")) -> Verdict:
    """What holds of the whole interval; `unclear` where nothing does."""
    edge = math.log1p(margin)
    if interval.low is None or interval.high is None:
        return "unclear"
    if interval.low > edge:
        return words[1]
    if interval.high < -edge:
        return words[0]
    return "same" if interval.low >= -edge and interval.high <= edge else "unclear"


def rounds_to_settle(interval: Interval, margin: float, rounds: int) -> int | None:
    """About how many rounds in all leave no doubt, as an interval narrows with their square root; None: too many."""
    if interval.low is None or interval.high is None:
        return ROUNDS_LEAST
    gap = abs(abs(interval.middle) - math.log1p(margin))
    half = max(interval.high - interval.middle, interval.middle - interval.low)
    if half >= gap * math.sqrt(ROUNDS_MOST / rounds):
        return None
    return max(ROUNDS_LEAST, rounds + 1, math.ceil(rounds * (half / gap) ** 2))


def log_ratio(baseline: Values, other: Values, *, paired: bool) -> Interval:
    """The logarithm of other over baseline, with its 95 % interval; see `shift`, of positive values."""
    return shift(np.log(baseline), np.log(other), paired=paired)


def shift(one: Values, two: Values, *, paired: bool) -> Interval:
    """How far the second lies above the first, with its 95 % interval.

    Args:
        one: a value a process.
        two: likewise; of the same length if paired.
        paired: whether values at the same place belong together.
    """
    if paired:
        differences, null = _walsh(two - one), _signed_rank(len(one))
    else:
        differences, null = np.subtract.outer(two, one).reshape(-1), _rank_sum(len(one), len(two))
    differences = np.sort(differences)
    middle = float(np.median(differences))
    below = np.cumsum(null)  # below[k]: chance that at most k of the differences are below the truth
    cut = int(np.searchsorted(below, _TAIL, side="right"))
    if cut == 0:
        half = _student_half(one, two, paired=paired)
        mean = float(two.mean() - one.mean())
        return Interval(mean, None, None, None) if half is None else Interval(mean, mean - half, mean + half, None)
    at_most = int(min((differences < 0).sum(), (differences > 0).sum()) + (differences == 0).sum() / 2)
    p_value = float(min(1.0, 2 * below[at_most]))
    return Interval(middle, float(differences[cut - 1]), float(differences[-cut]), p_value)


def _walsh(values: Values) -> Values:
    """Means of all pairs, each with itself too: as many are above zero as the signed ranks sum up to."""
    rows, columns = np.triu_indices(len(values))
    means: Values = (values[rows] + values[columns]) / 2
    return means


@functools.lru_cache(maxsize=4)
def _signed_rank(count: int) -> Values:
    """Chances of each sum of signed ranks, if either sign is as likely."""
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, count + 1):
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[: len(chances) - rank]
        chances = (chances + shifted) / 2
    return chances


@functools.lru_cache(maxsize=4)
def _rank_sum(one: int, two: int) -> Values:
    """Chances of each number of pairs in which the second is above the first, if any order is as likely.

    By who is the largest of all: if one of the second, it is above all of the first; if one of the first, above none.
    """
    before = [np.ones(1) for _ in range(one + 1)]
    for i in range(1, two + 1):
        row = [np.ones(1)]
        for j in range(1, one + 1):
            chances = np.zeros(i * j + 1)
            chances[j:] += before[j] * (i / (i + j))
            chances[: i * (j - 1) + 1] += row[-1] * (j / (i + j))
            row.append(chances)
        before = row
    return before[one]


def _student_half(one: Values, two: Values, *, paired: bool) -> float | None:
    """Half of the interval of the difference of means; None: of single values."""
    if min(len(one), len(two)) < 2:  # noqa: PLR2004  # a variance takes two
        return None
    if paired:
        freedom, error = float(len(one) - 1), float((two - one).var(ddof=1)) / len(one)
    else:
        parts = np.array([one.var(ddof=1) / len(one), two.var(ddof=1) / len(two)])
        error = float(parts.sum())
        weights = parts**2 / (np.array([len(one), len(two)]) - 1)
        freedom = error**2 / float(weights.sum()) if error else float(len(one) + len(two) - 2)
    return student_t(max(int(freedom), 1)) * math.sqrt(error)
