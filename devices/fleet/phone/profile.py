"""Measure a package on a phone: fresh processes of the native runner, in turn; everything else is told from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.joules import phone_energy
from ferryman.devices.fleet.phone.phone import Connect, connect_phone
from ferryman.devices.fleet.phone.proof import Work
from ferryman.devices.fleet.phone.push import Ready, phone_ready
from ferryman.devices.fleet.phone.runner import Phases, Profiled
from ferryman.devices.fleet.phone.snapshot import Snapshot, take
from ferryman.devices.fleet.phone.suits import usable_on
from ferryman.profiler.gate import wait_until_cool
from ferryman.profiler.runner import check_spec, plan
from ferryman.profiler.steady import (
    RUNS_MAX,
    SINGLE_STREAM_RUNS,
    SINGLE_STREAM_S,
    STEADY_MAX_S,
    WARMUP_MAX_S,
    warm_up,
)
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError, RuntimeFault
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.measurement import (
    KEPT_MAX,
    Gate,
    Measurement,
    MemoryPhases,
    ProfileSpec,
    Reading,
    Start,
)
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.package import Package, read_golden
from ferryman.runtime.session import fit

NOT_TAKEN = "not taken on a phone: one process loads and runs, and the runner times ExecuTorch's own call"
"""Of whatever that holds for: in a report, what has the same reason is one line."""
_CAN = "a phone measures cold start, latency, memory, energy and conditions"


def profile_on_phone(
    package: Package,
    device: AdbDevice,
    spec: ProfileSpec,
    *,
    bundle_file: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    connect: Connect = connect_phone,
) -> tuple[Measurement, ...]:
    """Measure every variant that the phone can run, or those that `spec` names.

    Args:
        package: verified, and active on the phone.
        device: the phone.
        spec: what to run and how long.
        bundle_file: the runner's; None: see `find_bundle`.
        progress: told what begins.
        connect: a seam for tests.

    Raises:
        CallerError: the spec asks for what no phone does, names what does not exist, or a number is out of range.
        DeviceError: the phone serves another package, or can run none of it.
        LinkError: the phone is not there, or the link broke.
        FerrymanError: as `phone_ready`, and what the runner raises.
    """
    check_phone_spec(spec)
    with phone_ready(device, bundle_file, lambda step, _done, _total: progress(step), connect) as ready:
        state = ready.store.read_state()
        active = state.active
        if active is None or active.package_sha256 != package.sha256:
            serves = f"{active.package_name} {active.package_sha256[:12]} is" if active else "none is"
            raise DeviceError(
                f"package {package.sha256[:12]} is not active on {device.name}, {serves}; push it there first"
            )
        ready.store.verify(active)
        pairs = plan(package.manifest, spec, lambda variant: usable_on(ready.facts, ready.isa, variant), ready.isa)
        cases = [_Case(ready, package, variant, f"slots/{active.name}", spec) for variant, _ in pairs]
        for turn in range(spec.starts):
            for case in cases if turn % 2 == 0 else reversed(cases):
                progress(f"round {turn + 1}/{spec.starts}: {case.variant.name} on {case.interpreter}")
                case.start()
        for case in cases if spec.energy else ():
            progress(f"energy: {case.variant.name} on {case.interpreter}")
            case.measure_energy()
        return tuple(case.measurement() for case in cases)


def check_phone_spec(spec: ProfileSpec) -> None:
    """See that a phone can do what is asked.

    Raises:
        CallerError: it cannot; says what it can.
    """
    check_spec(spec)
    asked = {
        "operators": spec.operators,
        "layers": spec.layers,
        "rate_hz": spec.rate_hz is not None,
        "sustained_s": bool(spec.sustained_s),
        "estimate": spec.estimate is not None,
    }
    if wrong := [name for name, wanted in asked.items() if wanted]:
        raise CallerError(f"no {', '.join(wanted for wanted in wrong)} on a phone; {_CAN}; leave it out")


@dataclass(frozen=True)
class _Begun:
    """A process that was measured."""

    start: Start
    phases: Phases
    packed_once: bool


class _Case:
    """One variant."""

    interpreter = "executorch"

    def __init__(self, ready: Ready, package: Package, variant: Variant, slot: str, spec: ProfileSpec) -> None:
        self.ready, self.package, self.variant, self.spec = ready, package, variant, spec
        self.artifact = f"{slot}/{variant.payload}"
        vector = (variant.golden or package.manifest.golden)[0]
        inputs = [tensor.to_array() for tensor in read_golden(package.read(vector), vector).inputs]
        try:
            self.inputs: list[Array] = fit(inputs, variant.signature)
        except CallerError as error:
            raise PackageError(f"its golden input does not fit its artifact: {error}") from error
        self.begun: list[_Begun] = []
        self.energy: Energy | Unavailable | None = None
        self.before = self.after = take(ready.phone)
        self.started_at_ns = self.before.time_ns

    def start(self) -> None:
        """A fresh process, from its start to its last run."""
        spec, ready = self.spec, self.ready
        first = not self.begun
        gate = None if spec.start_below_c is None else self._wait(spec.start_below_c)
        if first:
            self.before = take(ready.phone)
            self.started_at_ns = self.before.time_ns
        sent = Work(ready.store).send(self.inputs)
        asked = options_of(spec)
        timeout_s = min(spec.timeout_s + asked.seconds, 86_400)
        profiled, process_ns = self._timed(sent, asked.words, timeout_s)
        warmup_ns, samples_ns, settled = settle(profiled, spec)
        if not samples_ns:
            raise RuntimeFault(f"{self.variant.name} did not settle within the runs that were made; ask for more")
        kept_max = KEPT_MAX // spec.starts
        start = Start(
            process_ns=process_ns,
            import_ns=0,  # the interpreter is linked into the runner: its libraries are part of the process's start
            load_ns=profiled.open_ns,
            first_run_ns=profiled.first_run_ns,
            warmup=Samples.of(warmup_ns, kept_max),
            settled=settled,
            samples=Samples.of(samples_ns, kept_max),
            gate=gate,
            busy=Unavailable(reason=NOT_TAKEN),
        )
        self.begun.append(_Begun(start, profiled.memory.phases, profiled.packed_once))
        if first:
            self.after = take(ready.phone)

    def _timed(self, sent: Sequence[tuple[str, Sequence[int]]], words: str, timeout_s: float) -> tuple[Profiled, int]:
        """What the runner measured, and what its process took beside that, by the clock of the phone's shell."""
        profiled, took_ns = self.ready.runner.profile_timed(
            self.artifact, self.variant.entry, sent, words, timeout_s=timeout_s
        )
        within_ns = profiled.open_ns + profiled.first_run_ns + sum(profiled.warmup_ns)
        within_ns += profiled.ended_boottime_ns - profiled.started_boottime_ns
        if took_ns <= within_ns:
            raise DeviceError(
                f"{self.ready.phone.name}: its clock was set back while {self.variant.name} was measured: the shell "
                f"counted {took_ns / 1e6:.1f} ms, the runner within it {within_ns / 1e6:.1f} ms; profile again"
            )
        return profiled, took_ns - within_ns

    def _wait(self, below_c: float) -> Gate:
        """Until the phone's hottest zone is below it, or ten minutes."""
        return wait_until_cool(below_c, hottest=lambda: _hottest(take(self.ready.phone)))

    def measure_energy(self) -> None:
        """An idle window, then one of runs in a process of their own."""
        self.energy = phone_energy(self.ready, self.spec, self.artifact, self.variant, self.inputs)

    def measurement(self) -> Measurement:
        """All of it."""
        ready, manifest = self.ready, self.package.manifest
        (size,) = (one.size_bytes for one in manifest.payloads if one.path == self.variant.payload)
        versions = {"ferryman": ready.facts.runner, self.interpreter: ready.facts.executorch}
        kernels = {"ferryman kernels": f"{ready.facts.kernels_version} {ready.facts.kernels_isa}"}
        planned = ready.runner.describe(self.artifact, self.variant.entry).planned_bytes
        arena = planned if planned >= 0 else Unavailable(reason="ExecuTorch does not tell")
        return Measurement(
            package_name=manifest.name,
            package_sha256=self.package.sha256,
            variant=self.variant.name,
            form=self.variant.called,
            runtime=self.variant.runtime,
            interpreter=self.interpreter,
            interpreter_version=ready.facts.executorch,
            artifact_bytes=size,
            input_shapes=tuple(array.shape for array in self.inputs),
            spec=self.spec,
            started_at_ns=self.started_at_ns,
            starts=tuple(one.start for one in self.begun),
            memory=memory_phases(self.begun[0].phases, arena),
            pipeline=Unavailable(reason=NOT_TAKEN),
            energy=self.energy,
            before=self.before.conditions(versions),
            after=self.after.conditions(versions | (kernels if self.variant.requires.operators else {})),
            cache="memory" if self.begun[0].packed_once else "off",
        )


