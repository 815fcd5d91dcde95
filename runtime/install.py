"""Install a package on this device: plan, check, apply.

Until the last step, one rename of the state, the old slot serves; whatever goes wrong before leaves it serving.
`ferryman.runtime.states` says for each step what a power cut leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ferryman.runtime.checks import check_device, check_space, on_disk_bytes
from ferryman.runtime.contracts.errors import CallerError, FerrymanError
from ferryman.runtime.contracts.manifest import Manifest, Payload
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.slot import DEFAULT_ROOT, Slot, SlotName, SlotState, Trial, parse_pick
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.golden import GoldenResult, check_golden
from ferryman.runtime.package import MANIFEST, Package, open_package
from ferryman.runtime.picking import pick_variant, stands
from ferryman.runtime.slots import SlotStore, activated, disk_errors, inactive

Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done and the bytes there are to do (0, 0 where a step counts none)."""
GoldenCheck = Callable[[Path, Manifest], tuple[GoldenResult, ...]]

_SHA256 = re.compile("[0-9a-f]{64}")
_STALE_S = 60.0
"""An upload nobody wrote to for so long is dead: its connection would have timed out."""


@dataclass(frozen=True)
class Content:
    """What a slot will hold, and how it gets there."""

    package_sha256: str
    manifest: Manifest
    """Of what the slot will hold alone."""
    encoded: bytes
    """The package's manifest.json."""
    put: Callable[[SlotName, Payload], None]
    """Brings one payload into the slot and to the disk."""
    new_bytes: int
    """What that takes of the disk."""
    release: str | None = None
    variants: tuple[str, ...] | None = None


class Plan(Record):
    """What an install would write, and where."""

    package_sha256: str
    package_name: str
    target: SlotName
    files: int
    write_bytes: int


class InstallResult(Record):
    """What an install did; `changed` is false where the package was active and intact already."""

    changed: bool
    active: Slot
    previous: Slot | None
    written_bytes: int = 0
    write_ns: int = 0
    read_back_ns: int = 0
    golden_ns: int = 0
    activate_ns: int = 0
    golden: tuple[GoldenResult, ...] = ()


class Prepared(Record):
    """A device's answer before an upload: where to put the package, or that there is no need."""

    upload_to: str
    active: Slot | None
    """The slot that serves this very package, intact; then there is nothing to upload."""


def install(
    package: Path | str,
    root: Path | str = DEFAULT_ROOT,
    *,
    pick: str = "first",
    golden: GoldenCheck = check_golden,
    progress: Progress = lambda _step, _done, _total: None,
) -> InstallResult:
    """Write the inactive slot, read it back, run the golden vectors there, activate it.

    What someone installs by hand needs no trial; while another package is on trial, its trial ends first: the package
    before serves again, and the new one takes the place of the one on trial.

    Args:
        package: the file; when it lies in the store's `incoming` it is removed at the end.
        root: of the slot store.
        pick: which variant answers requests that name none.
        golden: runs the golden vectors in a slot; a seam for tests.
        progress: told of every step.

    Raises:
        CallerError: there is no such file, or pick.
        PackageError: the package is not what it claims to be, or was changed meanwhile; the old slot serves.
        ParityError: the device computes something else than the model.
        DeviceError: no room, no interpreter, nothing within the pick's budget, another install at work; the old slot
            serves.
    """
    package, store = Path(package), SlotStore(Path(root))
    try:
        parse_pick(pick)
        progress("verify", 0, 0)
        with open_package(package) as opened, store.lock():
            return put_in(store, _whole(store, opened), pick=pick, trial=None, golden=golden, progress=progress)
    finally:
        if package.absolute().parent == store.incoming.absolute():
            package.unlink(missing_ok=True)


def _whole(store: SlotStore, package: Package) -> Content:
    encoded = encode(package.manifest)
    return Content(
        package_sha256=package.sha256,
        manifest=package.manifest,
        encoded=encoded,
        put=lambda target, payload: store.write(target, payload.path, package.chunks(payload.path)),
        new_bytes=len(encoded) + sum(payload.size_bytes for payload in package.manifest.payloads),
    )


