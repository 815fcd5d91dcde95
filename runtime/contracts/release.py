"""What a repository holds of a package: a signed record of every payload and of the ways to make it.

A release is one target of the repository's TUF metadata, `targets/<family>/<version>.json`: its hash is signed, and it
holds the hash of everything else. Bytes travel in packs, plain files that are never changed:

    metadata/    TUF: root, timestamp, snapshot, targets, one delegated role a family
    targets/     releases
    packs/ab/<sha256>.pack   stored pieces and indices, one after the other
"""

from __future__ import annotations

import re

from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.contracts.record import Record

SCHEMA = 1
RELEASE_MAX_BYTES = 16 << 20
"""A release is held in memory."""
SIGNED_AT = "x-ferryman-signed-at"
"""A field of the timestamp role: Unix time in seconds at which it was signed, so no device's clock may be before it."""
_FAMILY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
_RESERVED = {"root", "targets", "snapshot", "timestamp"}


class Blob(Record):
    """A span of a pack."""

    pack: str
    """SHA-256 of the whole pack, in hex; its place is `pack_path`."""
    offset: int
    length: int
    sha256: str
    """Of the span."""


class Recipe(Record, kw_only=True):
    """One way to make a payload: pieces, one after the other."""

    base: str | None = None
    """SHA-256 of the payload that the pieces are made from; None: from nothing."""
    index: Blob
    """See `ferryman.runtime.pieces.read_index`."""
    index_bytes: int
    """Of the index once unpacked."""
    stored_bytes: int
    """Of all its pieces on the wire; the index comes on top."""


class ReleasePayload(Record):
    """One file of a package."""

    path: str
    size_bytes: int
    sha256: str
    recipes: tuple[Recipe, ...]
    """At least one; the first has no base, its pieces are cut by content, and equal ones are stored once."""


class LossyUpdate(Record):
    """What a lossy update changed beside what the model's author meant; it was asked for."""

    codec: str
    base_package_sha256: str
    relative_error: float
    """|sent - meant| / |meant - base| over all weights, Euclidean."""
    sqnr_min_db: float
    """The worst golden vector of the worst variant, against the model's own answers."""
    ratio: float
    """Bytes of the weights as they were over bytes of the update."""


class Release(Record, kw_only=True):
    """A package, published."""

    schema: int = SCHEMA
    family: str
    version: str
    package_sha256: str
    package_name: str
    package_bytes: int
    published_at_ns: int
    """The publisher's wall clock, Unix epoch."""
    payloads: tuple[ReleasePayload, ...]
    """`manifest.json` first, then those of the manifest in its order."""
    lossy: LossyUpdate | None = None

    @property
    def name(self) -> str:
        """`family/version`."""
        return f"{self.family}/{self.version}"


def target_path(name: str) -> str:
    """Path of the release `family/version` among the TUF targets.

    Raises:
        CallerError: it is no such name.
    """
    family, _, version = name.partition("/")
    check_family(family)
    if not _VERSION.fullmatch(version):
        raise CallerError(
            f"release {name!r}: expected FAMILY/VERSION, the version of 1 to 64 letters, digits or any of . _ + -"
        )
    return f"{family}/{version}.json"


def check_family(family: str) -> str:
    """Return `family`.

    Raises:
        CallerError: it cannot name a family of models, which is a TUF role and a folder.
    """
    if not _FAMILY.fullmatch(family) or family in _RESERVED:
        raise CallerError(
            f"family {family!r}: expected 1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit, and none of "
            f"{', '.join(sorted(_RESERVED))}"
        )
    return family


def pack_path(sha256: str) -> str:
    """Where a pack lies, relative to the repository.

    Raises:
        PackageError: `sha256` is none.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise PackageError(f"{sha256[:80]!r} is not the SHA-256 of a pack")
    return f"packs/{sha256[:2]}/{sha256}.pack"
