"""Making a repository, and the keys' life: new families, rotation, signing again before it expires."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Snapshot, Targets, Timestamp

from ferryman.devices.fleet.repository.files import locked
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.metadata import (
    FOLDER,
    TOP_ROLES,
    Roles,
    S,
    affected,
    expires_soon,
    read_roles,
    signed_again,
    write_roles,
)
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.release import check_family

ROOT_KEYS_MAX = 16


@dataclass(frozen=True)
class RoleStatus:
    """One role, for people."""

    role: str
    version: int
    threshold: int
    key_ids: tuple[str, ...]
    expires: datetime
    soon: bool
    """It is time to sign it again, or past it."""


@dataclass(frozen=True)
class Refreshed:
    """What was signed again."""

    signed: tuple[str, ...]
    due: tuple[str, ...]
    """These expire soon, too, and their keys are not here."""


@dataclass(frozen=True)
class Dealt:
    """Which folders take keys of which some must sign together."""

    folders: tuple[Path, ...]
    """Of each key."""
    threshold: int

    @classmethod
    def of(cls, count: int, threshold: int, folders: Sequence[Path]) -> Dealt:
        """So many keys, one folder after the other."""
        return cls(tuple(folders[number % len(folders)] for number in range(count)), threshold)

    @property
    def alone(self) -> dict[Path, int]:
        """Folders that hold enough keys to sign by themselves, where it should take several keys -> how many."""
        held = Counter(folder.resolve() for folder in self.folders)
        return {folder: count for folder, count in held.items() if count >= self.threshold > 1}

    @property
    def folders_needed(self) -> int:
        """So that none could."""
        return math.ceil(len(self.folders) / (self.threshold - 1)) if self.threshold > 1 else 1


@dataclass(frozen=True)
class Rotated:
    """What became of the keys of a role."""

    gone: tuple[str, ...]
    """Ids of those that no longer count."""
    made: tuple[tuple[str, Path], ...]
    """Ids of the new ones, and the folders they are in."""
    dealt: Dealt


def init(
    repository: Path,
    keyring: Keyring,
    now: datetime,
    *,
    families: Sequence[str] = (),
    root_keys: int = 1,
    threshold: int = 1,
    offline: Sequence[Path] = (),
) -> Roles:
    """Make keys and an empty repository signed by them.

    Args:
        repository: a folder, new or empty.
        keyring: its first folder takes the keys.
        now: UTC.
        families: of models; more can follow.
        root_keys: how many keys root has.
        threshold: how many of them must sign.
        offline: root's keys go there instead, in turn; to be kept apart.

    Raises:
        CallerError: there is a repository already, a name cannot be, or a folder cannot be written.
    """
    _check_threshold(root_keys, threshold)
    for family in families:
        check_family(family)
    with locked(repository) as work:
        if list((repository / FOLDER).glob("*.root.json")):
            raise CallerError(f"{repository} is a repository already; ferryman keys show tells its roles")
        dealt = Dealt.of(root_keys, threshold, offline or keyring.folders[:1])
        signers: dict[str, list[Signer]] = {"root": [keyring.make("root", folder) for folder in dealt.folders]}
        roles = Roles(
            _unsigned(Root(consistent_snapshot=True)),
            _unsigned(Targets()),
            _unsigned(Snapshot()),
            _unsigned(Timestamp()),
            {},
        )
        for role in TOP_ROLES[1:]:
            signers[role] = [keyring.make(role)]
        for role, its in signers.items():
            for signer in its:
                roles.root.signed.add_key(signer.public_key, role)
        roles.root.signed.roles["root"].threshold = threshold
        for family in dict.fromkeys(families):
            signers[family] = [_delegate(roles, family, keyring)]
        write_roles(repository, signed_again(roles, roles.names, keyring, now, signers), work)
    return read_roles(repository)


def add_family(repository: Path, family: str, keyring: Keyring, now: datetime) -> None:
    """Let a key of its own sign for `family/*`; takes the keys of targets, snapshot and timestamp.

    Raises:
        CallerError: there is such a family, it cannot be a name, or keys are missing.
    """
    check_family(family)
    with locked(repository) as work:
        roles = read_roles(repository)
        if family in roles.families:
            raise CallerError(f"there is a family {family} already")
        _need(roles, keyring, ("targets", "snapshot", "timestamp"))
        signer = _delegate(roles, family, keyring)
        files = signed_again(roles, (family, "targets"), keyring, now, {family: [signer]})
        write_roles(repository, files, work)


def rotate(
    repository: Path,
    chosen: Collection[str],
    keyring: Keyring,
    now: datetime,
    *,
    root_keys: int | None = None,
    threshold: int | None = None,
    offline: Sequence[Path] = (),
) -> dict[str, Rotated]:
    """Replace all keys of roles by new ones; a new root is signed by as many as the old root and the new one ask for.

    A new key goes into the folder that held the old one. Where that is not here, the folders that held others of the
    role take it in turn, and where none of them is, the keyring's first.

    Args:
        repository: its folder.
        chosen: roles, families included.
        keyring: holds the keys that sign.
        now: UTC.
        root_keys: how many root has from now on; None: as many as before.
        threshold: how many of them must sign; None: as before.
        offline: new keys of root go there instead, in turn.

    Returns:
        What became of each role's keys.

    Raises:
        CallerError: there is no such role, or keys are missing; nothing was changed.
    """
    with locked(repository) as work:
        roles = read_roles(repository)
        old = {role: roles.keys(role) for role in dict.fromkeys(chosen)}
        at_root = [role for role in old if role in TOP_ROLES]
        below = [role for role in old if role not in TOP_ROLES]
        changed = {*old, *(["root"] if at_root else []), *(["targets"] if below else [])}
        signing = affected(changed)
        _need(roles, keyring, (signing - {*old}) | (signing & {"root"}))
        also: dict[str, list[Signer]] = {}
        done: dict[str, Rotated] = {}
        for role, (keys, least) in old.items():
            count, now_least = 1, 1
            if role == "root":
                count, now_least = root_keys or len(keys), threshold or least
                _check_threshold(count, now_least)
                roles.root.signed.roles["root"].threshold = now_least
            dealt = _places(role, keys, count, now_least, keyring, offline if role == "root" else ())
            new = [keyring.make(role, folder) for folder in dealt.folders]
            ids = tuple(signer.public_key.keyid for signer in new)
            done[role] = Rotated(tuple(key.keyid for key in keys), tuple(zip(ids, dealt.folders, strict=True)), dealt)
            delegator: Root | Targets = roles.root.signed if role in TOP_ROLES else roles.targets.signed
            for key in keys:
                delegator.revoke_key(key.keyid, role)
            for signer in new:
                delegator.add_key(signer.public_key, role)
            # Whoever has the old root yet, or the new one already, is to take what is signed now.
            before = role in TOP_ROLES and keyring.has(role, keys, least)
            also[role] = [*new, *(keyring.signers(role, keys, least) if before else ())]
        write_roles(repository, signed_again(roles, changed, keyring, now, also), work)
    return done


def refresh(repository: Path, keyring: Keyring, now: datetime) -> Refreshed:
    """Sign again what expires soon, and the timestamp in any case.

    Raises:
        CallerError: the timestamp's keys are not here.
    """
    with locked(repository) as work:
        roles = read_roles(repository)
        soon = [role for role in roles.names if expires_soon(role, roles.signed(role).expires, now)]
        here = [role for role in soon if keyring.has(role, *roles.keys(role))]
        if not keyring.has("snapshot", *roles.keys("snapshot")):
            here = [role for role in here if role == "root"]  # nothing could name the others
        files = signed_again(roles, {*here, "timestamp"}, keyring, now, {})
        write_roles(repository, files, work)
    signed = tuple(name.removesuffix(".json").lstrip("0123456789").lstrip(".") for name, _ in files)
    return Refreshed(signed, tuple(role for role in soon if role not in signed))


def show(repository: Path, now: datetime) -> list[RoleStatus]:
    """Every role.

    Raises: as `read_roles`.
    """
    roles = read_roles(repository)
    found = []
    for role in roles.names:
        signed = roles.signed(role)
        keys, threshold = roles.keys(role)
        ids = tuple(key.keyid for key in keys)
        soon = expires_soon(role, signed.expires, now)
        found.append(RoleStatus(role, signed.version, threshold, ids, signed.expires, soon))
    return found


def trusted_root(repository: Path) -> bytes:
    """The newest root: all a device has to be provisioned with.

    Raises: as `read_roles`.
    """
    version = read_roles(repository).root.signed.version
    return (repository / FOLDER / f"{version}.root.json").read_bytes()


def _check_threshold(root_keys: int, threshold: int) -> None:
    if not 1 <= threshold <= root_keys <= ROOT_KEYS_MAX:
        raise CallerError(
            f"{threshold} of {root_keys} root keys: expected a threshold from 1 to the number of keys, and at most "
            f"{ROOT_KEYS_MAX} keys"
        )


def _places(
    role: str, old: Sequence[Key], count: int, threshold: int, keyring: Keyring, offline: Sequence[Path]
) -> Dealt:
    """Where new keys of a role go."""
    if offline:
        return Dealt.of(count, threshold, offline)
    held = keyring.folders_of(role, old)
    here = [folder for folder in held if folder] or keyring.folders[:1]
    turn = itertools.cycle(dict.fromkeys(here))
    found = [folder or next(turn) for folder in held[:count]]
    return Dealt((*found, *itertools.islice(turn, count - len(found))), threshold)


def _delegate(roles: Roles, family: str, keyring: Keyring) -> Signer:
    """Add a family that has signed nothing yet."""
    signer = keyring.make(family)
    if roles.targets.signed.delegations is None:
        roles.targets.signed.delegations = Delegations({}, {})
    delegations = roles.targets.signed.delegations
    assert delegations.roles is not None  # noqa: S101  # no hashed bins here
    delegations.roles[family] = DelegatedRole(family, [], 1, terminating=True, paths=[f"{family}/*"])
    roles.targets.signed.add_key(signer.public_key, family)
    roles.families[family] = _unsigned(Targets())
    return signer


def _unsigned(signed: S) -> Metadata[S]:
    """What becomes version 1 once it is signed."""
    signed.version = 0
    return Metadata(signed)


def _need(roles: Roles, keyring: Keyring, wanted: Collection[str]) -> None:
    """Raise CallerError before a key is made if what has to sign is not here."""
    for role in wanted:
        keyring.signers(role, *roles.keys(role))
