"""Which bytes an update takes: for each payload the way that costs the fewest on the wire, indices and heads included.

Pure: what is here, staged and published comes in, a plan comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ferryman.devices.agent.update.local import Chunk, Held, chunks_of
from ferryman.devices.agent.update.stage import runs
from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.release import Blob, Recipe, Release, ReleasePayload
from ferryman.runtime.pieces.index import Index

REQUEST_BYTES = 450
"""What the heads of a request and its answer take, about."""
BLOCK_BYTES = 4096
Kind = Literal["staged", "same", "delta", "chunks"]


@dataclass(frozen=True)
class Way:
    """How a payload comes."""

    payload: ReleasePayload
    kind: Kind
    wire_bytes: int
    """About; what a recipe states at most, until its index is here."""
    recipe: Recipe | None = None
    held: Held | None = None
    """Of `same` the file, of `delta` the base."""
    index: Index | None = None
    """None: it is to be fetched first."""
    lacking: tuple[int, ...] = ()
    """Pieces that are not staged yet; empty where the index is not here."""

    @property
    def said(self) -> str:
        """For people."""
        sources = {
            "staged": "is staged already",
            "same": f"is in {self.held.path.parent}" if self.held else "",
            "delta": f"from {self.held.path}, which is here" if self.held else "",
            "chunks": "in pieces",
        }
        return f"{self.payload.path}: {sources[self.kind]}, {self.wire_bytes} bytes on the wire"


@dataclass(frozen=True)
class Plan:
    """All payloads of an update that are needed here."""

    release: Release
    variants: tuple[str, ...]
    """Empty: all."""
    ways: tuple[Way, ...]

    @property
    def wire_bytes(self) -> int:
        """On the wire, about."""
        return sum(way.wire_bytes for way in self.ways)

    @property
    def full_bytes(self) -> int:
        """The same where nothing were here."""
        return sum(_upper(way.payload.recipes[0]) for way in self.ways)


@dataclass(frozen=True)
class Known:
    """What a plan is made from."""

    held: Mapping[str, Held]
    """By SHA-256."""
    chunks: Mapping[bytes, Chunk]
    index: Callable[[ReleasePayload, Recipe, int], Index | None]
    """(payload, recipe, bytes of the base) -> its index, where it is on this disk."""
    lacking: Callable[[ReleasePayload, Index], list[int]]
    complete: Callable[[ReleasePayload], bool]
    failed: frozenset[tuple[str, str]] = frozenset()
    """(payload, base or empty) of what was tried and did not work; a payload as its own base: the equal file."""


def cheapest(payload: ReleasePayload, known: Known) -> Way:
    """The cheapest way to a payload.

    Raises:
        PackageError: every way was tried and failed.
    """
    if known.complete(payload):
        return Way(payload, "staged", 0)
    if payload.sha256 in known.held and (payload.sha256, payload.sha256) not in known.failed:
        return Way(payload, "same", 0, held=known.held[payload.sha256])
    ways = [
        _by(payload, recipe, known)
        for recipe in payload.recipes
        if (recipe.base is None or recipe.base in known.held)
        and (payload.sha256, recipe.base or "") not in known.failed
    ]
    if not ways:
        raise PackageError(f"{payload.path}: no recipe of it works here")
    return min(ways, key=lambda way: way.wire_bytes)


def ways_to(payloads: Iterable[ReleasePayload], known: Known, staged: Callable[[ReleasePayload], Held]) -> list[Way]:
    """The cheapest way to each payload, in order; a piece that an earlier one brings is not fetched again.

    Raises: as `cheapest`.
    """
    chunks = dict(known.chunks)
    found = []
    for payload in payloads:
        way = cheapest(payload, replace(known, chunks=chunks))
        if way.index is not None:
            chunks = {**chunks_of({payload.sha256: staged(payload)}, {payload.sha256: way.index}), **chunks}
        found.append(way)
    return found


def _by(payload: ReleasePayload, recipe: Recipe, known: Known) -> Way:
    held = known.held[recipe.base] if recipe.base else None
    kind: Kind = "delta" if held else "chunks"
    index = known.index(payload, recipe, held.size_bytes if held else 0)
    if index is None:
        return Way(payload, kind, _upper(recipe), recipe, held)
    lacking = known.lacking(payload, index)
    return Way(payload, kind, wire_bytes(index, lacking, known.chunks), recipe, held, index, tuple(lacking))


def wire_bytes(index: Index, lacking: Sequence[int], chunks: Mapping[bytes, Chunk]) -> int:
    """What these pieces take, those aside that lie in a slot."""
    wanted = runs(index, [number for number in lacking if index.pieces[number].sha256 not in chunks])
    return sum(run.end - run.start + REQUEST_BYTES for run in wanted)


def _upper(recipe: Recipe) -> int:
    pieces = recipe.stored_bytes + REQUEST_BYTES if recipe.stored_bytes else 0
    return recipe.index.length + REQUEST_BYTES + pieces


def index_runs(ways: Iterable[Way]) -> list[list[Way]]:
    """Ways whose indices are to be fetched, those together that lie side by side in a pack."""

    def place(way: Way) -> Blob:
        assert way.recipe is not None  # noqa: S101  # filtered below
        return way.recipe.index

    found: list[list[Way]] = []
    wanted = [way for way in ways if way.recipe is not None and way.index is None]
    for way in sorted(wanted, key=lambda way: (place(way).pack, place(way).offset)):
        last = place(found[-1][-1]) if found else None
        if (
            last is not None
            and last.pack == place(way).pack
            and 0 <= place(way).offset - last.offset - last.length <= REQUEST_BYTES
        ):
            found[-1].append(way)
        else:
            found.append([way])
    return found


def needed(release: Release, manifest: Manifest) -> tuple[ReleasePayload, ...]:
    """Payloads of the release that a manifest names.

    Raises:
        PackageError: the release has not what its manifest names.
    """
    published = {payload.path: payload for payload in release.payloads[1:]}
    found = []
    for payload in manifest.payloads:
        one = published.get(payload.path)
        if one is None or (one.size_bytes, one.sha256) != (payload.size_bytes, payload.sha256):
            raise PackageError(f"release {release.name} has not the {payload.path} that its manifest names")
        found.append(one)
    return tuple(found)


def disk_bytes(ways: Iterable[Way], staged: Callable[[ReleasePayload], int]) -> int:
    """What staging takes of the disk: every file at its length, but for what it has and what a link shares."""
    files = [way for way in ways if way.kind in {"delta", "chunks"}]
    return sum(way.payload.size_bytes - staged(way.payload) + 2 * BLOCK_BYTES for way in files)
