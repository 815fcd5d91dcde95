"""Which of several packages is faster on a device: all measured in turn, each round next to each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ferryman.devices.fleet.client import PROFILE_TIMEOUT_S, AgentClient
from ferryman.devices.fleet.inventory import Device, LocalDevice, SshDevice, find_device, read_devices
from ferryman.devices.fleet.profile import broker_of
from ferryman.devices.fleet.push import push, rollback
from ferryman.profiler.comparing import pair_up, set_beside, without_partner
from ferryman.profiler.report_words import printable
from ferryman.profiler.runner import cases_of, extracted, profile_cases
from ferryman.profiler.verdict import MARGIN, ROUNDS, ROUNDS_LEAST, ROUNDS_MOST
from ferryman.runtime.contracts.comparison import Comparison
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.package import open_package

Progress = Callable[[str], None]
_SLOTS = 2


def _silent(_: str) -> None:
    """Tell nobody."""


def compare(
    packages: Sequence[Path | str],
    device: Device | str = "local",
    spec: ProfileSpec | None = None,
    *,
    rounds: int = ROUNDS,
    margin: float = MARGIN,
    timeout_s: float = PROFILE_TIMEOUT_S,
    progress: Progress = _silent,
    left_out: Progress = _silent,
) -> tuple[Comparison, ...]:
    """Measure packages in turn and hold each against the first; of one alone, its variants against its first.

    Every round measures each in a fresh process, and every other round goes backwards.

    On a device other than `local`, which must run an agent, one package serves at a time: two packages can be compared
    there, the first of which must be what the device serves. They are pushed and rolled back in turn, so each answers
    requests in its turn; in the end the first serves again, and the other has taken the place of what served before.

    Args:
        packages: files, the baseline first.
        device: where: its name in the usual devices file, `local`, or as `find_device` finds it.
        spec: what to run; its `starts` do not count.
        rounds: processes of each.
        margin: what counts as the same: 0.02 is 2 %.
        timeout_s: for what an agent is asked at once.
        progress: told, in words, what begins.
        left_out: told, in words, what has no partner to be compared with.

    Raises:
        PackageError: a package is damaged.
        CallerError: no package, rounds or margin out of range, nothing in them goes together; on a device, more than
            two packages, or another serves than the first.
        DeviceError: the device cannot run one of them.
        LinkError: the broker or the device does not answer.
    """
    if isinstance(packages, str | Path):
        raise CallerError(f"packages are files in a list, found {packages!r}; write [{str(packages)!r}]")
    if not packages:
        raise CallerError("there is no package to compare; name one with several variants, or several")
    if not ROUNDS_LEAST <= rounds <= ROUNDS_MOST:
        raise CallerError(
            f"rounds must be {ROUNDS_LEAST} to {ROUNDS_MOST}, found {rounds}: fewer have no 95 % interval"
        )
    if not 0 < margin < 1:
        raise CallerError(f"margin must be more than 0 and less than 1, such as {MARGIN}; found {margin:g}")
    spec = msgspec.structs.replace(spec or ProfileSpec(), starts=rounds)
    device = find_device(read_devices(), device) if isinstance(device, str) else device
    paths = [Path(package) for package in packages]
    if isinstance(device, LocalDevice):
        return _here(paths, spec, margin, progress, left_out)
    if not isinstance(device, SshDevice):
        raise CallerError(
            f"{device.name} is not reached over SSH, by which packages are swapped there; profile each with --json and "
            "compare the files"
        )
    return _there(paths, device, spec, margin, timeout_s, progress, left_out)


def read_measurements(path: Path | str, *, left_out: Progress = _silent) -> tuple[Measurement, ...]:
    """Read the JSON lines that `ferryman profile --json` prints; the last of each variant and interpreter counts.

    Args:
        path: the file.
        left_out: told, in words, which do not count.

    Raises:
        CallerError: there is no such file, or a line is no measurement.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CallerError(f"cannot read {path}: {error.strerror}") from error
    found: dict[tuple[str, str], Measurement] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            one = decode(line, Measurement)
        except ValueError as error:
            raise CallerError(
                f"{path}, line {number}: expected a measurement as `ferryman profile --json` prints it: {error}"
            ) from error
        if earlier := found.get((one.variant, one.interpreter)):
            of = f"{earlier.variant} on {earlier.interpreter} of {earlier.package_name} {earlier.package_sha256[:12]}"
            left_out(printable(f"{of} in {path}: line {number} holds the same variant and interpreter, and counts"))
        found[one.variant, one.interpreter] = one
    if not found:
        raise CallerError(f"{path} is empty; write measurements to it with `ferryman profile --json`")
    return tuple(found.values())


def compare_measurements(
    stored: Sequence[Sequence[Measurement]],
    *,
    margin: float = MARGIN,
    anyway: bool = False,
    left_out: Progress = _silent,
) -> tuple[Comparison, ...]:
    """Hold stored measurements against the first ones; see `set_beside`.

    Args:
        stored: the baseline's, then those of others.
        margin: what counts as the same: 0.02 is 2 %.
        anyway: compare numbers of different devices, threads or inputs, too.
        left_out: told, in words, what has no partner to be compared with.

    Raises:
        CallerError: nothing goes together, or they are of different devices, threads or inputs.
    """
    return _compared(stored, lambda one, two: set_beside(one, two, margin=margin, anyway=anyway), left_out)


