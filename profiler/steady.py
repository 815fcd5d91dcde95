"""When runs have settled, and when there are enough of them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from ferryman.profiler.stats import BLOCKS, block_error
from ferryman.runtime.contracts.measurement import ProfileSpec

Run = Callable[[], object]
Clock = Callable[[], int]

WARMUP_MAX_RUNS, WARMUP_MAX_S = 5_000, 3.0
_WINDOW_MIN_RUNS, _WINDOW_S = 5, 0.05
_SETTLED = 0.02
RUNS_MAX = 1_000_000
STEADY_MAX_S = 5.0
"""In one process, where the spread does not let the median be known as well as was asked."""
_STEADY_MIN_RUNS, _LEAST_RUNS = 3 * BLOCKS, 5
SINGLE_STREAM_RUNS, SINGLE_STREAM_S = 1024, 60.0
"""MLPerf inference rules, single-stream scenario: least queries and least duration."""


def timed_runs(run: Run, runs: int, clock_ns: Clock = time.perf_counter_ns) -> list[int]:
    """Nanoseconds of each of `runs` runs."""
    samples_ns = [0] * runs
    for index in range(runs):
        begin_ns = clock_ns()
        run()
        samples_ns[index] = clock_ns() - begin_ns
    return samples_ns


def warm_up(run: Run, spec: ProfileSpec, clock_ns: Clock = time.perf_counter_ns) -> tuple[list[int], bool]:
    """Run until a window of runs is no faster than the window before by more than a fiftieth.

    A window is five runs, and 50 ms: caches, lazy allocation and a clock that is raised on demand have had their time.

    Returns:
        Nanoseconds of each run, and whether they have settled.
    """
    if spec.warmup_runs is not None:
        given_ns = timed_runs(run, spec.warmup_runs, clock_ns)
        half = len(given_ns) // 2
        return given_ns, half > 0 and _is_settled(given_ns[:half], given_ns[half:])
    samples_ns: list[int] = []
    before: list[int] = []
    while len(samples_ns) < WARMUP_MAX_RUNS and sum(samples_ns) < WARMUP_MAX_S * 1e9:
        window: list[int] = []
        while len(window) < _WINDOW_MIN_RUNS or sum(window) < _WINDOW_S * 1e9:
            window += timed_runs(run, max(1, min(len(window), WARMUP_MAX_RUNS)), clock_ns)
        samples_ns += window
        if before and _is_settled(before, window):
            return samples_ns, True
        before = window
    return samples_ns, False


def _is_settled(before: list[int], after: list[int]) -> bool:
    return float(np.median(before)) <= float(np.median(after)) * (1 + _SETTLED)


def steady(run: Run, spec: ProfileSpec, clock_ns: Clock = time.perf_counter_ns) -> Sequence[int]:
    """Time as many runs as the spec's rule asks for.

    Returns:
        Nanoseconds of every one.
    """
    if spec.runs is not None:
        return timed_runs(run, spec.runs, clock_ns)
    samples_ns = array("q")  # the memory of a million durations shall not show
    begin_ns = clock_ns()
    while len(samples_ns) < RUNS_MAX and not _enough(samples_ns, (clock_ns() - begin_ns) / 1e9, spec):
        # A tenth more each time: the rule is asked seldom, and overshot by little.
        samples_ns.extend(timed_runs(run, min(max(1, len(samples_ns) // 10), RUNS_MAX - len(samples_ns)), clock_ns))
    return samples_ns


def _enough(samples_ns: Sequence[int], seconds: float, spec: ProfileSpec) -> bool:
    if spec.single_stream:
        return len(samples_ns) >= SINGLE_STREAM_RUNS and seconds >= SINGLE_STREAM_S
    if seconds >= STEADY_MAX_S:
        return len(samples_ns) >= _LEAST_RUNS
    return len(samples_ns) >= _STEADY_MIN_RUNS and block_error(samples_ns) <= spec.error
