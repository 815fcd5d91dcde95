"""A repository's signed metadata, as The Update Framework has it: read, change in memory, write in a safe order.

    metadata/N.root.json       every version, from 1
    metadata/N.<role>.json     targets, snapshot, and one role a family, delegated by targets
    metadata/timestamp.json    names the snapshot, which names the rest: whatever it does not name does not count

Files are written so that clients accept what is there after each one: what names a file comes after it, and a new
root comes last, for the roles whose keys it changes were signed by old and new keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from ferryman.devices.fleet.repository.files import put
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.runtime.contracts.errors import CallerError, RepositoryError
from ferryman.runtime.contracts.release import SIGNED_AT

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)
FOLDER = "metadata"
TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
_LIFETIME_DAYS = {"root": 365, "targets": 365, "snapshot": 30, "timestamp": 7}
_FAMILY_DAYS = 180
_SOON_DAYS_MAX = 30
_SKEW_S = 3600
"""By which the clocks of two publishers may differ."""


@dataclass
class Roles:
    """All metadata that counts, every signature checked."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    families: dict[str, Metadata[Targets]]

    def keys(self, role: str) -> tuple[list[Key], int]:
        """Who signs for a role, and how many must.

        Raises:
            CallerError: there is no such role.
        """
        if role not in TOP_ROLES and role not in self.families:
            raise CallerError(f"there is no role {role!r}; there are: {', '.join(self.names)}")
        delegator: Root | Targets = self.root.signed if role in TOP_ROLES else self.targets.signed
        found = delegator.get_delegated_role(role)
        return [delegator.get_key(keyid) for keyid in found.keyids], found.threshold

    @property
    def names(self) -> list[str]:
        """Of all roles."""
        return [*TOP_ROLES, *self.families]

    def signed(self, role: str) -> Signed:
        """What a role says."""
        if role in self.families:
            return self.families[role].signed
        top: dict[str, Signed] = {
            "root": self.root.signed,
            "targets": self.targets.signed,
            "snapshot": self.snapshot.signed,
            "timestamp": self.timestamp.signed,
        }
        return top[role]

    def family(self, name: str) -> Targets:
        """What a family's role says.

        Raises:
            CallerError: there is no such family.
        """
        if name not in self.families:
            known = ", ".join(self.families) or "none"
            raise CallerError(f"family {name!r} is not known here ({known} is); make it: ferryman keys add-family")
        return self.families[name].signed

    @property
    def releases(self) -> dict[str, TargetFile]:
        """Target path -> what is signed of it, over all families."""
        return {path: file for family in self.families.values() for path, file in family.signed.targets.items()}


def lifetime(role: str) -> timedelta:
    """How long what a role signs is good for."""
    return timedelta(days=_LIFETIME_DAYS.get(role, _FAMILY_DAYS))


def expires_soon(role: str, expires: datetime, now: datetime) -> bool:
    """Whether it is time to sign again: a third of the time is left, and no more than a month."""
    return expires - now < min(lifetime(role) / 3, timedelta(days=_SOON_DAYS_MAX))


def read_roles(repository: Path) -> Roles:
    """Read the metadata that counts; expired metadata is read, too.

    Raises:
        CallerError: there is no repository.
        RepositoryError: a file is missing, or is not what signs or names it says.
    """
    folder = repository / FOLDER
    versions = [int(path.name.split(".")[0]) for path in folder.glob("*.root.json") if path.name[0].isdigit()]
    if not versions:
        raise CallerError(f"{repository} is no repository; make one: ferryman keys init")
    try:
        root = _read(folder / f"{max(versions)}.root.json", Root)
        _check_signed(root.signed, "root", root)
        timestamp = _read(folder / "timestamp.json", Timestamp)
        _check_signed(root.signed, "timestamp", timestamp)
        snapshot = _named(folder, "snapshot", Snapshot, timestamp.signed.snapshot_meta)
        _check_signed(root.signed, "snapshot", snapshot)
        meta = snapshot.signed.meta
        targets = _named(folder, "targets", Targets, meta["targets.json"])
        _check_signed(root.signed, "targets", targets)
        families = {name: _named(folder, name, Targets, meta[f"{name}.json"]) for name in _delegations(targets.signed)}
        for name, family in families.items():
            _check_signed(targets.signed, name, family)
    except OSError as error:
        raise RepositoryError(f"{repository}: {error.filename}: {error.strerror}; restore it from a copy") from error
    except (TufError, SigningError, KeyError, ValueError) as error:
        raise RepositoryError(f"{repository}: the metadata does not hold: {error}; restore it from a copy") from error
    return Roles(root, targets, snapshot, timestamp, families)


