"""Releases of a repository, and what of older ones a newer may be made from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from ferryman.devices.fleet.repository.metadata import Roles
from ferryman.devices.fleet.repository.packs import EMPTY, Packs
from ferryman.runtime.contracts.errors import RepositoryError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.release import SCHEMA, Release, ReleasePayload
from ferryman.runtime.package import MANIFEST, read_manifest

TARGETS = "targets"


def release_file(repository: Path, target: TargetFile) -> Path:
    """Where a release lies, under its hash."""
    return repository / TARGETS / target.get_prefixed_paths()[0]


def read_releases(repository: Path, roles: Roles) -> dict[str, Release]:
    """Target path -> release, of all that the metadata names.

    Raises:
        RepositoryError: one is missing or is not what was signed.
    """
    return {path: read_release(repository, target) for path, target in roles.releases.items()}


def read_release(repository: Path, target: TargetFile) -> Release:
    """One release.

    Raises:
        RepositoryError: it is missing or is not what was signed.
    """
    path = release_file(repository, target)
    try:
        data = path.read_bytes()
        target.verify_length_and_hashes(data)
        release = decode(data, Release)
    except (OSError, LengthOrHashMismatchError, ValueError) as error:
        raise RepositoryError(f"the release {path}: {error}; restore it from a copy") from error
    if release.schema != SCHEMA:
        raise RepositoryError(f"{path} has schema {release.schema}, and this ferryman reads {SCHEMA}; update ferryman")
    return release


def family_releases(releases: Mapping[str, Release], family: str) -> list[Release]:
    """Those of a family, the newest first."""
    its = [release for release in releases.values() if release.family == family]
    return sorted(its, key=lambda release: (release.published_at_ns, release.name), reverse=True)


def read_payload(payload: ReleasePayload, packs: Packs) -> bytes:
    """Make a payload from nothing.

    Raises:
        RepositoryError: it cannot be made any more.
    """
    out = io.BytesIO()
    packs.rebuild(payload, payload.recipes[0], EMPTY, out)
    return out.getvalue()


def old_payloads(
    path: str, sha256: str, manifest: Manifest, before: Sequence[Release], packs: Packs
) -> list[ReleasePayload]:
    """What devices with older releases have in place of a payload: under its path, or else of its form and runtime.

    Nothing of a release that has the very payload.
    """
    found: dict[str, ReleasePayload] = {}
    for release in before:
        if all(payload.sha256 != sha256 for payload in release.payloads):
            found |= {payload.sha256: payload for payload in _counterparts(path, manifest, release, packs)}
    return list(found.values())


def _counterparts(path: str, manifest: Manifest, release: Release, packs: Packs) -> Iterator[ReleasePayload]:
    payloads = {payload.path: payload for payload in release.payloads}
    if path in payloads:
        yield payloads[path]
        return
    forms = {(variant.form, variant.runtime) for variant in manifest.variants if variant.payload == path}
    old = read_manifest(read_payload(payloads[MANIFEST], packs)) if forms else None
    for variant in old.variants if old else ():
        if (variant.form, variant.runtime) in forms:
            yield payloads[variant.payload]
