"""Releases of a repository, and what of older ones a newer may be made from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from ferryman.devices.fleet.repository.metadata import Roles
from ferryman.devices.fleet.repository.packs import EMPTY, Packs
from ferryman.runtime.contracts.errors import RepositoryError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.release import SCHEMA, Release, ReleasePayload
from ferryman.runtime.package import MANIFEST, Package, read_manifest

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


@dataclass(frozen=True)
class Base:
    """A payload that devices may have, to make a newer one from."""

    sha256: str
    of: str
    """The release, or the package, that it is from."""
    pieces: frozenset[bytes]
    """Hashes of what a device that has it need not fetch; nothing where it came without an index."""
    read: Callable[[], bytes]


class Older:
    """A package that devices may have: of a release, or from a push that no repository knows of."""

    def __init__(self, payloads: Mapping[str, str], read: Callable[[str], bytes], base: Callable[[str], Base]) -> None:
        self._sha256 = payloads
        self._read = read
        self._base = base

    @classmethod
    def release(cls, release: Release, packs: Packs) -> Older:
        """One that was published."""
        payloads = {payload.path: payload for payload in release.payloads}

        def read(path: str) -> bytes:
            return read_payload(payloads[path], packs)

        def base(path: str) -> Base:
            one = payloads[path]
            pieces = packs.index(one.recipes[0], one.size_bytes).pieces
            return Base(one.sha256, release.name, frozenset(piece.sha256 for piece in pieces), partial(read, path))

        return cls({path: one.sha256 for path, one in payloads.items()}, read, base)

    @classmethod
    def package(cls, package: Package) -> Older:
        """One that was not."""
        manifest = encode(package.manifest)
        payloads = {MANIFEST: hashlib.sha256(manifest).hexdigest()}
        payloads |= {payload.path: payload.sha256 for payload in package.manifest.payloads}

        def read(path: str) -> bytes:
            return manifest if path == MANIFEST else package.read(path)

        def base(path: str) -> Base:
            return Base(payloads[path], package.path.name, frozenset(), partial(read, path))

        return cls(payloads, read, base)

    def bases(self, path: str, sha256: str, manifest: Manifest) -> Iterator[Base]:
        """What it has in place of a payload: under its path, or else of its form and runtime.

        Nothing where it has the very payload.
        """
        if sha256 not in self._sha256.values():
            yield from map(self._base, self._counterparts(path, manifest))

    def _counterparts(self, path: str, manifest: Manifest) -> Iterator[str]:
        if path in self._sha256:
            yield path
            return
        forms = {(variant.form, variant.runtime) for variant in manifest.variants if variant.payload == path}
        old = read_manifest(self._read(MANIFEST)) if forms else None
        for variant in old.variants if old else ():
            if (variant.form, variant.runtime) in forms:
                yield variant.payload
