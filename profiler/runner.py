"""Profile a package on this machine: each (variant, interpreter) in a fresh process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from ferryman.runtime.package import open_package

RUNS_MAX = 1_000_000
"""Every sample is kept, and travels."""
THREADS_MAX = 1024
TIMEOUT_MAX_S = 86_400
_LAST_WORDS_CHARS = 2000
Progress = Callable[[str], None]


def profile_package(path: Path, spec: ProfileSpec, progress: Progress | None = None) -> tuple[Measurement, ...]:
    """Profile a package file on this machine; it is verified and extracted to a temporary folder.

    Raises:
        PackageError: the file is not a sound package.
        FerrymanError: see `run_profile`.
    """
    with open_package(path) as package, tempfile.TemporaryDirectory(prefix="ferryman-profile-") as folder:
        for payload in package.manifest.payloads:
            target = Path(folder) / payload.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(package.read(payload.path))
        return run_profile(Path(folder), package.manifest, package.sha256, spec, progress)


def run_profile(
    directory: Path,
    manifest: Manifest,
    package_sha256: str,
    spec: ProfileSpec,
    progress: Progress | None = None,
    *,
    timeout_s: float = TIMEOUT_MAX_S,
) -> tuple[Measurement, ...]:
    """Measure every (variant, interpreter) the spec selects and this device can run.

    Args:
        directory: holds the payloads under their manifest paths.
        manifest: of the package.
        package_sha256: its identity, for the record.
        spec: what to run and how long.
        progress: told, in words, what begins.
        timeout_s: bounds all of it together; `spec.timeout_s` bounds each.

    Raises:
        CallerError: the spec names a variant or interpreter that is not there, or a number out of range.
        DeviceError: this device can run none of the package.
        RuntimeFault: an interpreter refused the artifact, failed, or took longer than `spec.timeout_s`.
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
        measurements.append(_measure_apart(task))
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


def _measure_apart(task: Task) -> Measurement:
    what = f"{task.variant.name} on {task.interpreter}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ferryman.profiler.measure"],
            input=pack(task),
            capture_output=True,
            timeout=task.spec.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFault(
            f"measuring {what} took longer than {task.spec.timeout_s:g} s and was ended; "
            "ask for fewer runs or more time"
        ) from None
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


def _describe_death(what: str, done: subprocess.CompletedProcess[bytes]) -> str:
    code = done.returncode
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    words = done.stderr.decode(errors="replace").strip()[-_LAST_WORDS_CHARS:]
    return f"the process that measured {what} {how}" + (f"; its last words: {words}" if words else "")
