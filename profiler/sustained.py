"""How latency holds up over minutes: runs without a pause, and the device's state beside each stretch of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ferryman.profiler.busy import Busy
from ferryman.profiler.conditions import State, read_state
from ferryman.runtime.contracts.measurement import Interval
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.memory import read_rss_bytes

INTERVALS = 60
_INTERVAL_MIN_S = 1.0
SUSTAINED_MAX_S = 4 * 3600.0


def sustain(
    run: Callable[[], object],
    seconds: float,
    *,
    kept_max: int,
    root: Path = Path("/"),
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    state: Callable[[Path], State] = read_state,
) -> tuple[Interval, ...]:
    """Run for `seconds`, in sixty intervals of a second at least; the device's state is read between them."""
    length_ns = max(seconds / INTERVALS, _INTERVAL_MIN_S) * 1e9
    found: list[Interval] = []
    begin_ns = now_ns = clock_ns()
    while now_ns - begin_ns < seconds * 1e9:
        start_ns, busy = now_ns, Busy(root)
        samples_ns: list[int] = []
        while (now_ns := clock_ns()) - start_ns < length_ns:
            run()
            samples_ns.append(clock_ns() - now_ns)
        share = busy.share()
        now = state(root)
        found.append(
            Interval(
                start_s=(start_ns - begin_ns) / 1e9,
                seconds=(now_ns - start_ns) / 1e9,
                samples=Samples.of(samples_ns, max(kept_max // INTERVALS, 1)),
                clocks_mhz=now.clocks_mhz,
                temperatures_c=now.temperatures_c,
                throttled=now.throttled,
                busy=share,
                load_1m=now.load_1m,
                memory_available_bytes=now.memory_available_bytes,
                rss_bytes=read_rss_bytes(),
            )
        )
        now_ns = clock_ns()
    return tuple(found)
