"""What the first process measures once its timed runs are done: pipeline, arrivals, energy, a sustained run."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from ferryman.profiler.arena import arena_bytes
from ferryman.profiler.arrival import arrive
from ferryman.profiler.energy import choose_source, measure_energy
from ferryman.profiler.estimate import estimate_energy
from ferryman.profiler.sustained import sustain
from ferryman.runtime.contracts.measurement import Pipeline, ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.session import Session

_PIPELINE_RUNS, _PIPELINE_S = 200, 2.0


def measure(session: Session, inputs: list[Array], spec: ProfileSpec, kept_max: int) -> dict[str, Any]:
    """What the spec asks for, by the names of the record's fields; a sensor that is read here disturbs no timed run."""
    run = partial(session.run, inputs)
    return {
        "arena_bytes": arena_bytes(session),
        "pipeline": pipeline(session, inputs),
        "arrival": None if spec.rate_hz is None else arrive(run, spec.rate_hz, kept_max=kept_max),
        "energy": measure_energy(choose_source(meter=spec.meter), run) if spec.energy else None,
        "energy_estimate": None if spec.estimate is None else estimate_energy(run, spec.estimate),
        "sustained": sustain(run, spec.sustained_s, kept_max=kept_max) if spec.sustained_s else None,
    }


def pipeline(session: Session, inputs: list[Array]) -> Pipeline | Unavailable:
    """Runs with a clock around the runtime's own call, too."""
    call = getattr(session, "_call", None)
    if call is None:
        return Unavailable(reason=f"{session.interpreter}: its own call cannot be told from the rest")
    clock_ns = time.perf_counter_ns
    whole_ns: list[int] = []
    model_ns: list[int] = []

    def timed() -> object:
        begin_ns = clock_ns()
        answer = call()
        model_ns.append(clock_ns() - begin_ns)
        return answer

    session._call = timed  # type: ignore[attr-defined]  # noqa: SLF001  # all sessions have it; a seam for clocks
    end_ns = clock_ns() + _PIPELINE_S * 1e9
    try:
        while len(whole_ns) < _PIPELINE_RUNS and (not whole_ns or clock_ns() < end_ns):
            begin_ns = clock_ns()
            session.run(inputs)
            whole_ns.append(clock_ns() - begin_ns)
    finally:
        session._call = call  # type: ignore[attr-defined]  # noqa: SLF001
    return Pipeline(whole=Samples.of(whole_ns), model=Samples.of(model_ns))