Key = tuple[str, str]
"""Variant and interpreter."""


def _pairs(keys: Sequence[Sequence[Key]], left_out: Progress) -> list[tuple[int, int, int]]:
    """What is held against what: place in the first, which other, place in it; of one alone, against its own first."""
    if len(keys) > 1:
        found = []
        for part, other in enumerate(keys[1:], 1):
            pairs = pair_up(keys[0], other)
            for words in without_partner(keys[0], other, pairs, "the other" if len(keys) == 2 else f"other {part}"):  # noqa: PLR2004
                left_out(words)
            found += [(mine, part, its) for mine, its in pairs]
        return found
    if len(keys[0]) < 2:  # noqa: PLR2004  # a comparison takes two
        raise CallerError("there is one variant on one interpreter and nothing to compare it with; name another file")
    return [(0, 0, its) for its in range(1, len(keys[0]))]


def _compared(
    measured: Sequence[Sequence[Measurement]],
    beside: Callable[[Measurement, Measurement], Comparison],
    left_out: Progress,
) -> tuple[Comparison, ...]:
    keys = [[(one.variant, one.interpreter) for one in part] for part in measured]
    return tuple(beside(measured[0][mine], measured[part][its]) for mine, part, its in _pairs(keys, left_out))


def _here(
    paths: Sequence[Path], spec: ProfileSpec, margin: float, progress: Progress, left_out: Progress
) -> tuple[Comparison, ...]:
    with contextlib.ExitStack() as stack:
        parts = []
        for path in paths:
            package = stack.enter_context(open_package(path))
            folder = stack.enter_context(extracted(package))
            parts.append(cases_of(folder, package.manifest, package.sha256, spec))
        pairs = _pairs([[(case.variant.name, case.interpreter) for case in part] for part in parts], left_out)
        # Each once, and what is compared next to each other.
        order = list(dict.fromkeys(place for mine, part, its in sorted(pairs) for place in ((0, mine), (part, its))))
        found = profile_cases([parts[part][place] for part, place in order], spec, progress)
    measured = dict(zip(order, found, strict=True))
    return tuple(
        set_beside(measured[0, mine], measured[part, its], interleaved=True, margin=margin) for mine, part, its in pairs
    )


def _there(
    paths: Sequence[Path],
    device: SshDevice,
    spec: ProfileSpec,
    margin: float,
    timeout_s: float,
    progress: Progress,
    left_out: Progress,
) -> tuple[Comparison, ...]:
    if len(paths) > _SLOTS:
        raise CallerError(f"a device has two slots, so two packages can be compared there at once; found {len(paths)}")
    hashes = []
    for path in paths:
        with open_package(path) as package:
            hashes.append(package.sha256)
    with AgentClient(broker_of(device), device.name) as agent:
        serves = agent.status().package_sha256
        if serves != hashes[0]:
            what = "nothing" if serves is None else f"package {serves[:12]}"
            raise CallerError(f"{device.name} serves {what}; push the baseline there first: {paths[0]}")
        if len(paths) == 1:
            progress(f"asking {device.name}")
            found: list[tuple[Measurement, ...]] = [agent.profile(hashes[0], spec, timeout_s=timeout_s)]
        else:
            found = _in_turn(agent, paths, hashes, device, spec, timeout_s, progress)
    return _compared(found, lambda one, two: set_beside(one, two, interleaved=True, margin=margin), left_out)


def _in_turn(
    agent: AgentClient,
    paths: Sequence[Path],
    hashes: Sequence[str],
    device: SshDevice,
    spec: ProfileSpec,
    timeout_s: float,
    progress: Progress,
) -> list[tuple[Measurement, ...]]:
    once = msgspec.structs.replace(spec, starts=1)
    rounds: tuple[list[tuple[Measurement, ...]], ...] = ([], [])
    serves = 0
    try:
        for turn in range(spec.starts):
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                progress(f"round {turn + 1}/{spec.starts}: {paths[place].name} on {device.name}")
                if place != serves:
                    if place:
                        push(paths[1], device)
                    else:
                        rollback(device)
                    serves = place
                rounds[place].append(agent.profile(hashes[place], once, timeout_s=timeout_s))
    finally:
        if serves:
            rollback(device)
    return [tuple(_joined(of_one, spec) for of_one in zip(*of_package, strict=True)) for of_package in rounds]


def _joined(parts: Sequence[Measurement], spec: ProfileSpec) -> Measurement:
    """One measurement of all rounds; beside the starts, the first round's, and the conditions of the last."""
    starts = tuple(start for part in parts for start in part.starts)
    return msgspec.structs.replace(parts[0], starts=starts, after=parts[-1].after, spec=spec)
