"""Publishing: a package becomes pieces in packs, a release, and signed metadata that names it, in that order.

Whatever stops it, clients see the repository before or the one after: files nobody names do not count, every recipe
is made once from what the disk holds before a release names it, and the timestamp, which makes it count, comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import TargetFile, Targets

from ferryman.devices.fleet.repository.chunks import Known, Placed, known_pieces, make_index, place
from ferryman.devices.fleet.repository.delta import EncodedPiece, encode_delta
from ferryman.devices.fleet.repository.family import check_signature, family_named
from ferryman.devices.fleet.repository.files import locked, put
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.metadata import Roles, read_roles, signed_again, write_roles
from ferryman.devices.fleet.repository.packs import EMPTY, NewPack, Packs
from ferryman.devices.fleet.repository.releases import (
    Base,
    Older,
    family_releases,
    read_releases,
    release_file,
)
from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.release import (
    RELEASE_MAX_BYTES,
    Blob,
    LossyUpdate,
    Recipe,
    Release,
    ReleasePayload,
    pack_path,
    target_path,
)
from ferryman.runtime.package import MANIFEST, Package, open_package
from ferryman.runtime.pieces.index import wire_bytes, write_index

DELTA_FROM = 3
_WORTH = 0.98
"""A delta of more than that share of what it saves would store a payload twice for next to nothing."""
WITHDRAWN = "x-ferryman-withdrawn"
"""A field of a family's role: target path -> package SHA-256 of a release that was taken back; its name stays used."""
Hinting = Callable[[str, bytes, bytes], Sequence[EncodedPiece]]
"""(payload path, old payload, new payload) -> pieces somebody who knows what changed has made; see `encode_delta`."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """What a publish did."""

    release: Release
    is_new: bool
    """False: it had been published before, and nothing was changed."""
    new_bytes: int = 0
    """Of new packs, what the repository grew by: new pieces, deltas and indices."""
    piece_bytes: int = 0
    """Of new pieces, which make the package's files from nothing."""
    delta_bytes: int = 0
    best: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Payload path -> bytes on the wire of its smallest delta, and the release or package that has its base."""
    base: str | None = None
    """The release that the package given as base is; None: none was given, or none is that package."""

    @property
    def shared_bytes(self) -> int:
        """Of pieces that make the package's files and were stored before, by a release or for another of its files."""
        return sum(one.recipes[0].stored_bytes for one in self.release.payloads) - self.piece_bytes

    @property
    def deltas(self) -> int:
        """How many there are of the release's files, from older ones."""
        return sum(recipe.base is not None for one in self.release.payloads for recipe in one.recipes)


@dataclass(frozen=True)
class _Draft:
    """A recipe whose pack has no name yet."""

    base: str | None
    placed: list[Placed]


