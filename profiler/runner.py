"""Profile a package on this machine: each (variant, interpreter) in a fresh process of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ferryman.profiler.measure import Outcome, Task
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    PackageError,
    RuntimeCrash,
    RuntimeFault,
    from_wire,
)
from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.tensor import pack, unpack
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.golden import missing_operators, usable_interpreters
from ferryman.runtime.isolated import describe_end
from ferryman.runtime.package import Package, open_package

RUNS_MAX = 1_000_000
"""Every sample is kept."""
RECORD_RUNS_MAX = 70_000
"""Warm-up included: the samples that one telemetry record holds, be every run as slow as a request may last."""
THREADS_MAX = 1024
TIMEOUT_MAX_S = 86_400
_LAST_WORDS_CHARS = 2000
_EXTRACTED = "ferryman-profile-"
_STALE_S = 60.0
"""A younger folder may be of a profile that has not locked it yet."""
_POLL_S = 0.5
"""How late a cancelled measurement may notice."""
Progress = Callable[[str], None]


def profile_package(path: Path | str, spec: ProfileSpec, progress: Progress | None = None) -> tuple[Measurement, ...]:
    """Profile a package file on this machine; it is verified and extracted to a temporary folder.

    Raises:
        PackageError: the file is not a sound package.
        FerrymanError: see `run_profile`.
    """
    with open_package(path) as package, _extracted(package) as folder:
        return run_profile(folder, package.manifest, package.sha256, spec, progress)


@contextmanager
def _extracted(package: Package) -> Iterator[Path]:
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
        timeout_s: bounds all of it together; `spec.timeout_s` bounds each.
        cancelled: ends it when set, from another thread.

    Raises:
        CallerError: the spec names a variant or interpreter that is not there, or a number out of range.
        DeviceError: this device can run none of the package.
        RuntimeFault: an interpreter refused the artifact, failed, or took longer than `spec.timeout_s`; or `cancelled`.
        RuntimeCrash: the measuring process died.
        PackageError: the package has no golden input to run on, or a malformed one.
    """
    _check_spec(spec)
    if not manifest.golden:
        raise PackageError(f"package {manifest.name} has no golden vector, so there is no input to measure on")
    measurements = []
    deadline = time.monotonic() + timeout_s
    pairs = plan(manifest, spec, usable_interpreters, instruction_sets(CPUINFO.read_text()))
    for number, (variant, interpreter) in enumerate(pairs, start=1):
        if progress:
            progress(f"{number}/{len(pairs)}: {variant.name} on {interpreter}, {spec.runs} runs")
        task = Task(
            package_name=manifest.name,
            package_sha256=package_sha256,
            directory=str(directory.absolute()),
            variant=variant,
            interpreter=interpreter,
            golden=manifest.golden[0],
            spec=msgspec.structs.replace(spec, timeout_s=min(spec.timeout_s, max(deadline - time.monotonic(), 0.001))),
            parent_pid=os.getpid(),
        )
        measurements.append(_measure_apart(task, cancelled or threading.Event()))
    return tuple(measurements)


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


def _check_spec(spec: ProfileSpec) -> None:
    for name, value, least, most in (
        ("threads", spec.threads, 1, THREADS_MAX),
        ("warmup_runs", spec.warmup_runs, 0, RUNS_MAX),
        ("runs", spec.runs, 1, RUNS_MAX),
    ):
        if not least <= value <= most:
            raise CallerError(f"{name} must be {least} to {most:,}, found {value:,}")
    if not 0 < spec.timeout_s <= TIMEOUT_MAX_S:
        raise CallerError(f"timeout_s must be more than 0 and at most {TIMEOUT_MAX_S:,}, found {spec.timeout_s:g}")


def _measure_apart(task: Task, cancelled: threading.Event) -> Measurement:
    what = f"{task.variant.name} on {task.interpreter}"
    done = _run_apart(task, what, cancelled)
    if done.returncode:
        raise RuntimeCrash(_describe_death(what, done))
    try:
        outcome = unpack(done.stdout, Outcome)
    except ValueError as error:
        raise RuntimeCrash(f"the process that measured {what} answered no record: {error}") from error
    if outcome.error is not None:
        raise from_wire(outcome.error)
    if outcome.measurement is None:
        raise RuntimeCrash(f"the process that measured {what} answered nothing")
    return outcome.measurement


def _run_apart(task: Task, what: str, cancelled: threading.Event) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "ferryman.profiler.measure"]
    pipe = subprocess.PIPE
    deadline = time.monotonic() + task.spec.timeout_s
    given: bytes | None = pack(task)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            while not cancelled.is_set() and (left_s := deadline - time.monotonic()) > 0:
                try:
                    stdout, stderr = process.communicate(given, timeout=min(_POLL_S, left_s))
                    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
                except subprocess.TimeoutExpired:
                    given = None  # it is under way
        finally:
            process.kill()  # does nothing to one that has ended
    if cancelled.is_set():
        raise RuntimeFault(f"measuring {what} was cancelled; ask again")
    raise RuntimeFault(
        f"measuring {what} took longer than {task.spec.timeout_s:g} s and was ended; ask for fewer runs or more time"
    )


def _describe_death(what: str, done: subprocess.CompletedProcess[bytes]) -> str:
    words = done.stderr.decode(errors="replace").strip()[-_LAST_WORDS_CHARS:]
    end = describe_end(done.returncode)
    return f"the process that measured {what} {end}" + (f"; its last words: {words}" if words else "")
