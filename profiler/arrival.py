"""Open loop: requests come at a fixed rate, whether or not the last one is answered.

A closed loop asks again when it has its answer: while the device stalls, nobody asks, and the stall counts once. Here
the requests that would have come wait in line, and their wait counts (coordinated omission, Tene).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ferryman.runtime.contracts.measurement import Arrival
from ferryman.runtime.contracts.samples import Samples

ARRIVALS_S, ARRIVALS_MIN, ARRIVALS_MAX = 10.0, 100, 1_000_000
_SPIN_NS = 200_000
"""Sleeping wakes late by about this; the rest is spent watching the clock."""
RATE_MIN_HZ, RATE_MAX_HZ = 0.1, 100_000.0


def arrive(
    run: Callable[[], object],
    rate_hz: float,
    *,
    kept_max: int,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Arrival:
    """Ask for ten seconds, and a hundred times at least; gives up asking once the line is ten seconds long."""
    count = min(max(ARRIVALS_MIN, round(rate_hz * ARRIVALS_S)), ARRIVALS_MAX)
    latency_ns, service_ns = [], []
    begin_ns = clock_ns()
    for index in range(count):
        due_ns = begin_ns + round(index * 1e9 / rate_hz)
        while (left_ns := due_ns - clock_ns()) > 0:
            if left_ns > _SPIN_NS:
                sleep((left_ns - _SPIN_NS) / 1e9)
        start_ns = clock_ns()
        if start_ns - due_ns > ARRIVALS_S * 1e9:
            break
        run()
        end_ns = clock_ns()
        latency_ns.append(end_ns - due_ns)
        service_ns.append(end_ns - start_ns)
    return Arrival(
        rate_hz=rate_hz,
        latency=Samples.of(latency_ns, kept_max),
        service=Samples.of(service_ns, kept_max),
        behind=len(latency_ns) < count or _grows(latency_ns, service_ns, 1e9 / rate_hz),
    )


def _grows(latency_ns: list[int], service_ns: list[int], period_ns: float) -> bool:
    """Whether the wait in the last quarter is above that of the second by more than a period."""
    waits = np.array(latency_ns) - np.array(service_ns)
    quarter = len(waits) // 4
    second, last = np.median(waits[quarter : 2 * quarter]), np.median(waits[-quarter:])
    return bool(last - second > period_ns)
