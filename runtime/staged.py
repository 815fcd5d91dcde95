"""Install what a downloader staged: payloads that lie on the store's file system already, each in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.slot import Slot, Trial, parse_pick
from ferryman.runtime.golden import check_golden
from ferryman.runtime.install import Content, GoldenCheck, InstallResult, Progress, put_in
from ferryman.runtime.package import read_manifest
from ferryman.runtime.slots import SlotStore, disk_errors
from ferryman.runtime.trial import is_bad


def install_staged(
    store: SlotStore,
    staged_directory: Path,
    manifest: bytes,
    *,
    package_sha256: str,
    release: str | None,
    variants: Sequence[str] | None = None,
    pick: str = "first",
    trial: Trial | None = None,
    force: bool = False,
    golden: GoldenCheck = check_golden,
    progress: Progress = lambda _step, _done, _total: None,
) -> InstallResult:
    """Give staged payloads a place in the inactive slot, read them back, run the golden vectors there, activate it.

    The slot is cleared only now, so what serves and the way back live until the download is whole. A payload is made
    the slot's by a hard link: it stays staged whatever happens, and is not fetched again. Once this returns, or the
    package is given up, the caller removes the folder. Nobody may write into a staged file with more than one link:
    it may be a slot's.

    Args:
        store: the slot store; its lock is not held.
        staged_directory: payloads under their manifest paths, below the store's root. They are not trusted: each is
            read back from the slot and hashed.
        manifest: the package's manifest.json, of the hash that the release states.
        package_sha256: as the release states it.
        release: `family/version`.
        variants: only these are staged; None or empty: all.
        pick: which variant answers requests that name none.
        trial: on which it serves; None: it is confirmed at once.
        force: install it though it is among those that are bad here.
        golden: runs the golden vectors in a slot; a seam for tests.
        progress: told of every step.

    Raises:
        CallerError: there is no such pick or variant, or the folder is on another file system.
        PackageError: the manifest cannot be read here, or a payload is not what it states; the old slot serves.
        ParityError: the device computes something else than the model.
        DeviceError: the package is bad here, no room, no interpreter, nothing within the pick's budget, another install
            at work; the old slot serves.
    """
    parse_pick(pick)
    whole = read_manifest(manifest)
    named = tuple(one.name for one in whole.variants if one.name in set(variants)) if variants else None
    held = whole.only(variants or None)
    content = Content(
        package_sha256=package_sha256,
        manifest=held,
        encoded=manifest,
        put=lambda target, payload: store.adopt(target, payload.path, staged_directory / payload.path),
        new_bytes=len(manifest),
        release=release,
        variants=None if named is None or len(named) == len(whole.variants) else named,
    )
    with store.lock():
        if not force and (bad := is_bad(store.read_state(), package_sha256)):
            raise DeviceError(bad.refusal(held.name))
        return put_in(store, content, pick=pick, trial=trial, golden=golden, progress=progress)


def name_active(store: SlotStore, package_sha256: str, release: str) -> None:
    """Note that what serves is a release, where it came another way, such as by a push.

    Args:
        store: the slot store; its lock is not held.
        package_sha256: nothing is done where another package serves.
        release: `family/version`.

    Raises:
        DeviceError: the disk refuses, or an install is at work.
    """

    def is_done(slot: Slot | None) -> bool:
        return slot is None or slot.package_sha256 != package_sha256 or slot.release == release

    if is_done(store.read_state().active):
        return
    with store.lock(), disk_errors(store):
        state = store.read_state()
        if state.active and not is_done(state.active):
            store.write_state(replace(state, active=replace(state.active, release=release)))