def _hottest(now: Snapshot) -> Reading | Unavailable:
    found = now.temperatures()
    return found if isinstance(found, Unavailable) else max(found, key=lambda reading: reading.value)


def memory_phases(phases: Phases, arena: int | Unavailable) -> MemoryPhases:
    """The runner's phases under the names of measurements."""
    start, loaded, first_run, steady = (
        phase.memory() for phase in (phases.before, phases.opened, phases.first_run, phases.after)
    )
    peaks = [one.peak_rss_bytes for one in (start, loaded, first_run, steady) if not isinstance(one, Unavailable)]
    return MemoryPhases(
        process=Unavailable(reason=NOT_TAKEN),
        start=start,
        loaded=loaded,
        first_run=first_run,
        steady=steady,
        closed=Unavailable(reason=NOT_TAKEN),
        peak_rss_bytes=max(peaks) if peaks else Unavailable(reason="no phase could be read"),
        arena_bytes=arena,
    )


@dataclass(frozen=True)
class Asked:
    """Options of the runner, and how long they take."""

    words: str
    seconds: float


def options_of(spec: ProfileSpec) -> Asked:
    """How a process is asked to run: what has settled is told afterwards, so it warms up for as long as that may take.

    Where `warmup_runs` says how many, they are the first of those that are timed.
    """
    given = spec.warmup_runs
    warm_s = WARMUP_MAX_S if given is None else 0.0
    ahead = given or 0
    if spec.runs is not None:
        runs = f"--runs-min {spec.runs + ahead} --runs-max {spec.runs + ahead} --seconds 0"
        return Asked(f"--threads {spec.threads} --warmup-s {warm_s:g} {runs}", warm_s)
    least, seconds = (SINGLE_STREAM_RUNS, SINGLE_STREAM_S) if spec.single_stream else (1, STEADY_MAX_S)
    runs = f"--runs-min {least + ahead} --runs-max {RUNS_MAX} --seconds {seconds:g}"
    return Asked(f"--threads {spec.threads} --warmup-s {warm_s:g} {runs}", warm_s + seconds)


