"""Joules of inferences on a phone: its own sensors, or a meter beside it, read here while the runner runs there."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import numpy as np

from ferryman.devices.fleet.phone.phone import Phone
from ferryman.devices.fleet.phone.proof import Work
from ferryman.devices.fleet.phone.push import Ready
from ferryman.devices.fleet.phone.runner import Profiled
from ferryman.profiler.energy import measure_energy
from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers.android import open_phone
from ferryman.profiler.steady import RUNS_MAX
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import Array

_PINGS = 7
_UPTIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_MARKS = 200
_START_S = 60.0
"""For the runner to open the artifact."""


def phone_energy(
    ready: Ready, spec: ProfileSpec, artifact: str, variant: Variant, inputs: Sequence[Array]
) -> Energy | Unavailable:
    """An idle window, then one of runs, while a source is read.

    Args:
        ready: the phone.
        spec: names a meter, or the phone's own sensors are taken.
        artifact: on the phone.
        variant: of it.
        inputs: of every run.
    """
    source = open_meter(spec.meter) if spec.meter is not None else open_phone(ready.phone.link.serial)
    if isinstance(source, Unavailable):
        return source

    def burst(length_ns: int) -> list[tuple[int, int]]:
        seconds = length_ns / 1e9
        sent = Work(ready.store).send(inputs)
        options = f"--threads {spec.threads} --warmup-s 0 --seconds {seconds:.3f} --window"
        profiled = ready.runner.profile(artifact, variant.entry, sent, options, timeout_s=seconds + _START_S)
        if len(profiled.samples_ns) >= RUNS_MAX:
            raise SensorError(
                f"the runner ends after {RUNS_MAX:,} runs, and the model is too fast for a window of them"
            )
        return marks_of(profiled, clock_offset_ns(ready.phone))

    try:
        return measure_energy(source, burst=burst)
    except FerrymanError as error:  # what was measured before is whole without it
        return Unavailable(reason=str(error))


def clock_offset_ns(phone: Phone) -> int:
    """What to add to the phone's time since boot to have `time.perf_counter_ns()`; of several, the fastest answer's.

    Raises:
        SensorError: the phone does not tell its time.
    """
    best: tuple[int, int] | None = None
    for _ in range(_PINGS):
        asked_ns = time.perf_counter_ns()
        said = phone.do("read U _ </proc/uptime; echo $U").strip()
        took_ns = time.perf_counter_ns() - asked_ns
        if not _UPTIME.fullmatch(said):
            raise SensorError(f"{phone.name}: /proc/uptime says {said[:40]!r}")
        uptime_ns = round(float(said) * 1e9)
        if best is None or took_ns < best[0]:
            best = took_ns, asked_ns + took_ns // 2 - uptime_ns
    assert best is not None  # noqa: S101  # there are pings
    return best[1]


def marks_of(profiled: Profiled, offset_ns: int) -> list[tuple[int, int]]:
    """(our time, runs done by then), from the first timed run's begin to the last one's end.

    Runs are laid out between the two by their own durations, for what lies between them is about the same each time.
    """
    begin_ns, end_ns = (offset_ns + at for at in (profiled.started_boottime_ns, profiled.ended_boottime_ns))
    done_ns = np.cumsum(np.asarray(profiled.samples_ns, np.float64))
    at = np.unique(np.linspace(1, len(done_ns), min(_MARKS, len(done_ns))).astype(int))
    times = begin_ns + (done_ns[at - 1] / done_ns[-1] * (end_ns - begin_ns)).astype(np.int64)
    return [(begin_ns, 0), *zip(times.tolist(), at.tolist(), strict=True)]
