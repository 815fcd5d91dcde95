"""Updates from a signed repository, up to payloads that lie staged beside the slots.

ROOT/trust      what this device believes; see `trust`
ROOT/update     usage.json: what updates cost; lock: held by whoever fetches
ROOT/pieces     indices that were fetched
ROOT/download   staged payloads
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.devices.agent.update.fetching import Fetching
from ferryman.devices.agent.update.http import Http
from ferryman.devices.agent.update.planner import Plan, Way, needed
from ferryman.devices.agent.update.stage import Download
from ferryman.devices.agent.update.trust import Trust
from ferryman.runtime.checks import check_device
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import BusyError, DeviceError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.cpu import CPUINFO, instruction_sets
from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.install import Progress
from ferryman.runtime.package import read_manifest
from ferryman.runtime.slots import SlotStore, disk_errors


@dataclass(frozen=True)
class Staged:
    """A download that is whole: what `install_staged` takes, and what it cost."""

    directory: Path
    manifest: bytes
    release: Release
    variants: tuple[str, ...]
    """Only these are there; empty: all."""
    ways: tuple[Way, ...]
    """How each payload came, as it was planned."""
    planned_bytes: int
    """Of the wire, for payloads and indices, when the download began or went on."""
    wire_bytes: int
    """Spent by this client, metadata and retries included."""
    notes: tuple[str, ...]
    """What did not work, and what was done instead."""


class UpdateClient(Closing):
    """One device and its repository; one at a time has a store."""

    def __init__(
        self,
        root: Path,
        config: UpdateConfig,
        *,
        cancelled: threading.Event | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the store's lock for updates; nothing is fetched yet.

        Args:
            root: of the slot store.
            config: where from, and at what cost.
            cancelled: once it is set, whatever is being fetched ends within a second.
            now: the device's clock.

        Raises:
            CallerError: the config cannot be.
            DeviceError: another client is at work here, or the root cannot be written.
        """
        self._store = SlotStore(root)
        self._config = config
        self._lock: int | None = _lock(root / "update")
        try:
            self._budget = DataBudget(root / "update" / "usage.json", day_max_bytes=config.day_max_bytes)
            self._http = Http(config, self._budget, cancelled)
        except BaseException:
            self._unlock()
            raise
        self._trust = Trust(root, self._http, now)
        self._begin_bytes = self._budget.total_bytes

    @property
    def wire_bytes(self) -> int:
        """Spent so far by this client."""
        return self._budget.total_bytes - self._begin_bytes

    @property
    def retries(self) -> int:
        """Requests so far that broke and were asked again."""
        return self._http.retries

    def check(self, name: str) -> Release:
        """The release `family/version`, or the newest of `family`.

        Raises: as `Trust.release`.
        """
        return self._trust.release(name if "/" in name else self._trust.newest(name))

    def plan(
        self,
        release: Release,
        variants: Sequence[str] = (),
        *,
        update: str | None = None,
        update_max_bytes: int | None = None,
    ) -> Plan:
        """How every payload would come; the manifest and the indices it takes to know are fetched.

        Args:
            release: that `check` gave.
            variants: only these; empty: all that this device can run.
            update: what `update_max_bytes` is counted for, over all attempts; None: the package.
            update_max_bytes: what the update may cost, beside what the config says.

        Raises:
            BudgetError: it would cost more than may be spent.
            CallerError: the package has no such variant; or cancelled.
            DeviceError: this device can run none of them, or its disk refused.
            PackageError, RepositoryError, TrustError, LinkError: what is published is not what it must be, or did not
                come.
        """
        fetching = self._fetching(release, update, update_max_bytes)
        try:
            return self._planned(fetching, variants)[1]
        finally:
            self._budget.settle()

    def fetch(
        self,
        release: Release,
        variants: Sequence[str] = (),
        *,
        update: str | None = None,
        update_max_bytes: int | None = None,
        progress: Progress = lambda _step, _done, _total: None,
    ) -> Staged:
        """Stage a release; the same call goes on where an earlier one ended, whatever ended it.

        Args:
            release: that `check` gave.
            variants: only these; empty: all that this device can run.
            update: what `update_max_bytes` is counted for, over all attempts; None: the package.
            update_max_bytes: what the update may cost, beside what the config says.
            progress: told of bytes on the wire as they come, step `download`.

        Raises: as `plan`.
        """
        begin, planned = self.wire_bytes, 0

        def tell() -> None:
            progress("download", min(self.wire_bytes - begin, planned), planned)

        fetching = self._fetching(release, update, update_max_bytes, tell)
        try:
            with disk_errors(self._store):
                fetching.download.sweep()
            manifest, plan = self._planned(fetching, variants)
            begin, planned = self.wire_bytes, plan.wire_bytes
            tell()
            fetching.bring(plan.ways)
            fetching.prune()
        finally:
            self._budget.settle()
        progress("download", planned, planned)
        return Staged(
            directory=fetching.download.directory,
            manifest=manifest,
            release=release,
            variants=plan.variants,
            ways=plan.ways,
            planned_bytes=planned,
            wire_bytes=self.wire_bytes,
            notes=tuple(fetching.notes),
        )

    def discard(self, release: Release) -> None:
        """Remove a download that is installed, or given up."""
        Download(self._store.root, release.package_sha256).discard()

    def close(self) -> None:
        """Let go of the link and the lock."""
        if self._lock is not None:
            self._http.close()
            self._unlock()

    def _fetching(
        self,
        release: Release,
        update: str | None,
        update_max_bytes: int | None,
        progress: Callable[[], None] = lambda: None,
    ) -> Fetching:
        limits = [one for one in (update_max_bytes, self._config.update_max_bytes) if one is not None]
        self._budget.begin(update or release.package_sha256, min(limits, default=None))
        fetching = Fetching(self._store, self._http, self._trust, self._budget, release, progress)
        if self._budget.note:
            fetching.notes.append(self._budget.note)
        return fetching

    def _planned(self, fetching: Fetching, variants: Sequence[str]) -> tuple[bytes, Plan]:
        first = fetching.release.payloads[0]
        fetching.bring(fetching.plan([first]))
        encoded = fetching.read(first)
        chosen, held = choose(read_manifest(encoded), variants)
        ways = fetching.plan(needed(fetching.release, held))
        return encoded, Plan(fetching.release, chosen, tuple(ways))

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def choose(manifest: Manifest, variants: Sequence[str]) -> tuple[tuple[str, ...], Manifest]:
    """Which variants to fetch (empty: all there are), and what the manifest says of them.

    Raises:
        CallerError: there is no such variant.
        DeviceError: this device can run none of them.
    """
    asked = manifest.only(tuple(variants) or None)
    check_device(asked, instruction_sets(CPUINFO.read_text()))
    runnable = tuple(one.name for one in asked.variants if usable_interpreters(one))
    if len(runnable) == len(manifest.variants):
        return (), manifest
    return runnable, manifest.only(runnable)


def _lock(folder: Path) -> int:
    for one in (folder, folder.parent / "pieces"):
        if one.is_symlink():
            raise DeviceError(f"{one} is a symbolic link, and ferryman makes none; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DeviceError(f"cannot write {folder}: {error.strerror}; put that right, or name another --root") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise BusyError(
            f"another update (process {holder}) is at work in {folder.parent}; wait until it is done"
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError:  # a full disk; the process only tells whom to wait for
        pass
    return lock
