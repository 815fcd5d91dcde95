"""The device's two slots: one serves, the other is written; `state.json` says which, and is replaced atomically.

    ROOT/state.json         SlotState: the whole truth; what it does not name does not count
    ROOT/slots/a, slots/b   manifest.json and the payloads under their manifest paths
    ROOT/incoming           packages on their way in
    ROOT/lock               held by whoever changes any of these

Files are never changed in place: a running agent may have them mapped, and an unlinked file lives on for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from ferryman.runtime.contracts.errors import BusyError, CallerError, DeviceError, PackageError
from ferryman.runtime.contracts.manifest import Manifest, Payload
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.slot import BAD_MAX, BY_HAND, BadPackage, Slot, SlotName, SlotState, Trial
from ferryman.runtime.durable import expect_hash, link_or_move, refuse_links, sync_directory, sync_file, write_new
from ferryman.runtime.package import MANIFEST, read_manifest

_STATE_SCHEMA = 1
_LOCK_POLL_S = 0.05
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Installed:
    """A slot whose files were read back and have the hashes they must have."""

    slot: Slot
    directory: Path
    manifest: Manifest
    """Of what the slot holds: where that is a part of the package's variants, it tells of no others."""


def inactive(state: SlotState) -> SlotName:
    """The slot to write next."""
    return "b" if state.active and state.active.name == "a" else "a"


def activated(state: SlotState, slot: Slot, trial: Trial | None = None) -> SlotState:
    """The state once `slot` serves; what served before becomes the way back. Who activates a bad package means it."""
    bad = tuple(one for one in state.bad if one.package_sha256 != slot.package_sha256)
    return SlotState(active=slot, previous=state.active, trial=trial, bad=bad)


def rolled_back(state: SlotState, reason: str | None = BY_HAND, at_ns: int = 0) -> SlotState:
    """The state once the previous slot serves again; the way back is used up, and what served is bad for a reason.

    Raises:
        DeviceError: there is no previous slot.
    """
    if state.previous is None:
        serving = f"{state.active.package_name} in slot {state.active.name}" if state.active else "nothing"
        raise DeviceError(f"no previous slot to roll back to ({serving} is active); push a package instead")
    return SlotState(active=state.previous, bad=with_bad(state, reason, at_ns) if reason else state.bad)


def with_bad(state: SlotState, reason: str, at_ns: int) -> tuple[BadPackage, ...]:
    """The bad packages, with the one that serves added."""
    if state.active is None:
        return state.bad
    sha256 = state.active.package_sha256
    kept = tuple(one for one in state.bad if one.package_sha256 != sha256)
    return (*kept, BadPackage(package_sha256=sha256, reason=reason, at_ns=at_ns))[-BAD_MAX:]