def publish(
    package: Path,
    repository: Path,
    keyring: Keyring,
    now: datetime,
    *,
    family: str | None = None,
    version: str | None = None,
    delta_from: int = DELTA_FROM,
    new_signature: bool = False,
    base: Path | None = None,
    lossy: LossyUpdate | None = None,
    hinting: Hinting | None = None,
    progress: Progress = lambda _step: None,
) -> Published:
    """Publish a package.

    Args:
        package: a file that `ferryman convert` wrote.
        repository: its folder.
        keyring: holds the family's, snapshot's and timestamp's keys.
        now: UTC.
        family: of the model; None: the package's name.
        version: None: the next number.
        delta_from: deltas are made against so many newest releases of the family.
        new_signature: publish it though it takes or gives something else than the family's newest release.
        base: a package that devices have; deltas are made against it, too, however old it is. It need not have been
            published: a base is named by the hash of its payload, whichever way devices got that.
        lossy: what the package differs in from what its author meant, where that was asked for.
        hinting: knows better than bytes what changed.
        progress: told about each step.

    Raises:
        PackageError: the package is damaged, or too large to publish.
        CallerError: no such repository or family, the version holds another package, the signature is another, or a
            key is missing.
        RepositoryError: what is in the repository already is damaged.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_package(package))
        had = stack.enter_context(open_package(base)) if base else None
        work = stack.enter_context(locked(repository))
        roles = read_roles(repository)
        family = family or family_named(opened.manifest.name, roles)
        releases = read_releases(repository, roles)
        before = family_releases(releases, family)
        if done := _published_before(opened, family, version, before, roles):
            return Published(done, is_new=False)
        path = target_path(f"{family}/{version or _next_version(roles.family(family))}")
        _check_keys(roles, keyring, family)
        known_as = next(
            (one for one in (*before, *releases.values()) if had and one.package_sha256 == had.sha256), None
        )
        with Packs(repository) as packs:
            if not new_signature:
                check_signature(opened.manifest, before, packs)
            making = _Making(repository, work, packs, known_pieces(releases.values(), packs), hinting, progress)
            payloads = making.payloads(opened, _older(before[:delta_from], had, known_as, packs))
        release = Release(
            family=family,
            version=path.partition("/")[2].removesuffix(".json"),
            package_sha256=opened.sha256,
            package_name=opened.manifest.name,
            package_bytes=opened.path.stat().st_size,
            published_at_ns=int(now.timestamp() * 1e9),
            payloads=payloads,
            lossy=lossy,
        )
        progress("signing")
        _name(repository, work, roles, release, keyring, now)
    return Published(
        release,
        is_new=True,
        new_bytes=making.new_bytes,
        piece_bytes=making.piece_bytes,
        delta_bytes=making.delta_bytes,
        best=making.best,
        base=known_as.name if known_as else None,
    )


def check_publishable(name: str, repository: Path, keyring: Keyring, family: str | None = None) -> None:
    """See that a package of that name could be published and signed, before one is made.

    Raises:
        CallerError: no such repository or family, or a key is missing.
        RepositoryError: what is in the repository already is damaged.
    """
    roles = read_roles(repository)
    _check_keys(roles, keyring, family or family_named(name, roles))


def withdraw(name: str, repository: Path, keyring: Keyring, now: datetime) -> None:
    """Take a release off the metadata: no device finds it any more; its name cannot be used again.

    Args:
        name: `family/version`.
        repository: its folder.
        keyring: holds the family's, snapshot's and timestamp's keys.
        now: UTC.

    Raises:
        CallerError: there is no such release, or a key is missing.
    """
    path = target_path(name)
    family = name.partition("/")[0]
    with locked(repository) as work:
        roles = read_roles(repository)
        targets = roles.family(family)
        if path not in targets.targets:
            raise CallerError(f"there is no release {name}; ferryman repository list tells which there are")
        _check_keys(roles, keyring, family)
        release = read_releases(repository, roles)[path]
        target = targets.targets.pop(path)
        withdrawn = targets.unrecognized_fields.setdefault(WITHDRAWN, {})
        withdrawn[path] = release.package_sha256
        write_roles(repository, signed_again(roles, [family], keyring, now, {}), work)
        # Devices that are at it may end; the grace of `prune` begins now.
        for file in {release_file(repository, target), *_packs_of(repository, release)}:
            if file.exists():
                file.touch()


class _Making:
    """Packs and recipes of one package."""

    def __init__(
        self,
        repository: Path,
        work: Path,
        packs: Packs,
        known: Known,
        hinting: Hinting | None,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._work = work
        self._packs = packs
        self._known = known
        self._hinting = hinting
        self._progress = progress
        self.new_bytes = self.piece_bytes = self.delta_bytes = 0
        self.best: dict[str, tuple[int, str]] = {}

    def payloads(self, package: Package, older: Sequence[Older]) -> tuple[ReleasePayload, ...]:
        """Store a package; every recipe was made from the disk and compared.

        Raises:
            RepositoryError: what is in the repository already is damaged.
        """
        contents: dict[str, tuple[int, str]] = {}
        drafts: dict[str, list[_Draft]] = {}
        bases: dict[str, Base] = {}
        with NewPack(self._repository, self._work, "pieces") as pack:
            for path, data in _contents(package):
                sha256 = hashlib.sha256(data).hexdigest()
                contents[path] = len(data), sha256
                self._progress(f"{path}: {len(data):,} bytes")
                before = pack.size
                drafts[path] = [_Draft(None, place(memoryview(data), self._known, pack))]
                self.piece_bytes += pack.size - before
                found = (base for one in older for base in one.bases(path, sha256, package.manifest))
                its = {base.sha256: base for base in reversed(list(found))}  # the newest that has it tells its name
                for number, base in enumerate(reversed(its.values()), 1):
                    self._progress(f"{path}: delta {number} of {len(its)}, from {base.of}")
                    drafts[path] += self._delta(path, base, data, drafts[path][0], pack)
                bases |= its
            pieces = pack.finish()
            self.new_bytes += pack.size
            self.delta_bytes = pack.size - self.piece_bytes
        payloads = self._indexed(contents, drafts, pieces)
        for payload in payloads:
            ways = [(one.index.length + one.stored_bytes, bases[one.base].of) for one in payload.recipes if one.base]
            self.best |= {payload.path: min(ways)} if ways else {}
        self._packs.forget()
        for payload in payloads:
            self._progress(f"{payload.path}: reading back")
            for recipe in payload.recipes:
                self._packs.rebuild(payload, recipe, memoryview(bases[recipe.base].read()) if recipe.base else EMPTY)
        return payloads

    def _delta(self, path: str, base: Base, new: bytes, chunks: _Draft, pack: NewPack) -> list[_Draft]:
        """A recipe from `base`, if it costs whoever has that clearly less than the chunks it lacks."""
        lacking = {one.piece.sha256: one for one in chunks.placed if one.piece.sha256 not in base.pieces}
        before = base.read()
        hints = self._hinting(path, before, new) if self._hinting else ()
        tried = [(one, Placed(one.piece(0, 0), None)) for one in encode_delta(before, new, hints)]
        placed = [one for _, one in tried]
        if _wire(placed) + _index_bytes(placed) > _WORTH * (_wire(lacking.values()) + _index_bytes(chunks.placed)):
            return []
        return [_Draft(base.sha256, [self._placed(one, pack) for one, _ in tried])]

    def _placed(self, encoded: EncodedPiece, pack: NewPack) -> Placed:
        if not encoded.base_size and encoded.sha256 in self._known:
            return self._known[encoded.sha256]
        return Placed(encoded.piece(0, pack.add(encoded.stored) if encoded.stored else 0), None)

    def _indexed(
        self, contents: Mapping[str, tuple[int, str]], drafts: Mapping[str, list[_Draft]], pieces: str | None
    ) -> tuple[ReleasePayload, ...]:
        """Write the indices, in a pack of their own: they name the one with the pieces."""
        spans: dict[str, list[tuple[_Draft, int, bytes, int]]] = {}
        with NewPack(self._repository, self._work, "indices") as pack:
            for path, its in drafts.items():
                for draft in its:
                    stored, plain_bytes = write_index(make_index(draft.placed, pieces))
                    spans.setdefault(path, []).append((draft, pack.add(stored), stored, plain_bytes))
            name = pack.finish()
            self.new_bytes += pack.size
        assert name is not None  # noqa: S101  # a manifest is in every package
        payloads = []
        for path, (size_bytes, sha256) in contents.items():
            recipes = tuple(
                Recipe(
                    base=draft.base,
                    index=Blob(pack=name, offset=offset, length=len(stored), sha256=hashlib.sha256(stored).hexdigest()),
                    index_bytes=plain_bytes,
                    stored_bytes=_wire(draft.placed),
                )
                for draft, offset, stored, plain_bytes in spans[path]
            )
            payloads.append(ReleasePayload(path=path, size_bytes=size_bytes, sha256=sha256, recipes=recipes))
        return tuple(payloads)


def _release_of(package: Package | None, releases: Iterable[Release]) -> Release | None:
    return next((one for one in releases if package and one.package_sha256 == package.sha256), None)


def _older(newest: list[Release], base: Package | None, base_release: Release | None, packs: Packs) -> list[Older]:
    """What deltas are made from: the newest releases, and the base, by its release where it has one."""
    releases = newest + ([base_release] if base_release and base_release not in newest else [])
    found = [Older.release(one, packs) for one in releases]
    return found + ([Older.package(base)] if base and not base_release else [])


def _contents(package: Package) -> Iterator[tuple[str, bytes]]:
    """The manifest, as an installation writes it, and the payloads."""
    yield MANIFEST, encode(package.manifest)
    for payload in package.manifest.payloads:
        yield payload.path, package.read(payload.path)


def _wire(placed: Iterable[Placed]) -> int:
    return wire_bytes([one.piece for one in placed])


def _index_bytes(placed: Sequence[Placed]) -> int:
    return len(write_index(make_index(placed, "0" * 64))[0])


def _name(repository: Path, work: Path, roles: Roles, release: Release, keyring: Keyring, now: datetime) -> None:
    """Write the release, then what names it."""
    data = encode(release)
    if len(data) > RELEASE_MAX_BYTES:
        raise PackageError(f"a release of {len(data)} bytes is more than {RELEASE_MAX_BYTES}: too many payloads")
    path = target_path(release.name)
    target = TargetFile.from_data(path, data, ["sha256"])
    put(release_file(repository, target), data, work)
    roles.family(release.family).targets[path] = target
    write_roles(repository, signed_again(roles, [release.family], keyring, now, {}), work)


def _check_keys(roles: Roles, keyring: Keyring, family: str) -> None:
    """Raise CallerError before anything is written if it could not be signed."""
    roles.family(family)
    for role in (family, "snapshot", "timestamp"):
        keyring.signers(role, *roles.keys(role))


def _packs_of(repository: Path, release: Release) -> set[Path]:
    with Packs(repository) as packs:
        return {repository / pack_path(one) for one in packs.named(release)}


def _published_before(
    package: Package, family: str, version: str | None, before: Sequence[Release], roles: Roles
) -> Release | None:
    """The release that holds this package already.

    Raises:
        CallerError: the version holds, or held, another package.
    """
    for release in before:
        if release.package_sha256 == package.sha256 and version in {None, release.version}:
            return release
        if release.version == version:
            raise CallerError(
                f"{release.name} is another package (sha256 {release.package_sha256[:12]}...), and devices may have "
                "it; publish this one under a version of its own"
            )
    withdrawn = roles.family(family).unrecognized_fields.get(WITHDRAWN, {})
    if version is not None and withdrawn.get(target_path(f"{family}/{version}"), package.sha256) != package.sha256:
        raise CallerError(f"{family}/{version} was another package, and was withdrawn; publish under another version")
    return None


def _next_version(targets: Targets) -> str:
    used = {*targets.targets, *targets.unrecognized_fields.get(WITHDRAWN, {})}
    versions = [path.partition("/")[2].removesuffix(".json") for path in used]
    return str(max((int(one) for one in versions if one.isdecimal() and one.isascii()), default=0) + 1)
