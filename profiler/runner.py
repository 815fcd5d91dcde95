"""Profile packages on this machine: each (variant, interpreter) in several fresh processes, all cases in turn.

Rounds go through the cases forward and back, a fresh process each: so what the device does over time meets all alike,
and how processes differ from each other shows in the spread.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ferryman.profiler.arrival import ARRIVALS_MIN, ARRIVALS_S, RATE_MAX_HZ, RATE_MIN_HZ
from ferryman.profiler.gate import WAIT_MAX_S
from ferryman.profiler.layers.inputs import read_inputs
from ferryman.profiler.measure import Outcome, Part, Rest, Task
from ferryman.profiler.meter import check_meter
from ferryman.profiler.steady import RUNS_MAX, SINGLE_STREAM_S
from ferryman.profiler.sustained import SUSTAINED_MAX_S
from ferryman.runtime.alive import beat
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    PackageError,
    RuntimeCrash,
    RuntimeFault,
    from_wire,
)
from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec, Start
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import pack, unpack
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.golden import missing_operators, usable_interpreters
from ferryman.runtime.isolated import describe_end
from ferryman.runtime.package import Package, open_package

STARTS_MAX = 100
THREADS_MAX = 1024
TIMEOUT_MAX_S = 86_400
_LAST_WORDS_CHARS = 2000
_EXTRACTED = "ferryman-profile-"
_STALE_S = 60.0
"""A younger folder may be of a profile that has not locked it yet."""
_POLL_S = 0.5
"""How late a cancelled measurement may notice."""
Progress = Callable[[str], None]
T = TypeVar("T")


class Case(NamedTuple):
    """One thing to measure."""

    directory: Path
    """Holds the payloads under their manifest paths."""
    manifest: Manifest
    sha256: str
    variant: Variant
    interpreter: str

    def __str__(self) -> str:
        return f"{self.variant.name} on {self.interpreter}"


def profile_package(
    path: Path | str, spec: ProfileSpec, progress: Progress | None = None, *, inputs: Path | None = None
) -> tuple[Measurement, ...]:
    """Profile a package file on this machine; it is verified and extracted to a temporary folder.

    Args:
        path: of the package.
        spec: what to run and how long.
        progress: told, in words, what begins.
        inputs: further input sets for `spec.layers`, an .npz or .npy file; None: the golden vectors.

    Raises:
        PackageError: the file is not a sound package.
        FerrymanError: see `run_profile`.
    """
    with open_package(path) as package, extracted(package) as folder:
        return run_profile(folder, package.manifest, package.sha256, spec, progress, inputs=inputs)


@contextmanager
def extracted(package: Package) -> Iterator[Path]:
    """A temporary folder with the payloads; locked, so that the next profile can tell it from what a dead one left."""
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_EXTRACTED) as folder:
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for payload in package.manifest.payloads:
                target = Path(folder) / payload.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    file.writelines(package.chunks(payload.path))
            yield Path(folder)
        finally:
            os.close(lock)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_EXTRACTED}*"):
        with suppress(OSError):  # someone else's, or no folder
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(lock)
                if found.st_uid == os.geteuid() and time.time() - found.st_mtime > _STALE_S:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def run_profile(
    directory: Path,
    manifest: Manifest,
    package_sha256: str,
    spec: ProfileSpec,
    progress: Progress | None = None,
    *,
    inputs: Path | None = None,
    timeout_s: float = TIMEOUT_MAX_S,
    cancelled: threading.Event | None = None,
) -> tuple[Measurement, ...]:
    """Measure every (variant, interpreter) the spec selects and this device can run.

    Args:
        directory: holds the payloads under their manifest paths.
        manifest: of the package.
        package_sha256: its identity, for the record.
        spec: what to run and how long.
        progress: told, in words, what begins.
        inputs: see `profile_package`.
        timeout_s: bounds all of it together; `spec.timeout_s` bounds each process.
        cancelled: ends it when set, from another thread.

    Raises:
        CallerError: the spec names a variant or interpreter that is not there, or a number out of range.
        DeviceError: this device can run none of the package.
        RuntimeFault: an interpreter refused the artifact, failed, or took longer than it may; or `cancelled`.
        RuntimeCrash: the measuring process died.
        PackageError: the package has no golden input to run on, or a malformed one.
    """
    cases = cases_of(directory, manifest, package_sha256, spec)
    return profile_cases(cases, spec, progress, inputs=inputs, timeout_s=timeout_s, cancelled=cancelled)


def cases_of(directory: Path, manifest: Manifest, sha256: str, spec: ProfileSpec) -> list[Case]:
    """What of a package the spec selects and this device can run.

    Raises:
        CallerError, DeviceError, PackageError: see `run_profile`.
    """
    check_spec(spec)
    if not manifest.golden:
        raise PackageError(f"package {manifest.name} has no golden vector, so there is no input to measure on")
    pairs = plan(manifest, spec, usable_interpreters, instruction_sets(CPUINFO.read_text()))
    return [Case(directory.absolute(), manifest, sha256, variant, interpreter) for variant, interpreter in pairs]


def profile_cases(
    cases: Sequence[Case],
    spec: ProfileSpec,
    progress: Progress | None = None,
    *,
    inputs: Path | None = None,
    timeout_s: float = TIMEOUT_MAX_S,
    cancelled: threading.Event | None = None,
) -> tuple[Measurement, ...]:
    """Measure cases of one package or several, in turn; `starts[i]` of all were measured in one round.

    Args:
        cases: see `cases_of`.
        spec: what to run and how long; names in it are not looked at.
        progress: see `run_profile`.
        inputs: see `profile_package`.
        timeout_s: see `run_profile`.
        cancelled: see `run_profile`.

    Raises:
        FerrymanError: see `run_profile`.
    """
    check_spec(spec)
    tell = progress or (lambda _: None)
    deadline = time.monotonic() + timeout_s
    stop = cancelled or threading.Event()
    if inputs is not None:
        for variant in {(case.sha256, case.variant.name): case.variant for case in cases}.values():
            read_inputs(inputs, variant.signature)  # before minutes are spent
    several = len({case.sha256 for case in cases}) > 1

    def name(case: Case) -> str:
        return f"{case.manifest.name} {case.sha256[:8]} {case}" if several else str(case)

    def apart(case: Case, part: Part) -> Outcome:
        return _measure_apart(case, part, spec, inputs, deadline, stop)

    rounds: list[list[Outcome]] = [[] for _ in cases]
    order = list(zip(cases, rounds, strict=True))
    for turn in range(spec.starts):
        for case, outcomes in order if turn % 2 == 0 else reversed(order):
            tell(f"round {turn + 1}/{spec.starts}: {name(case)}")
            outcomes.append(apart(case, "start" if turn else "first"))
    found = []
    for case, outcomes in order:
        parts: dict[str, Any] = {}
        for part in _asked(spec):
            tell(f"{part}: {name(case)}")
            try:
                parts[part] = _there(getattr(apart(case, part), part), case)
            except (RuntimeCrash, RuntimeFault) as error:  # what was measured before is whole without it
                _go_on(error, deadline, stop)
                parts[part] = Unavailable(reason=str(error))
        starts = [_there(outcome.start, case) for outcome in outcomes]
        found.append(_measurement(case, spec, starts, _there(outcomes[0].rest, case), parts))
    return tuple(found)


def _go_on(error: RuntimeCrash | RuntimeFault, deadline: float, cancelled: threading.Event) -> None:
    """Raise it where there is nobody to go on for."""
    if cancelled.is_set() or time.monotonic() >= deadline:
        raise error


def _asked(spec: ProfileSpec) -> Iterator[Part]:
    if spec.operators:
        yield "operators"
    if spec.layers:
        yield "layers"


def _there(value: T | None, case: Case) -> T:
    if value is None:
        raise RuntimeCrash(f"the process that measured {case} answered nothing")
    return value


def _measurement(case: Case, spec: ProfileSpec, starts: list[Start], rest: Rest, parts: dict[str, Any]) -> Measurement:
    return Measurement(
        package_name=case.manifest.name,
        package_sha256=case.sha256,
        variant=case.variant.name,
        form=case.variant.called,
        runtime=case.variant.runtime,
        interpreter=case.interpreter,
        spec=spec,
        starts=tuple(starts),
        **{field: getattr(rest, field) for field in rest.__struct_fields__},
        **parts,
    )


def plan(
    manifest: Manifest,
    spec: ProfileSpec,
    usable: Callable[[Variant], dict[str, str]],
    isa: frozenset[str],
) -> list[tuple[Variant, str]]:
    """What to measure, in the manifest's order, the preferred interpreter first.

    Args:
        manifest: of the package.
        spec: what was asked for.
        usable: variant -> interpreters of this device on which it is proven.
        isa: instruction sets of this device.

    Raises:
        CallerError: a name in the spec is not there; the message lists those that are.
        DeviceError: nothing in the package runs here.
    """
    names = [variant.name for variant in manifest.variants]
    if unknown := sorted(set(spec.variants) - set(names)):
        raise CallerError(f"no variant {', '.join(unknown)} in package {manifest.name}; there are: {', '.join(names)}")
    possible = [
        (variant, interpreter)
        for variant in manifest.variants
        if not set(variant.requires.isa) - isa and (not spec.variants or variant.name in spec.variants)
        for interpreter in usable(variant)
    ]
    if not possible:
        asked = [
            variant.requires for variant in manifest.variants if not spec.variants or variant.name in spec.variants
        ]
        needs = {f"{name} >= {least}" for requires in asked for name, least in requires.interpreters.items()}
        sets = {name for requires in asked for name in requires.isa} - isa
        operators = {needed for variant in manifest.variants if (needed := missing_operators(variant))}
        raise DeviceError(
            f"this device can run none of {', '.join(spec.variants or names)}; "
            f"needed is one of {', '.join(sorted(needs))}"
            + (f" and a processor with {', '.join(sorted(sets))}" if sets else "")
            + "".join(f" and {needed}" for needed in sorted(operators))
        )
    present = list(dict.fromkeys(interpreter for _, interpreter in possible))
    if unknown := sorted(set(spec.interpreters) - set(present)):
        raise CallerError(
            f"no interpreter {', '.join(unknown)} for this package on this device; there are: {', '.join(present)}"
        )
    return [pair for pair in possible if not spec.interpreters or pair[1] in spec.interpreters]


def check_spec(spec: ProfileSpec) -> None:
    """Raise CallerError where a number is out of range."""
    for name, value, least, most in (
        ("threads", spec.threads, 1, THREADS_MAX),
        ("starts", spec.starts, 1, STARTS_MAX),
        ("warmup_runs", spec.warmup_runs, 0, RUNS_MAX),
        ("runs", spec.runs, 1, RUNS_MAX),
    ):
        if value is not None and not least <= value <= most:
            raise CallerError(f"{name} must be {least} to {most:,}, found {value:,}")
    for name, number, most_of_it in (
        ("error", spec.error, 1.0),
        ("timeout_s", spec.timeout_s, TIMEOUT_MAX_S),
    ):
        if number is not None and not 0 < number <= most_of_it:
            raise CallerError(f"{name} must be more than 0 and at most {most_of_it:,g}, found {number:g}")
    if spec.rate_hz is not None and not RATE_MIN_HZ <= spec.rate_hz <= RATE_MAX_HZ:
        raise CallerError(f"rate_hz must be {RATE_MIN_HZ:g} to {RATE_MAX_HZ:,g}, found {spec.rate_hz:g}")
    if not 0 <= spec.sustained_s <= SUSTAINED_MAX_S:
        raise CallerError(f"sustained_s must be 0 to {SUSTAINED_MAX_S:,g}, found {spec.sustained_s:g}")
    if spec.start_below_c is not None and not math.isfinite(spec.start_below_c):
        raise CallerError(f"start_below_c must be a temperature in degrees, found {spec.start_below_c:g}")
    if spec.meter is not None:
        check_meter(spec.meter)
    if spec.runs is not None and spec.single_stream:
        raise CallerError("runs and single_stream both say when to stop; give one of them")


def asked_s(spec: ProfileSpec) -> float:
    """What the spec itself asks one case to spend, beside what runs take of themselves."""
    each = (SINGLE_STREAM_S if spec.single_stream else 0.0) + (0.0 if spec.start_below_c is None else WAIT_MAX_S)
    arrivals = 0.0 if spec.rate_hz is None else 2 * max(ARRIVALS_S, ARRIVALS_MIN / spec.rate_hz)
    return spec.starts * each + spec.sustained_s + arrivals


def _measure_apart(
    case: Case, part: Part, spec: ProfileSpec, inputs: Path | None, deadline: float, cancelled: threading.Event
) -> Outcome:
    task = Task(
        part=part,
        directory=str(case.directory),
        variant=case.variant,
        interpreter=case.interpreter,
        golden=case.variant.golden or case.manifest.golden,
        inputs=None if inputs is None else str(inputs.absolute()),
        spec=spec,
        asked_ns=time.monotonic_ns(),
        parent_pid=os.getpid(),
    )
    allowed_s = min(spec.timeout_s + asked_s(spec), max(deadline - time.monotonic(), 0.001))
    done = _run_apart(task, str(case), allowed_s, cancelled)
    if done.returncode:
        raise RuntimeCrash(_describe_death(str(case), done))
    try:
        outcome = unpack(done.stdout, Outcome)
    except ValueError as error:
        raise RuntimeCrash(f"the process that measured {case} answered no record: {error}") from error
    if outcome.error is not None:
        raise from_wire(outcome.error)
    return outcome


def _run_apart(
    task: Task, what: str, allowed_s: float, cancelled: threading.Event
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "ferryman.profiler.measure"]
    pipe = subprocess.PIPE
    deadline = time.monotonic() + allowed_s
    given: bytes | None = pack(task)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            while not cancelled.is_set() and (left_s := deadline - time.monotonic()) > 0:
                try:
                    stdout, stderr = process.communicate(given, timeout=min(_POLL_S, left_s))
                    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
                except subprocess.TimeoutExpired:
                    beat()
                    given = None  # it is under way
        finally:
            process.kill()  # does nothing to one that has ended
    if cancelled.is_set():
        raise RuntimeFault(f"measuring {what} was cancelled; ask again")
    raise RuntimeFault(
        f"measuring {what} took longer than {allowed_s:g} s and was ended; ask for fewer runs or more time"
    )


def _describe_death(what: str, done: subprocess.CompletedProcess[bytes]) -> str:
    words = done.stderr.decode(errors="replace").strip()[-_LAST_WORDS_CHARS:]
    end = describe_end(done.returncode)
    return f"the process that measured {what} {end}" + (f"; its last words: {words}" if words else "")