def affected(changed: Collection[str]) -> set[str]:
    """Roles that are to be signed once these are changed: the snapshot names all but root, the timestamp names it."""
    below = {*changed} - {"root", "timestamp"}
    return {*changed, *(("snapshot", "timestamp") if below else ())}


def signed_again(
    roles: Roles, changed: Collection[str], keyring: Keyring, now: datetime, also: Mapping[str, Sequence[Signer]]
) -> list[tuple[str, bytes]]:
    """Sign what was changed, and what names it.

    Args:
        roles: with the changes in them; they are left alone.
        changed: names of roles; those that `affected` adds follow by themselves.
        keyring: where the keys are.
        now: UTC.
        also: role -> signers beside those its keys name, such as a new key's or the one it replaces.

    Returns:
        Files, in the order in which they are to be written.

    Raises:
        CallerError: a key is not there, or the clock is behind what was signed last.
    """
    roles, changed = deepcopy(roles), affected(changed)
    written: list[tuple[str, bytes]] = []

    def sign(role: str, metadata: Metadata[Any], name: str = "{version}.{role}.json") -> MetaFile:
        keys, threshold = roles.keys(role)
        extra = {signer.public_key.keyid: signer for signer in also.get(role, ())}
        wanted = [key for key in keys if key.keyid not in extra]
        found = keyring.signers(role, wanted, max(0, threshold - (len(keys) - len(wanted))))
        metadata.signed.version += 1
        metadata.signed.expires = now.replace(microsecond=0) + lifetime(role)
        metadata.signatures.clear()
        signers: list[Signer] = [*found, *extra.values()]
        for signer in signers:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes()
        written.append((name.format(version=metadata.signed.version, role=role), data))
        return MetaFile.from_data(metadata.signed.version, data, ["sha256"])

    for name, family in roles.families.items():
        if name in changed:
            roles.snapshot.signed.meta[f"{name}.json"] = sign(name, family)
    if "targets" in changed:
        roles.snapshot.signed.meta["targets.json"] = sign("targets", roles.targets)
    if "snapshot" in changed:
        roles.timestamp.signed.snapshot_meta = sign("snapshot", roles.snapshot)
    if "timestamp" in changed:
        roles.timestamp.signed.unrecognized_fields[SIGNED_AT] = _signed_at(roles, now, new_keys="timestamp" in also)
        sign("timestamp", roles.timestamp, "timestamp.json")
    if "root" in changed:
        sign("root", roles.root)
    return written


def write_roles(repository: Path, files: Sequence[tuple[str, bytes]], work: Path) -> None:
    """Write what `signed_again` gave; the caller holds the lock."""
    for name, data in files:
        put(repository / FOLDER / name, data, work)


def _signed_at(roles: Roles, now: datetime, *, new_keys: bool) -> int:
    """The time to sign: never before the last one by the same keys, which devices would take for a rollback."""
    second, last = int(now.timestamp()), roles.timestamp.signed.unrecognized_fields.get(SIGNED_AT, 0)
    if new_keys or last <= second:
        return second
    if last > second + _SKEW_S:
        raise CallerError(
            f"the timestamp was signed at {datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC, and the clock here "
            f"says {now:%Y-%m-%d %H:%M}: set it; if the other one was wrong, ferryman keys rotate timestamp"
        )
    return int(last)


def _delegations(targets: Targets) -> list[str]:
    delegations = targets.delegations
    return list(delegations.roles) if delegations and delegations.roles else []


def _check_signed(delegator: Root | Targets, role: str, metadata: Metadata[S]) -> None:
    delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def _read(path: Path, kind: type[S]) -> Metadata[S]:
    found = Metadata[S].from_bytes(path.read_bytes())
    if not isinstance(found.signed, kind):
        raise ValueError(f"{path.name} is not of type {kind.type}")  # noqa: TRY004  # bytes that are wrong, not a call
    return found


def _named(folder: Path, role: str, kind: type[S], meta: MetaFile) -> Metadata[S]:
    path = folder / f"{meta.version}.{role}.json"
    meta.verify_length_and_hashes(path.read_bytes())
    found = _read(path, kind)
    if found.signed.version != meta.version:
        raise ValueError(f"{path.name} says it is version {found.signed.version}")
    return found
