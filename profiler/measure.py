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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ferryman.profiler.busy import Busy
from ferryman.profiler.conditions import read_conditions
from ferryman.profiler.gate import wait_until_cool
from ferryman.profiler.steady import steady, warm_up
from ferryman.runtime import kernels
from ferryman.runtime.contracts.energy import Energy, EnergyEstimate
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError, WireError, to_wire
from ferryman.runtime.contracts.layers import LayerStatistics
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.measurement import (
    KEPT_MAX,
    Arrival,
    Conditions,
    Count,
    Gate,
    Interval,
    Memory,
    MemoryPhases,
    Pipeline,
    ProfileSpec,
    Start,
)
from ferryman.runtime.contracts.operators import Operators
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.tensor import Array, pack, unpack
from ferryman.runtime.memory import read_memory, reset_peak
from ferryman.runtime.package import read_golden
from ferryman.runtime.session import Session, import_interpreter, installed, open_session

_PR_SET_PDEATHSIG = 1
_OPERATOR_RUNS = 50


Part = Literal["first", "start", "operators", "layers"]


class Task(Record, kw_only=True):
    """What to measure."""

    part: Part
    """A fresh process and all that is measured in it; another one, for its start and runs alone; or one of the rest."""
    directory: str
    """Holds the payloads under their manifest paths."""
    variant: Variant
    interpreter: str
    golden: tuple[str, ...]
    """Payload paths of the vectors; every run takes the inputs of the first."""
    inputs: str | None = None
    """File with further inputs, for the layers' statistics."""
    spec: ProfileSpec
    asked_ns: int
    """When the process was asked for, by the clock that counts from boot."""
    parent_pid: int


class Rest(Record):
    """What the first process brings back beside its start."""

    started_at_ns: Count
    interpreter_version: str
    artifact_bytes: Count
    input_shapes: tuple[tuple[Count, ...], ...]
    cache: str
    memory: MemoryPhases
    pipeline: Pipeline | Unavailable
    arrival: Arrival | None
    sustained: tuple[Interval, ...] | None
    energy: Energy | Unavailable | None
    energy_estimate: EnergyEstimate | None
    before: Conditions
    after: Conditions


class Outcome(Record):
    """What was asked for, or the error."""

    start: Start | None = None
    rest: Rest | None = None
    operators: Operators | Unavailable | None = None
    layers: LayerStatistics | Unavailable | None = None
    error: WireError | None = None


def measure(task: Task) -> Outcome:
    """Measure, in this process, from before the interpreter is imported.

    Raises:
        DeviceError: the interpreter does not load here.
        RuntimeFault: it refuses the artifact, or fails running it.
        PackageError: the golden vector is malformed.
        CallerError: the further inputs do not fit.
    """
    directory = Path(task.directory)
    inputs = _golden_inputs(directory, task.golden[0])
    if task.part == "operators":
        return Outcome(operators=_operators(task, inputs))
    if task.part == "layers":
        return Outcome(layers=_layers(task))
    ready_ns = time.monotonic_ns()
    gate = None if task.spec.start_below_c is None else wait_until_cool(task.spec.start_below_c)
    return _Start(task, inputs, ready_ns - task.asked_ns, gate).measure()


