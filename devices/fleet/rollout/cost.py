"""What a release would cost each device on the wire, before anybody asks for it; planned as the device plans."""

from __future__ import annotations

from pathlib import Path

from ferryman.devices.agent.update.local import Held, chunks_of
from ferryman.devices.agent.update.planner import REQUEST_BYTES, Known, needed, ways_to
from ferryman.devices.fleet.repository.metadata import read_roles
from ferryman.devices.fleet.repository.packs import Packs
from ferryman.devices.fleet.repository.releases import read_payload, read_releases
from ferryman.devices.fleet.rollout.words import by_number
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.release import Recipe, Release, ReleasePayload, target_path
from ferryman.runtime.package import read_manifest
from ferryman.runtime.pieces.index import Index


class Costs(Closing):
    """Of the releases in a repository; reads it once."""

    def __init__(self, repository: Path) -> None:
        """Read all releases.

        Raises:
            CallerError: there is no repository.
            RepositoryError: it is damaged.
        """
        self._releases = read_releases(repository, read_roles(repository))
        self._packs = Packs(repository)
        self._of_package = {release.package_sha256: release for release in self._releases.values()}
        self._known: dict[tuple[str, str | None, tuple[str, ...]], int] = {}

    def release(self, name: str) -> Release:
        """The release `family/version`.

        Raises:
            CallerError: there is none of that name.
        """
        release = self._releases.get(target_path(name))
        if release is None:
            names = sorted((one.name for one in self._releases.values()), key=by_number)
            there = ", ".join(names[-8:]) or "none"
            raise CallerError(f"no release {name} in this repository; there are: {there}")
        return release

    def wire_bytes(self, release: Release, serves: str | None, variants: tuple[str, ...] = ()) -> int:
        """What a device fetches that serves the package `serves`, at most: it may know more, or run less of it.

        Metadata is not in it, some kilobytes.

        Raises:
            RepositoryError: the repository is damaged.
        """
        key = (release.package_sha256, serves, variants)
        if key not in self._known:
            base = self._of_package.get(serves or "")
            self._known[key] = 0 if serves == release.package_sha256 else self._planned(release, base, variants)
        return self._known[key]

    def _planned(self, release: Release, base: Release | None, variants: tuple[str, ...]) -> int:
        manifest = read_manifest(read_payload(release.payloads[0], self._packs))
        wanted = manifest.only(variants or None)
        held = {one.sha256: _held(one) for one in base.payloads} if base else {}
        indices = {one.sha256: self._index(one, one.recipes[0], 0) for one in base.payloads} if base else {}
        known = Known(
            held=held,
            chunks=chunks_of(held, indices),
            index=self._index,
            lacking=lambda _, index: list(range(len(index.pieces))),
            complete=lambda _: False,
        )
        ways = ways_to((release.payloads[0], *needed(release, wanted)), known, _held)
        # Here all indices are at hand; the device fetches those of the recipes it takes.
        return sum(way.wire_bytes + (way.recipe.index.length + REQUEST_BYTES if way.recipe else 0) for way in ways)

    def _index(self, payload: ReleasePayload, recipe: Recipe, base_bytes: int) -> Index:
        return self._packs.index(recipe, payload.size_bytes, base_bytes)

    def close(self) -> None:
        """Close its files."""
        self._packs.close()


def _held(payload: ReleasePayload) -> Held:
    return Held(Path(payload.path), payload.size_bytes, payload.sha256, None)