def settle(profiled: Profiled, spec: ProfileSpec) -> tuple[list[int], list[int], bool]:
    """Tell warm-up from what is timed, by the rule that measures on other devices; every run is kept in one of them.

    Returns:
        Nanoseconds of the warm-up, of the timed runs, and whether they have settled.
    """
    runs = [*profiled.warmup_ns, *profiled.samples_ns]
    if spec.warmup_runs is not None:  # the runner makes three at least, which are warm-up too
        count = len(profiled.warmup_ns) + spec.warmup_runs
        replay = _Replay(runs[:count])
        asked = ProfileSpec(warmup_runs=count)
        _, settled = warm_up(replay, asked, replay.now_ns)
        return runs[:count], runs[count:], settled
    replay = _Replay(profiled.warmup_ns)
    try:
        warmup_ns, settled = warm_up(replay, spec, replay.now_ns)
    except _Over:
        warmup_ns, settled = list(profiled.warmup_ns), False
    if spec.runs is not None:
        return list(profiled.warmup_ns), list(profiled.samples_ns), settled
    return warmup_ns, runs[len(warmup_ns) :], settled


class _Over(Exception):
    """Nothing is left to be replayed."""


class _Replay:
    """Runs that were made elsewhere, for a rule that thinks it makes them."""

    def __init__(self, runs_ns: Sequence[int]) -> None:
        self._runs: Iterator[int] = iter(runs_ns)
        self._now_ns = 0

    def __call__(self) -> None:
        try:
            self._now_ns += next(self._runs)
        except StopIteration:
            raise _Over from None

    def now_ns(self) -> int:
        return self._now_ns
