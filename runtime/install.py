"""Install a package on this device: plan, check, apply, confirm.

Until the last step, one rename of the state, the old slot serves; whatever goes wrong before leaves it serving.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import click
from msgspec.structs import replace

from ferryman.runtime.contracts.errors import CallerError, DeviceError, FerrymanError, to_wire
from ferryman.runtime.contracts.manifest import Manifest, Variant
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.slot import Slot, SlotName, SlotState, parse_pick
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.golden import GoldenResult, check_golden, missing_operators, usable_interpreters
from ferryman.runtime.package import MANIFEST, Package, open_package
from ferryman.runtime.picking import choose, measured
from ferryman.runtime.slots import SlotStore, activated, inactive

DEFAULT_ROOT = Path("/var/lib/ferryman")
Progress = Callable[[str, int, int], None]
"""Called with the step's name, the bytes done and the bytes there are to do (0, 0 where a step counts none)."""
GoldenCheck = Callable[[Path, Manifest], tuple[GoldenResult, ...]]
R = TypeVar("R", bound=Record)

_SHA256 = re.compile("[0-9a-f]{64}")
_STALE_S = 60.0
"""An upload nobody wrote to for so long is dead: its connection would have timed out."""
_BLOCK_BYTES = 4096
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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


def describe_golden(result: GoldenResult) -> str:
    """A line of it."""
    took = f", {result.latency_ns / 1e6:,.3f} ms" if result.latency_ns is not None else ""
    held = f", {result.memory_bytes / 1e6:,.1f} MB" if result.memory_bytes is not None else ""
    return f"{result.variant} on {result.interpreter} {result.version}: {result.sqnr_db:.1f} dB{took}{held}"


def plan(package: Package, state: SlotState) -> Plan:
    """Decide what to write."""
    sizes = [len(encode(package.manifest)), *(payload.size_bytes for payload in package.manifest.payloads)]
    return Plan(
        package_sha256=package.sha256,
        package_name=package.manifest.name,
        target=inactive(state),
        files=len(sizes),
        write_bytes=sum(sizes),
    )


def check_device(manifest: Manifest, isa: frozenset[str]) -> None:
    """See that this device can run at least one variant.

    Raises:
        DeviceError: it cannot; the message says for each variant what is missing.
    """
    missing = {variant.name: _missing(variant, isa) for variant in manifest.variants}
    if all(missing.values()):
        raise DeviceError(
            f"this device can run no variant of {manifest.name}: "
            + "; ".join(f"{name} needs {what}" for name, what in missing.items())
        )


def _missing(variant: Variant, isa: frozenset[str]) -> str:
    if absent := sorted(set(variant.requires.isa) - isa):
        return f"the instruction sets {', '.join(absent)}, which this processor lacks"
    if operators := missing_operators(variant):
        return operators
    if not usable_interpreters(variant):
        least = (f"{name} >= {version}" for name, version in variant.requires.interpreters.items())
        return f"one of {', '.join(least)} (pip install it)"
    return ""


def check_space(store: SlotStore, target: SlotName, need_bytes: int) -> None:
    """See that the disk has room, counting what clearing the target slot sets free.

    Raises:
        DeviceError: it has not.
    """
    disk = os.statvfs(store.root)
    free = disk.f_bavail * disk.f_frsize + _size_of(store.directory(target))
    if free < need_bytes:
        raise DeviceError(f"{store.root} needs {need_bytes} bytes free, found {free}; make room on the device")