def plan(content: Content, state: SlotState) -> Plan:
    """Decide what to write."""
    return Plan(
        package_sha256=content.package_sha256,
        package_name=content.manifest.name,
        target=inactive(state),
        files=1 + len(content.manifest.payloads),
        write_bytes=content.new_bytes,
    )


def prepare(root: Path, sha256: str, size_bytes: int) -> Prepared:
    """Get ready for an upload: sweep up what dead ones left, see that there is room for the package and its slot.

    Raises:
        CallerError: `sha256` is none.
        DeviceError: no room, or another install at work.
    """
    if not _SHA256.fullmatch(sha256):
        raise CallerError(f"expected a SHA-256 in lower-case hex, found {sha256!r}")
    store = SlotStore(root)
    # A name of its own: two pushes of one package at once must not write into one file.
    target = store.incoming.absolute() / f"{sha256}.{secrets.token_hex(4)}.part"
    with store.lock():
        _sweep(store.incoming)
        state = store.read_state()
        if _serves(store, state, sha256, None):
            return Prepared(upload_to=str(target), active=state.active)
        check_space(store, inactive(state), 2 * on_disk_bytes(size_bytes, 1))
    return Prepared(upload_to=str(target), active=None)


def put_in(
    store: SlotStore,
    content: Content,
    *,
    pick: str,
    trial: Trial | None,
    golden: GoldenCheck,
    progress: Progress,
) -> InstallResult:
    """What every install comes to, whichever way its bytes came; the caller holds the lock.

    Raises: as `install`.
    """
    state = found = store.read_state()
    if state.active and _serves(store, state, content.package_sha256, content.variants):
        if state.active.pick == pick and stands(state.active, content.manifest):
            return InstallResult(changed=False, active=state.active, previous=state.previous)
        return _repick(store, pick, golden)
    check_device(content.manifest, instruction_sets(CPUINFO.read_text()))
    if state.trial and store.intact(state.previous):
        state = SlotState(active=state.previous, bad=state.bad)
        if _serves(store, state, content.package_sha256, content.variants):
            return _end_trial(store, state, pick, golden)
    decided = plan(content, state)
    check_space(store, decided.target, on_disk_bytes(decided.write_bytes, decided.files))
    try:
        return _apply(store, state, decided, content, pick=pick, trial=trial, golden=golden, progress=progress)
    except FerrymanError as error:
        lost = ""
        with contextlib.suppress(FerrymanError):
            lost = _lost(found, store.read_state())
        if lost:
            raise type(error)(f"{error}; {lost}") from error
        raise


def _lost(before: SlotState, now: SlotState) -> str:
    """What an install that failed took with it, in words."""
    if before.active is None or now.active is None:
        return ""
    back = before.previous
    if before.trial and back and now.active.package_sha256 == back.package_sha256:
        return f"the trial of {before.active.package_name} has ended, and {now.active.package_name} serves again"
    if back and now.previous is None:
        return (
            f"{now.active.package_name} serves still, but {back.package_name}, the way back, "
            "made room for this package and is gone: push it again to have one"
        )
    return ""


def _end_trial(store: SlotStore, before: SlotState, pick: str, golden: GoldenCheck) -> InstallResult:
    """The package before the one on trial is asked for: it serves again."""
    with disk_errors(store):
        store.write_state(before)
    assert before.active  # noqa: S101  # the caller saw that it serves
    if before.active.pick != pick:
        return _repick(store, pick, golden)
    return InstallResult(changed=True, active=before.active, previous=None)