class _Start:
    """One fresh process, from the import of the interpreter on."""

    def __init__(self, task: Task, inputs: list[Array], process_ns: int, gate: Gate | None) -> None:
        self.task, self.spec, self.variant = task, task.spec, task.variant
        self.artifact = Path(task.directory) / task.variant.payload
        self.inputs, self.process_ns, self.gate = inputs, process_ns, gate
        self.kept_max = KEPT_MAX // task.spec.starts
        self.first = task.part == "first"
        self.memory: dict[str, Memory | Unavailable] = {}

    def measure(self) -> Outcome:
        """Import, load, run once, warm up, time; and in the first process all the rest."""
        from ferryman.profiler import rest  # before memory is read: it stays to the end

        started_at_ns = time.time_ns()
        versions = {self.task.interpreter: installed(self.variant.runtime).get(self.task.interpreter, "unknown")}
        before = read_conditions(versions)
        self._remember("process")
        begin_ns = time.perf_counter_ns()
        import_interpreter(self.task.interpreter)
        import_ns = time.perf_counter_ns() - begin_ns
        self._remember("start")
        begin_ns = time.perf_counter_ns()
        session = open_session(
            self.artifact,
            self.variant.runtime,
            interpreter=self.task.interpreter,
            threads=self.spec.threads,
            entry=self.variant.entry,
        )
        load_ns = time.perf_counter_ns() - begin_ns
        others: dict[str, Any] = {}
        with session:
            self._remember("loaded")
            start = self._run(session, import_ns, load_ns)
            after = read_conditions(versions | _kernels(self.variant))
            if self.first:
                with _no_collection():
                    others = rest.measure(session, self.inputs, self.spec, self.kept_max)
        if not self.first:
            return Outcome(start=start)
        gc.collect()
        self._remember("closed")
        return Outcome(
            start=start,
            rest=Rest(
                started_at_ns=started_at_ns,
                interpreter_version=session.version,
                artifact_bytes=self.artifact.stat().st_size,
                input_shapes=tuple(array.shape for array in self.inputs),
                cache=session.cache,
                memory=self._phases(others.pop("arena_bytes")),
                before=before,
                after=after,
                **others,
            ),
        )

    def _run(self, session: Session, import_ns: int, load_ns: int) -> Start:
        run = partial(session.run, self.inputs)
        begin_ns = time.perf_counter_ns()
        try:
            run()
        except CallerError as error:
            raise PackageError(f"its golden input does not fit its artifact: {error}") from error
        first_run_ns = time.perf_counter_ns() - begin_ns
        self._remember("first_run")
        with _no_collection():
            warmup_ns, settled = warm_up(run, self.spec)
            busy = Busy()
            samples_ns = steady(run, self.spec)
            share = busy.share()
        self._remember("steady")
        return Start(
            process_ns=self.process_ns,
            import_ns=import_ns,
            load_ns=load_ns,
            first_run_ns=first_run_ns,
            warmup=Samples.of(warmup_ns, self.kept_max),
            settled=settled,
            samples=Samples.of(samples_ns, self.kept_max),
            gate=self.gate,
            busy=share,
        )

    def _phases(self, arena_bytes: int | Unavailable) -> MemoryPhases:
        peaks = [phase.peak_rss_bytes for phase in self.memory.values() if not isinstance(phase, Unavailable)]
        peak = max(peaks) if peaks else Unavailable(reason="no phase could be read")
        return MemoryPhases(**self.memory, peak_rss_bytes=peak, arena_bytes=arena_bytes)

    def _remember(self, phase: str) -> None:
        if self.first:
            self.memory[phase] = read_memory()
            reset_peak()


def _golden_inputs(directory: Path, path: str) -> list[Array]:
    return [tensor.to_array().copy() for tensor in read_golden((directory / path).read_bytes(), path).inputs]


def _kernels(variant: Variant) -> dict[str, str]:
    """Which of our operators' kernels took part; asked afterwards, since asking loads them."""
    return {"ferryman kernels": f"{kernels.VERSION} {kernels.isa()}"} if variant.requires.operators else {}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing that empties the caches comes between warm-up and timed runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _operators(task: Task, inputs: list[Array]) -> Operators | Unavailable:
    from ferryman.profiler.operators import time_operators

    artifact = Path(task.directory) / task.variant.payload
    return time_operators(
        artifact, task.variant, task.interpreter, inputs, threads=task.spec.threads, runs=_OPERATOR_RUNS
    )


def _layers(task: Task) -> LayerStatistics | Unavailable:
    from ferryman.profiler.layers import layer_statistics, read_inputs

    directory = Path(task.directory)
    sets = [_golden_inputs(directory, path) for path in task.golden]
    if task.inputs is not None:
        sets = read_inputs(Path(task.inputs), task.variant.signature)
    artifact = directory / task.variant.payload
    return layer_statistics(artifact, task.variant, task.interpreter, sets, threads=task.spec.threads)


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
        outcome = measure(task)
    except FileNotFoundError as error:
        outcome = Outcome(error=to_wire(DeviceError(f"{error.filename} is gone; somebody removed what was extracted")))
    except Exception as error:  # noqa: BLE001  # everything goes to the one who asked
        outcome = Outcome(error=to_wire(error))
    reply.write(pack(outcome))
    reply.close()
    os._exit(0)  # no thread of an interpreter's or a meter's keeps a process that has answered


if __name__ == "__main__":
    main()
