"""What a device has already: the payloads of its slots, and the pieces they were published in, where it knows them.

ROOT/pieces/<sha256>.index   an index that was fetched, by its own hash
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ferryman.runtime.contracts.errors import DeviceError, PackageError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.release import Recipe, ReleasePayload
from ferryman.runtime.contracts.slot import Slot
from ferryman.runtime.contracts.tensor import pack, unpack
from ferryman.runtime.durable import write_durable
from ferryman.runtime.package import MANIFEST, read_manifest
from ferryman.runtime.pieces.index import Index, read_index
from ferryman.runtime.slots import SlotStore

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Held:
    """A file of a slot, as its manifest tells; what is read of it is hashed when it is used."""

    path: Path
    size_bytes: int
    sha256: str
    release: str | None
    """That its slot came from."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to read it by.

        Raises:
            DeviceError: it is not there any more, or has another size.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            if os.fstat(descriptor).st_size != self.size_bytes:
                raise DeviceError(f"{self.path} has not the {self.size_bytes} bytes it was installed with")
            yield descriptor
        finally:
            os.close(descriptor)

    def intact(self) -> bool:
        """Whether it is what it was when it was installed."""
        with contextlib.suppress(DeviceError, OSError), self.opened() as descriptor:
            return sha256_of(descriptor) == self.sha256
        return False


@dataclass(frozen=True)
class Chunk:
    """A piece that lies in a held file."""

    held: Held
    offset: int
    size: int


def sha256_of(descriptor: int) -> str:
    """Of a whole file, read from its begin."""
    found, at = hashlib.sha256(), 0
    while block := os.pread(descriptor, _READ_BYTES, at):
        found.update(block)
        at += len(block)
    return found.hexdigest()


def held_files(store: SlotStore) -> dict[str, Held]:
    """SHA-256 -> file, of the slot that serves and the one before; a slot whose manifest is damaged has none.

    Raises:
        DeviceError: the state cannot be read.
    """
    state = store.read_state()
    found: dict[str, Held] = {}
    for slot in (state.previous, state.active):
        if slot is None:
            continue
        with contextlib.suppress(OSError, PackageError):
            directory = store.directory(slot.name)
            encoded = (directory / MANIFEST).read_bytes()
            if hashlib.sha256(encoded).hexdigest() == slot.manifest_sha256:
                manifest = read_manifest(encoded)
                found[slot.manifest_sha256] = Held(
                    directory / MANIFEST, len(encoded), slot.manifest_sha256, slot.release
                )
                found |= {held.sha256: held for held in _payloads(directory, slot, manifest)}
    return found


def _payloads(directory: Path, slot: Slot, manifest: Manifest) -> Iterator[Held]:
    for payload in manifest.payloads:
        path = directory / payload.path
        if path.is_file() and not path.is_symlink():  # others were not asked for when the slot was written
            yield Held(path, payload.size_bytes, payload.sha256, slot.release)


class _Kept(Record):
    payload_sha256: str
    size_bytes: int
    base: str | None
    plain_bytes: int
    data: bytes


class Indices:
    """Indices on this disk; one that is damaged is not there."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "pieces"

    def get(self, payload: ReleasePayload, recipe: Recipe, base_bytes: int) -> Index | None:
        """The index of a recipe, if it is here."""
        kept = self._read(self._folder / f"{recipe.index.sha256}.index")
        if kept is None:
            return None
        with contextlib.suppress(PackageError):
            return read_index(kept.data, recipe.index_bytes, payload.size_bytes, base_bytes)
        return None

    def put(self, payload: ReleasePayload, recipe: Recipe, data: bytes) -> None:
        """Keep an index whose hash was checked.

        Raises:
            DeviceError: the disk refused.
        """
        kept = _Kept(
            payload_sha256=payload.sha256,
            size_bytes=payload.size_bytes,
            base=recipe.base,
            plain_bytes=recipe.index_bytes,
            data=data,
        )
        write_durable(self._folder / f"{recipe.index.sha256}.index", pack(kept))

    def of(self, held: Iterable[Held]) -> dict[str, Index]:
        """SHA-256 of a held file -> its pieces that need no base, where they are known."""
        sizes = {one.sha256: one.size_bytes for one in held}
        found: dict[str, Index] = {}
        for path in self._files():
            kept = self._read(path)
            if kept is None or kept.base is not None or sizes.get(kept.payload_sha256) != kept.size_bytes:
                continue
            with contextlib.suppress(PackageError):
                found[kept.payload_sha256] = read_index(kept.data, kept.plain_bytes, kept.size_bytes)
        return found

    def prune(self, payloads: Iterable[str]) -> None:
        """Forget indices of all payloads but these."""
        wanted = set(payloads)
        for path in self._files():
            kept = self._read(path)
            if kept is None or kept.payload_sha256 not in wanted:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.index")) if self._folder.is_dir() else []

    def _read(self, path: Path) -> _Kept | None:
        with contextlib.suppress(OSError, ValueError):
            kept = unpack(path.read_bytes(), _Kept)
            if hashlib.sha256(kept.data).hexdigest() == path.stem:
                return kept
        return None


def chunks_of(held: dict[str, Held], indices: dict[str, Index]) -> dict[bytes, Chunk]:
    """SHA-256 of a piece -> where it lies, over all held files whose pieces are known."""
    found: dict[bytes, Chunk] = {}
    for sha256, index in indices.items():
        at = 0
        for piece in index.pieces:
            found.setdefault(piece.sha256, Chunk(held[sha256], at, piece.size))
            at += piece.size
    return found