class SlotStore:
    """The store under one directory; methods that change it want the lock held."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self._state = root / "state.json"
        self._slots = root / "slots"

    def directory(self, name: SlotName) -> Path:
        """Where a slot's files are."""
        return self._slots / name

    @contextlib.contextmanager
    def lock(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the store for a change; creates it if need be. The kernel lets go when the process ends.

        Args:
            wait_s: for whoever holds it.

        Raises:
            DeviceError: someone else holds it, or the root cannot be written.
        """
        path = self.root / "lock"
        try:
            self._slots.mkdir(parents=True, exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DeviceError(
                f"cannot write the slot store {self.root}: {error.filename}: {error.strerror}; "
                "put that right, run as a user who may, or name another --root"
            ) from error
        try:
            if not _locked(lock, wait_s):
                holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
                raise BusyError(f"another install (process {holder}) is at work in {self.root}; wait until it is done")
            with contextlib.suppress(OSError):  # a full disk; the process only tells whom to wait for
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    def read_state(self) -> SlotState:
        """Which slots count; a store nobody wrote to has none.

        Raises:
            DeviceError: state.json was damaged by someone, or is of a later version.
        """
        try:
            data = self._state.read_bytes()
        except FileNotFoundError:
            return SlotState()
        except OSError as error:
            raise DeviceError(f"cannot read {self._state}: {error.strerror}") from error
        try:
            state = decode(data, SlotState)
        except ValueError as error:
            raise DeviceError(
                f"{self._state} is not a slot state ({error}); ferryman writes it atomically, so someone else changed "
                "it: put back what was there, or remove it and push the package again"
            ) from error
        if state.schema != _STATE_SCHEMA:
            raise DeviceError(
                f"{self._state} has schema {state.schema}, this ferryman knows {_STATE_SCHEMA}; update ferryman here"
            )
        if state.active and state.previous and state.active.name == state.previous.name:
            raise DeviceError(
                f"{self._state} names slot {state.active.name} twice; remove it and push the package again"
            )
        return state

    def write_state(self, state: SlotState) -> None:
        """Replace the state in one step that survives a power cut."""
        new = self._state.with_name("state.json.new")
        new.unlink(missing_ok=True)
        write_new(new, encode(state))
        new.replace(self._state)
        sync_directory(self.root)

    def clear(self, name: SlotName) -> None:
        """Unlink everything in a slot that the state does not name."""
        directory = self.directory(name)
        if directory.is_dir() and not directory.is_symlink():
            shutil.rmtree(directory)
        else:
            directory.unlink(missing_ok=True)
        sync_directory(self._slots)

    def write(self, name: SlotName, path: str, data: bytes | Iterable[bytes]) -> None:
        """Write one new file of a slot and bring it to the disk; `sync` does the same for its folders.

        Raises:
            PackageError: `path` would leave the slot, or is there already; or what `data` raises.
            OSError: the disk refused.
        """
        target = self._target(name, path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            refuse_links(self.directory(name), target.parent)
            write_new(target, data)
        except (FileExistsError, NotADirectoryError) as error:
            raise PackageError(f"payload path {path!r} collides with another of the package") from error

    def adopt(self, name: SlotName, path: str, source: Path) -> None:
        """Make a file that is on this file system already a file of a slot too, by a hard link.

        `source` stays, so what was downloaded is there still if the install does not come to its end; it must not be
        written to any more. Where the file system has no hard links, it is moved.

        Raises:
            PackageError: as `write`; or `source` is no plain file.
            CallerError: it is on another file system.
            OSError: it is not there, or the disk refused.
        """
        target = self._target(name, path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            refuse_links(self.directory(name), target.parent)
            sync_file(source)
            link_or_move(source, target)
        except (FileExistsError, NotADirectoryError) as error:
            raise PackageError(f"payload path {path!r} collides with another of the package") from error

    def sync(self, name: SlotName) -> None:
        """Bring a slot's folders to the disk, innermost first."""
        directory = self.directory(name)
        for folder, _, _ in os.walk(directory, topdown=False):
            sync_directory(Path(folder))
        sync_directory(self._slots)
        sync_directory(self.root)

    def verify(self, slot: Slot) -> Installed:
        """Read a slot back from the disk and compare every hash.

        Raises:
            DeviceError: a file is missing, or is not what was installed.
        """
        directory = self.directory(slot.name)
        with _blaming(slot):
            expect_hash(directory, MANIFEST, slot.manifest_sha256)
            manifest = _held(read_manifest((directory / MANIFEST).read_bytes()), slot)
            for payload in manifest.payloads:
                self._read_back(slot.name, payload)
        return Installed(slot, directory, manifest)

    def verify_payload(self, installed: Installed, path: str) -> Path:
        """Read one payload back, for the slot may be long verified; returns where it lies.

        Raises:
            DeviceError: it is missing, or is not what was installed.
        """
        (payload,) = (payload for payload in installed.manifest.payloads if payload.path == path)
        with _blaming(installed.slot):
            return self._read_back(installed.slot.name, payload)

    def _read_back(self, name: SlotName, payload: Payload) -> Path:
        target = self._target(name, payload.path)
        refuse_links(self.directory(name), target)
        expect_hash(self.directory(name), payload.path, payload.sha256)
        return target

    def active(self) -> Installed:
        """The slot that serves, verified.

        Raises:
            DeviceError: none is active, or its files are damaged.
        """
        slot = self.read_state().active
        if slot is None:
            raise DeviceError(f"no package is active in {self.root}; push one")
        return self.verify(slot)

    def rollback(self, reason: str | None = BY_HAND, package_sha256: str | None = None) -> SlotState:
        """Let the previous slot serve again, for good.

        Args:
            reason: why what served is bad from now on, or an agent would bring it back by itself; None: it is not, for
                nothing asks for it any more.
            package_sha256: only if the previous slot holds this package; None: whichever.

        Raises:
            DeviceError: there is none, it holds another package, its files are damaged, or an install is at work;
                nothing was changed.
        """
        rolled_back(self.read_state())  # or nothing is made here, not even the lock
        with self.lock():
            state = rolled_back(self.read_state(), reason, time.time_ns())
            active = state.active
            if active is not None:
                if package_sha256 not in (None, active.package_sha256):
                    raise DeviceError(
                        f"the way back is {active.package_name} {active.package_sha256[:12]}, not "
                        f"{str(package_sha256)[:12]}; push that package"
                    )
                self.verify(active)
                wanted = tuple(one for one in state.bad if one.package_sha256 != active.package_sha256)
                state = replace(state, bad=wanted)
            self.write_state(state)
            return state

    def intact(self, slot: Slot | None) -> bool:
        """Whether there is such a slot, and its files are what they should be."""
        if slot is None:
            return False
        try:
            self.verify(slot)
        except DeviceError:
            return False
        return True

    def _target(self, name: SlotName, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if not parts or "/".join(parts) != path or path.startswith("/") or ".." in parts or "\0" in path:
            raise PackageError(f"payload path {path!r} is not a plain relative path")
        return self.directory(name).joinpath(*parts)


@contextlib.contextmanager
def disk_errors(store: SlotStore) -> Iterator[None]:
    """Make what the disk refuses an error that says so.

    Raises:
        DeviceError: the disk is full, or failed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DeviceError(f"the disk that holds {store.root} is full: {error}; make room on the device") from error
        raise DeviceError(f"the disk that holds {store.root} failed: {error}") from error


def _locked(descriptor: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True


def _held(manifest: Manifest, slot: Slot) -> Manifest:
    try:
        return manifest.only(slot.variants)
    except CallerError as error:
        raise PackageError(f"state.json says of it what its manifest does not: {error}") from error


@contextlib.contextmanager
def _blaming(slot: Slot) -> Iterator[None]:
    """Say of which slot a file cannot be read or is not what was installed."""
    where = f"slot {slot.name} ({slot.package_name})"
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{where} cannot be read back: {error}; push the package again") from error
    except PackageError as error:
        raise DeviceError(f"{where}: {error}; push the package again") from error