def install(
    package: Path | str,
    root: Path | str = DEFAULT_ROOT,
    *,
    pick: str = "first",
    golden: GoldenCheck = check_golden,
    progress: Progress = lambda _step, _done, _total: None,
) -> InstallResult:
    """Write the inactive slot, read it back, run the golden vectors there, activate it.

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
            state = store.read_state()
            if state.active and _is_active(store, state, opened.sha256):
                if state.active.pick == pick and _stands(state.active, opened.manifest):
                    return InstallResult(changed=False, active=state.active, previous=state.previous)
                return _repick(store, pick, golden)
            decided = plan(opened, state)
            check_device(opened.manifest, instruction_sets(CPUINFO.read_text()))
            check_space(store, decided.target, _on_disk(decided.write_bytes, decided.files))
            return _apply(store, state, decided, opened, pick=pick, golden=golden, progress=progress)
    finally:
        if package.absolute().parent == store.incoming.absolute():
            package.unlink(missing_ok=True)


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
        if _is_active(store, state, sha256):
            return Prepared(upload_to=str(target), active=state.active)
        check_space(store, inactive(state), 2 * _on_disk(size_bytes, 1))
    return Prepared(upload_to=str(target), active=None)


def _apply(
    store: SlotStore,
    state: SlotState,
    decided: Plan,
    package: Package,
    *,
    pick: str,
    golden: GoldenCheck,
    progress: Progress,
) -> InstallResult:
    target = decided.target
    manifest = encode(package.manifest)
    slot = Slot(
        name=target,
        package_sha256=decided.package_sha256,
        package_name=decided.package_name,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        installed_at_ns=time.time_ns(),
    )
    try:
        with _disk_errors(store):
            started = time.perf_counter_ns()
            _sweep(store.incoming)
            if state.previous:  # its files are about to go
                store.write_state(SlotState(active=state.active))
            store.clear(target)
            _write(store, target, package, manifest, progress)
            written = time.perf_counter_ns()
            progress("read back", 0, 0)
            verified = store.verify(slot)
        read_back = time.perf_counter_ns()
        progress("golden vectors", 0, 0)
        results = golden(verified.directory, verified.manifest)
        proven = time.perf_counter_ns()
        slot = pick_variant(slot, package.manifest, results, pick)
        progress("activate", 0, 0)
        new_state = activated(state, slot)
        with _disk_errors(store):
            store.write_state(new_state)
    except BaseException as error:
        now = state
        with contextlib.suppress(OSError, FerrymanError):
            now = store.read_state()
            if now.active != slot:
                store.clear(target)
        if isinstance(error, FerrymanError) and state.active and state.previous and now.previous is None:
            raise type(error)(
                f"{error}; {state.active.package_name} serves still, but {state.previous.package_name}, the way back, "
                "made room for this package and is gone: push it again to have one"
            ) from error
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


def pick_variant(slot: Slot, manifest: Manifest, results: Sequence[GoldenResult], pick: str) -> Slot:
    """A slot with what shall answer requests that name no variant, by what the golden vectors showed here.

    Raises:
        DeviceError: no variant is within the budget.
    """
    if pick == "first" or not results:
        return slot
    best = choose(measured(manifest, results), pick)
    if best is None:
        said = "; ".join(map(describe_golden, results))
        raise DeviceError(f"no variant of {manifest.name} is within {pick} on this device: {said}; allow more")
    return replace(slot, pick=pick, variant=best.variant, interpreter=best.interpreter)


def _stands(slot: Slot, manifest: Manifest) -> bool:
    """Whether what was picked is there still, and runs."""
    if slot.variant is None:
        return True
    return any(one.name == slot.variant and slot.interpreter in usable_interpreters(one) for one in manifest.variants)


def repick(root: Path | str, pick: str, *, golden: GoldenCheck = check_golden) -> InstallResult:
    """Pick anew among the active package's variants; nothing else changes, and the way back stays.

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
    previous = store.read_state().previous
    with _disk_errors(store):
        store.write_state(SlotState(active=slot, previous=previous))
    return InstallResult(changed=True, active=slot, previous=previous, golden_ns=golden_ns, golden=results)


def _write(store: SlotStore, target: SlotName, package: Package, manifest: bytes, progress: Progress) -> None:
    total = len(manifest) + sum(payload.size_bytes for payload in package.manifest.payloads)
    store.write(target, MANIFEST, manifest)
    done = len(manifest)
    for payload in package.manifest.payloads:
        progress("write", done, total)
        store.write(target, payload.path, package.chunks(payload.path))
        done += payload.size_bytes
    store.sync(target)
    progress("write", done, total)


def _is_active(store: SlotStore, state: SlotState, sha256: str) -> bool:
    """Whether the package serves and its files are as they should be; a damaged slot is worth installing over."""
    if state.active is None or state.active.package_sha256 != sha256:
        return False
    try:
        store.verify(state.active)
    except DeviceError:
        return False
    return True


def _sweep(incoming: Path) -> None:
    for entry in incoming.iterdir():
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if abs(time.time() - entry.lstat().st_mtime) > _STALE_S:  # ahead: the clock was set back since
                entry.unlink()


