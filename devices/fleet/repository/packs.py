"""Packs on the publisher's disk: written once, read by span, and payloads made from them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ferryman.devices.fleet.repository.files import move
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import PackageError, RepositoryError
from ferryman.runtime.contracts.release import Blob, Recipe, Release, ReleasePayload, pack_path
from ferryman.runtime.pieces.codecs import make
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES, Index, Piece, read_index

_OPEN_MAX = 32
_BASE_ANY = 1 << 62
"""Bytes of a base that nobody looks at."""
EMPTY = memoryview(b"")


class Packs(Closing):
    """Reads spans of a repository's packs."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._open: dict[str, int] = {}

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """A span.

        Raises:
            RepositoryError: the pack is gone, or ends before that.
        """
        try:
            data = os.pread(self._descriptor(pack), length, offset)
        except (OSError, OverflowError, PackageError) as error:
            raise RepositoryError(f"cannot read pack {pack[:80]}: {error}; restore it from a copy") from error
        if len(data) != length:
            raise RepositoryError(f"pack {pack} ends before byte {offset + length}; restore it from a copy")
        return data

    def blob(self, blob: Blob) -> bytes:
        """A span whose hash is known.

        Raises:
            RepositoryError: it is not there, or has another hash.
        """
        data = self.read(blob.pack, blob.offset, blob.length)
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise RepositoryError(f"pack {blob.pack} is damaged at byte {blob.offset}; restore it from a copy")
        return data

    def index(self, recipe: Recipe, size_bytes: int, base_bytes: int = 0) -> Index:
        """The index of a recipe.

        Raises:
            RepositoryError: it is not what the release says.
        """
        try:
            return read_index(self.blob(recipe.index), recipe.index_bytes, size_bytes, base_bytes)
        except PackageError as error:
            raise RepositoryError(f"pack {recipe.index.pack}: {error}") from error

    def rebuild(self, payload: ReleasePayload, recipe: Recipe, base: memoryview, out: BinaryIO | None = None) -> None:
        """Make a payload by one of its recipes and compare its hash; `out` takes its bytes.

        Raises:
            RepositoryError: something else comes out.
        """
        made = hashlib.sha256()
        index = self.index(recipe, payload.size_bytes, len(base))
        for number, piece in enumerate(index.pieces):
            try:
                for part in self._parts(index, piece, base[piece.base_offset : piece.base_offset + piece.base_size]):
                    made.update(part)
                    if out is not None:
                        out.write(part)
            except PackageError as error:
                where = f"pack {index.packs[piece.pack]}, byte {piece.offset}: " if piece.pack >= 0 else ""
                raise RepositoryError(f"{payload.path}, piece {number}: {where}{error}") from error
        if made.hexdigest() != payload.sha256:
            raise RepositoryError(f"{payload.path}: its pieces make {made.hexdigest()}, and not {payload.sha256}")

    def named(self, release: Release) -> set[str]:
        """Packs that a release needs.

        Raises:
            RepositoryError: an index is not what the release says.
        """
        found = set()
        for payload in release.payloads:
            for recipe in payload.recipes:
                found |= {
                    recipe.index.pack,
                    *self.index(recipe, payload.size_bytes, _BASE_ANY if recipe.base else 0).packs,
                }
        return found

    def forget(self) -> None:
        """Read from the disk again, and not from memory, what is read next."""
        for descriptor in self._open.values():
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _parts(self, index: Index, piece: Piece, base: memoryview) -> Iterator[bytes | memoryview]:
        """A piece, checked; a large copy in parts."""
        if piece.codec == "copy" and piece.size > PIECE_MAX_BYTES:
            if piece.size != len(base) or hashlib.sha256(base).digest() != piece.sha256:
                raise PackageError("a piece does not have the hash it must have")
            yield from (base[at : at + PIECE_MAX_BYTES] for at in range(0, len(base), PIECE_MAX_BYTES))
            return
        stored = self.read(index.packs[piece.pack], piece.offset, piece.length) if piece.pack >= 0 else b""
        yield make(piece, stored, base)

    def _descriptor(self, pack: str) -> int:
        if pack not in self._open:
            if len(self._open) >= _OPEN_MAX:
                os.close(self._open.pop(next(iter(self._open))))
            path = self._repository / pack_path(pack)
            self._open[pack] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self._open[pack]


class NewPack:
    """A pack on its way: its name is known once it is whole."""

    def __init__(self, repository: Path, work: Path, name: str) -> None:
        self._repository = repository
        self._path = work / name
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> int:
        """Append; returns where."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return self.size - len(data)

    def finish(self) -> str | None:
        """Put it in its place; returns its name, None where nothing was added."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._file.close()
        if not self.size:
            return None
        sha256 = self._hash.hexdigest()
        move(self._path, self._repository / pack_path(sha256))
        return sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
