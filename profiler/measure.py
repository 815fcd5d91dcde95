"""The process that is measured: `python -m ferryman.profiler.measure`, a Task on standard input, an Outcome on output.

It does one thing after the other, so that each step's cost shows: import the interpreter, load the artifact, run once,
warm up, run and time. Whatever an interpreter prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from pathlib import Path

from ferryman.profiler.conditions import read_conditions
from ferryman.profiler.energy import Meter, choose_source
from ferryman.runtime import kernels
from ferryman.runtime.contracts.errors import WireError, to_wire
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.measurement import Energy, Measurement, MemoryPhases, ProfileSpec
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.tensor import Array, pack, unpack
from ferryman.runtime.memory import read_memory
from ferryman.runtime.package import read_golden
from ferryman.runtime.session import Session, import_interpreter, installed, open_session

_PR_SET_PDEATHSIG = 1


class Task(Record):
    """What to measure."""

    package_name: str
    package_sha256: str
    directory: str
    """Holds the payloads under their manifest paths."""
    variant: Variant
    interpreter: str
    golden: str
    """Payload path of the vector whose inputs every run takes."""
    spec: ProfileSpec
    parent_pid: int


class Outcome(Record):
    """One of the two."""

    measurement: Measurement | None = None
    error: WireError | None = None


def measure(task: Task) -> Measurement:
    """Measure, in this process, from before the interpreter is imported.

    Raises:
        DeviceError: the interpreter does not load here.
        RuntimeFault: it refuses the artifact, or fails running it.
        PackageError: the golden vector is malformed.
    """
    started_at_ns = time.time_ns()
    directory, spec, variant = Path(task.directory), task.spec, task.variant
    artifact = directory / variant.payload
    inputs = [t.to_array().copy() for t in read_golden((directory / task.golden).read_bytes(), task.golden).inputs]
    versions = {task.interpreter: installed(variant.runtime).get(task.interpreter, "unknown")}
    before = read_conditions(versions)
    begin_ns = time.perf_counter_ns()
    import_interpreter(task.interpreter)
    import_ns = time.perf_counter_ns() - begin_ns
    start = read_memory()
    begin_ns = time.perf_counter_ns()
    session = open_session(
        artifact, variant.runtime, interpreter=task.interpreter, threads=spec.threads, entry=variant.entry
    )
    load_ns = time.perf_counter_ns() - begin_ns
    with session:
        loaded = read_memory()
        (first_run_ns,) = _timed_runs(session, inputs, 1)
        first_run = read_memory()
        warmup_ns, samples_ns, energy = _steady(session, inputs, spec)
        steady = read_memory()
    return Measurement(
        package_name=task.package_name,
        package_sha256=task.package_sha256,
        variant=variant.name,
        form=variant.called,
        runtime=variant.runtime,
        interpreter=session.interpreter,
        interpreter_version=session.version,
        artifact_bytes=artifact.stat().st_size,
        input_shapes=tuple(array.shape for array in inputs),
        spec=spec,
        started_at_ns=started_at_ns,
        import_ns=import_ns,
        load_ns=load_ns,
        cache=session.cache,
        first_run_ns=first_run_ns,
        warmup_ns=tuple(warmup_ns),
        samples_ns=tuple(samples_ns),
        memory=MemoryPhases(start=start, loaded=loaded, first_run=first_run, steady=steady),
        energy=energy,
        before=before,
        after=read_conditions(versions | _kernels(variant)),
    )


def _kernels(variant: Variant) -> dict[str, str]:
    """Which of our operators' kernels took part; asked afterwards, since asking loads them."""
    return {"ferryman kernels": f"{kernels.VERSION} {kernels.isa()}"} if variant.requires.operators else {}


def _steady(
    session: Session, inputs: list[Array], spec: ProfileSpec
) -> tuple[list[int], list[int], Energy | Unavailable]:
    """Warm-up, samples, energy; nothing that empties the caches comes between the first two."""
    meter = Meter(choose_source())
    gc.collect()
    gc.disable()
    try:
        warmup_ns = _timed_runs(session, inputs, spec.warmup_runs)
        meter.start()
        samples_ns = _timed_runs(session, inputs, spec.runs)
        return warmup_ns, samples_ns, meter.stop(spec.runs)
    finally:
        gc.enable()


def _timed_runs(session: Session, inputs: list[Array], runs: int) -> list[int]:
    samples_ns = [0] * runs
    run, clock_ns = session.run, time.perf_counter_ns
    for index in range(runs):
        begin_ns = clock_ns()
        run(inputs)
        samples_ns[index] = clock_ns() - begin_ns
    return samples_ns


def _end_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process when the one that waits for it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the process that asked for this measurement is gone")


def main() -> None:
    """Measure what standard input asks for."""
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = unpack(sys.stdin.buffer.read(), Task)
    _end_with_parent(task.parent_pid)
    try:
        outcome = Outcome(measurement=measure(task))
    except Exception as error:  # noqa: BLE001  # everything goes to the one who asked
        outcome = Outcome(error=to_wire(error))
    reply.write(pack(outcome))
    reply.close()


if __name__ == "__main__":
    main()
