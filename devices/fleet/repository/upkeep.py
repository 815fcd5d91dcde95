"""Looking after a repository: does every byte still make what was signed, and which files does nobody name any more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ferryman.devices.fleet.repository.files import locked
from ferryman.devices.fleet.repository.metadata import FOLDER, Roles, read_roles
from ferryman.devices.fleet.repository.packs import EMPTY, Packs
from ferryman.devices.fleet.repository.releases import TARGETS, read_payload, read_release, read_releases, release_file
from ferryman.runtime.contracts.errors import RepositoryError
from ferryman.runtime.contracts.release import Recipe, Release, ReleasePayload, pack_path

GRACE = timedelta(days=7)
"""For devices that are in the middle of what was withdrawn."""
PACKS = "packs"
_VERSIONS_KEPT = 2
"""Of a role: the one that counts, and the one before, which a device may be about to ask for."""


@dataclass(frozen=True)
class Pruned:
    """Files nobody named."""

    files: int
    bytes: int


def check(repository: Path, progress: Callable[[str], None] = lambda _step: None) -> list[str]:
    """Read a whole repository: signatures, releases, packs, and every recipe made once.

    Returns:
        What is wrong, one a line; empty: nothing is.

    Raises:
        CallerError: there is no repository.
        RepositoryError: the metadata itself does not hold.
    """
    roles = read_roles(repository)
    wrong: list[str] = []
    releases: list[Release] = []
    for path, target in sorted(roles.releases.items()):
        try:
            releases.append(read_release(repository, target))
        except RepositoryError as error:
            wrong.append(f"{path}: {error}")
    bases = {payload.sha256: payload for release in releases for payload in release.payloads}
    with Packs(repository) as packs:
        for name in sorted(_named_packs(releases, packs, wrong)):
            progress(f"pack {name[:12]}")
            wrong += _check_pack(repository, name)
        for release in releases:
            progress(release.name)
            for payload in release.payloads:
                for recipe in payload.recipes:
                    wrong += _check_recipe(packs, release, payload, recipe, bases)
    return wrong


def prune(repository: Path, now: datetime, grace: timedelta = GRACE) -> Pruned:
    """Delete packs, releases and metadata that nobody names, once they are older than `grace`.

    Raises:
        CallerError: there is no repository, or somebody else is changing it.
        RepositoryError: it is damaged: what it names is not known, and nothing is deleted.
    """
    files = size = 0
    with locked(repository):
        roles = read_roles(repository)
        releases = read_releases(repository, roles)
        with Packs(repository) as packs:
            named = {repository / pack_path(pack) for release in releases.values() for pack in packs.named(release)}
        named |= {release_file(repository, target) for target in roles.releases.values()}
        for path in _candidates(repository, roles):
            found = path.stat()
            if path not in named and now.timestamp() - found.st_mtime >= grace.total_seconds():
                path.unlink()
                files, size = files + 1, size + found.st_size
    return Pruned(files, size)


def _candidates(repository: Path, roles: Roles) -> Iterator[Path]:
    """Files that may go if nobody names them."""
    yield from (repository / PACKS).glob("*/*.pack")
    yield from (repository / TARGETS).glob("*/*.json")
    for path in (repository / FOLDER).glob("*.*.json"):
        version, _, role = path.name.removesuffix(".json").partition(".")
        known = role != "root" and role in roles.names and version.isdecimal()
        if known and int(version) <= roles.signed(role).version - _VERSIONS_KEPT:
            yield path


def _named_packs(releases: list[Release], packs: Packs, wrong: list[str]) -> set[str]:
    named: set[str] = set()
    for release in releases:
        try:
            named |= packs.named(release)
        except RepositoryError as error:
            wrong.append(f"{release.name}: {error}")
    return named


def _check_pack(repository: Path, name: str) -> list[str]:
    path = repository / pack_path(name)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    return [] if found == name else [f"{path}: damaged, it has sha256 {found}"]


def _check_recipe(
    packs: Packs, release: Release, payload: ReleasePayload, recipe: Recipe, bases: dict[str, ReleasePayload]
) -> list[str]:
    """A recipe whose base was withdrawn, or never published, cannot be made; its pack was checked."""
    if recipe.base is not None and recipe.base not in bases:
        return []
    try:
        base = memoryview(read_payload(bases[recipe.base], packs)) if recipe.base else EMPTY
        packs.rebuild(payload, recipe, base)
    except RepositoryError as error:
        return [f"{release.name}: {error}"]
    return []