def _size_of(directory: Path) -> int:
    return sum((Path(top) / file).lstat().st_size for top, _, files in os.walk(directory) for file in files)


def _on_disk(size_bytes: int, files: int) -> int:
    """Bytes, with a block more for each file, its folder and the state."""
    return size_bytes + (2 * files + 4) * _BLOCK_BYTES


@contextlib.contextmanager
def _disk_errors(store: SlotStore) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DeviceError(f"the disk that holds {store.root} is full: {error}; make room on the device") from error
        raise DeviceError(f"the disk that holds {store.root} failed: {error}") from error


def _checked(pick: str) -> str:
    try:
        parse_pick(pick)
    except CallerError as error:
        raise click.BadParameter(str(error)) from error
    return pick


_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=DEFAULT_ROOT,
    show_default=True,
    help="Directory of the slot store.",
)
pick_option = click.option(
    "--pick",
    callback=lambda _context, _option, value: _checked(value),
    metavar="PICK",
    default="first",
    show_default=True,
    help="Which variant answers requests that name none: the package's first, or what the golden vectors show on the "
    "device to be the fastest, the smallest, the closest to eager, or of nested ones the largest; within a budget, "
    "such as largest-20ms or largest-20ms-60mb.",
)
_SETTINGS = {"help_option_names": ["-h", "--help"]}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, of errors too.")


@click.command("install", context_settings=_SETTINGS)
@click.argument("package", type=click.Path(path_type=Path))
@_root_option
@pick_option
@_json_option
def install_command(package: Path, root: Path, pick: str, as_json: bool) -> None:
    """Install PACKAGE on this device: write the inactive slot, prove it, activate it."""

    def show(step: str, done: int, total: int) -> None:
        if not as_json:
            click.echo(f"{step} {done}/{total} bytes" if total else step, err=True)

    result = _answer(lambda: install(package, root, pick=pick, progress=show), as_json)
    what = "is now active" if result.changed else "was active already"
    click.echo(f"{result.active.package_name} {what} in slot {result.active.name}")
    for golden in result.golden:
        click.echo(f"  {describe_golden(golden)}")
    if result.active.answers:
        click.echo(f"  {result.active.answers}, answers")


@click.command("prepare", hidden=True, context_settings=_SETTINGS)
@click.argument("sha256")
@click.argument("size_bytes", type=int)
@_root_option
@_json_option
def prepare_command(sha256: str, size_bytes: int, root: Path, as_json: bool) -> None:
    """Get ready for the upload of a package (what `ferryman push` calls first)."""
    prepared = _answer(lambda: prepare(root, sha256, size_bytes), as_json)
    click.echo(f"upload to {prepared.upload_to}" if prepared.active is None else "active already")


@click.command("repick", hidden=True, context_settings=_SETTINGS)
@_root_option
@pick_option
@_json_option
def repick_command(root: Path, pick: str, as_json: bool) -> None:
    """Pick anew among the active package's variants (what `ferryman push` calls where it is active already)."""
    click.echo(_answer(lambda: repick(root, pick), as_json).active.answers or "the package's first")


@click.command("rollback", context_settings=_SETTINGS)
@_root_option
@_json_option
def rollback_command(root: Path, as_json: bool) -> None:
    """Let the previously active package of this device serve again."""

    def work() -> SlotState:
        store = SlotStore(root)
        with _disk_errors(store):
            return store.rollback()

    state = _answer(work, as_json)
    if state.active:
        click.echo(f"{state.active.package_name} is active again in slot {state.active.name}")


def _answer(work: Callable[[], R], as_json: bool) -> R:
    """Do the work; as JSON, print the result or the error as a record and end the process."""
    try:
        result = work()
    except Exception as error:
        if as_json:
            if not isinstance(error, FerrymanError):
                traceback.print_exc()  # a bug: the other side gets one line of it, the rest is for the log
            click.echo(encode(to_wire(error)))
            sys.exit(1)
        if isinstance(error, FerrymanError):
            raise click.ClickException(f"{error.party}: {error}") from error
        raise
    if as_json:
        click.echo(encode(result))
        sys.exit(0)
    return result


if __name__ == "__main__":
    click.Group(commands=[install_command, prepare_command, repick_command, rollback_command])()