def _apply(
    store: SlotStore,
    state: SlotState,
    decided: Plan,
    content: Content,
    *,
    pick: str,
    trial: Trial | None,
    golden: GoldenCheck,
    progress: Progress,
) -> InstallResult:
    target = decided.target
    slot = Slot(
        name=target,
        package_sha256=decided.package_sha256,
        package_name=decided.package_name,
        manifest_sha256=hashlib.sha256(content.encoded).hexdigest(),
        installed_at_ns=time.time_ns(),
        release=content.release,
        variants=content.variants,
    )
    try:
        with disk_errors(store):
            started = time.perf_counter_ns()
            _sweep(store.incoming)
            progress("clear", 0, 0)
            cleared = replace(state, previous=None)
            if store.read_state() != cleared:  # the files of the way back are about to go, or a trial ends
                store.write_state(cleared)
            store.clear(target)
            _write(store, target, content, progress)
            written = time.perf_counter_ns()
            progress("read back", 0, 0)
            verified = store.verify(slot)
        read_back = time.perf_counter_ns()
        progress("golden vectors", 0, 0)
        results = golden(verified.directory, verified.manifest)
        proven = time.perf_counter_ns()
        slot = pick_variant(slot, content.manifest, results, pick)
        progress("activate", 0, 0)
        new_state = activated(cleared, slot, trial)
        with disk_errors(store):
            store.write_state(new_state)
    except BaseException:
        with contextlib.suppress(OSError, FerrymanError):
            now = store.read_state()
            if target not in {one.name for one in (now.active, now.previous) if one}:
                store.clear(target)
        raise
    return InstallResult(
        changed=True,
        active=slot,
        previous=new_state.previous,
        written_bytes=decided.write_bytes,
        write_ns=written - started,
        read_back_ns=read_back - written,
        golden_ns=proven - read_back,
        activate_ns=time.perf_counter_ns() - proven,
        golden=results,
    )


def repick(root: Path | str, pick: str, *, golden: GoldenCheck = check_golden) -> InstallResult:
    """Pick anew among the active package's variants; nothing else changes: the way back stays, and so does a trial.

    Raises:
        CallerError: there is no such pick.
        DeviceError: nothing is active, its files are damaged, nothing is within the pick's budget, or an install is at
            work.
        ParityError: the device computes something else than the model.
    """
    parse_pick(pick)
    store = SlotStore(Path(root))
    with store.lock():
        return _repick(store, pick, golden)


def _repick(store: SlotStore, pick: str, golden: GoldenCheck) -> InstallResult:
    installed = store.active()
    started = time.perf_counter_ns()
    results = golden(installed.directory, installed.manifest)
    golden_ns = time.perf_counter_ns() - started
    plain = replace(installed.slot, pick="first", variant=None, interpreter=None)
    slot = pick_variant(plain, installed.manifest, results, pick)
    state = store.read_state()
    with disk_errors(store):
        store.write_state(replace(state, active=slot))
    return InstallResult(changed=True, active=slot, previous=state.previous, golden_ns=golden_ns, golden=results)


def _write(store: SlotStore, target: SlotName, content: Content, progress: Progress) -> None:
    payloads = content.manifest.payloads
    total = len(content.encoded) + sum(payload.size_bytes for payload in payloads)
    progress("write", 0, total)
    store.write(target, MANIFEST, content.encoded)
    done = len(content.encoded)
    for payload in payloads:
        progress("write", done, total)
        content.put(target, payload)
        done += payload.size_bytes
    store.sync(target)
    progress("write", done, total)


def _serves(store: SlotStore, state: SlotState, sha256: str, variants: tuple[str, ...] | None) -> bool:
    """Whether these variants of the package serve and their files are as they should be.

    A damaged slot is worth installing over.
    """
    slot = state.active
    if slot is None or slot.package_sha256 != sha256:
        return False
    if slot.variants is not None and (variants is None or not set(variants) <= set(slot.variants)):
        return False
    return store.intact(slot)


def _sweep(incoming: Path) -> None:
    for entry in incoming.iterdir():
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if abs(time.time() - entry.lstat().st_mtime) > _STALE_S:  # ahead: the clock was set back since
                entry.unlink()
