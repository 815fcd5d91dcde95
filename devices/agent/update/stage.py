"""Where a download lies until it is installed: ROOT/download/<package>/<payload path>, each file at its full length.

A file is its own journal: what is in it is found by hashing its pieces, so a kill loses at most the piece that was on
its way, and no piece that is there is fetched again. A file that shares its bytes with a slot is never written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ferryman.devices.agent.update.http import Http
from ferryman.devices.agent.update.local import Chunk, Held, sha256_of
from ferryman.runtime.contracts.errors import DeviceError, PackageError, TrustError
from ferryman.runtime.contracts.release import ReleasePayload, pack_path
from ferryman.runtime.durable import sync_directory
from ferryman.runtime.pieces.codecs import make
from ferryman.runtime.pieces.index import Index, Piece

GAP_BYTES = 512
"""Fewer bytes between two spans cost less than a request of their own."""
_PART_BYTES = 1 << 20
_SYNC_BYTES, _SYNC_S = 4 << 20, 1.0
"""What a power cut can take: no more than the greater of both."""
_EMPTY = memoryview(b"")


class PieceError(PackageError):
    """A recipe does not make what it must: its base is damaged here, or its pieces are."""


@dataclass
class Run:
    """Spans of a pack that one request brings."""

    pack: str
    start: int
    end: int
    parts: list[tuple[Piece, list[int]]] = field(default_factory=list)
    """Pieces in the order in which they pass, and where in the payload each goes."""


def offsets(index: Index) -> list[int]:
    """Where in the payload each piece lies."""
    found, at = [], 0
    for piece in index.pieces:
        found.append(at)
        at += piece.size
    return found


def runs(index: Index, numbers: Sequence[int]) -> list[Run]:
    """The requests that bring these pieces; equal spans are asked for once, neighbouring ones together."""
    places = offsets(index)
    stored = [number for number in numbers if index.pieces[number].length]
    stored.sort(key=lambda number: (index.pieces[number].pack, index.pieces[number].offset))
    found: list[Run] = []
    for number in stored:
        piece = index.pieces[number]
        name, start, end = index.packs[piece.pack], piece.offset, piece.offset + piece.length
        run = found[-1] if found else None
        if run is not None and run.pack == name and run.parts:
            last = run.parts[-1][0]
            if last == piece:
                run.parts[-1][1].append(places[number])
                continue
            if run.end <= start <= run.end + GAP_BYTES:
                run.end = end
                run.parts.append((piece, [places[number]]))
                continue
        found.append(Run(name, start, end, [(piece, [places[number]])]))
    return found


class Download:
    """The folder of one package's download."""

    def __init__(self, root: Path, package_sha256: str) -> None:
        self.root = root
        self.directory = root / "download" / package_sha256

    def sweep(self) -> None:
        """Remove what was downloaded of other packages.

        Raises:
            PackageError: the folder is a symbolic link.
            OSError: the disk refused.
        """
        for other in self._others():
            shutil.rmtree(other) if other.is_dir() and not other.is_symlink() else other.unlink(missing_ok=True)

    def _others(self) -> list[Path]:
        folder = self.root / "download"
        if folder.is_symlink():
            raise PackageError(f"{folder} is a symbolic link, and what it leads to is not ours; remove it")
        return [one for one in folder.iterdir() if one != self.directory] if folder.is_dir() else []

    def discard(self) -> None:
        """Remove it."""
        if not self.directory.parent.is_symlink():
            shutil.rmtree(self.directory, ignore_errors=True)

    @contextlib.contextmanager
    def opened(self, path: str, *, write: bool = False) -> Iterator[int | None]:
        """A descriptor of a staged file, never by way of a symbolic link; to read, None where there is none.

        Raises:
            PackageError: `path` leads out of the folder, or through something that is no folder.
            OSError: the disk refused.
        """
        parts = PurePosixPath(path).parts
        if not parts or "/".join(parts) != path or ".." in parts or path.startswith("/") or "\0" in path:
            raise PackageError(f"payload path {path[:200]!r} is not a plain relative path")
        descriptor = None
        with self._folder(parts[:-1], make=write) as folder:
            if folder is not None:
                descriptor = _open(parts[-1], folder, write=write)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str], *, make: bool) -> Iterator[int | None]:
        """Walk down from the store's root, link by no link."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in ("download", self.directory.name, *parts):
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=descriptor)
                try:
                    inner = os.open(part, flags, dir_fd=descriptor)
                except FileNotFoundError:
                    yield None
                    return
                except NotADirectoryError as error:  # what O_NOFOLLOW says of a link to a folder, too
                    raise PackageError(f"{part} in {self.directory} is no folder, or a link; remove it") from error
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def complete(self, payload: ReleasePayload) -> bool:
        """Whether a payload is staged as it must be."""
        with self.opened(payload.path) as descriptor:
            if descriptor is None or os.fstat(descriptor).st_size != payload.size_bytes:
                return False
            return sha256_of(descriptor) == payload.sha256

    def lacking(self, payload: ReleasePayload, index: Index) -> list[int]:
        """Numbers of the pieces that are not in the staged file."""
        with self.opened(payload.path) as descriptor:
            found = None if descriptor is None else os.fstat(descriptor)
            if descriptor is None or found is None or not found.st_blocks or found.st_nlink > 1:  # gives way
                return list(range(len(index.pieces)))
            places = zip(index.pieces, offsets(index), strict=True)
            return [
                number for number, (piece, at) in enumerate(places) if _hash(descriptor, at, piece.size) != piece.sha256
            ]

    def staged_bytes(self, payload: ReleasePayload) -> int:
        """Of the disk, that a payload's file has already."""
        with self.opened(payload.path) as descriptor:
            return 0 if descriptor is None else min(payload.size_bytes, os.fstat(descriptor).st_blocks * 512)

    def link(self, payload: ReleasePayload, held: Held) -> None:
        """Stage a payload that a slot has, by a second name for it; the caller verified it.

        Raises:
            OSError: the file system has no links, or the disk refused.
        """
        parts = PurePosixPath(payload.path).parts
        with self._folder(parts[:-1], make=True) as folder:
            assert folder is not None  # noqa: S101  # it was made
            with contextlib.suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=folder)
            os.link(held.path, parts[-1], dst_dir_fd=folder, follow_symlinks=False)
            os.fsync(folder)

    def copy(self, payload: ReleasePayload, held: Held) -> None:
        """Stage a payload that a slot has, where there are no links.

        Raises:
            DeviceError: it cannot be read any more.
            OSError: the disk refused.
        """
        with held.opened() as source, self.opened(payload.path, write=True) as target:
            assert target is not None  # noqa: S101  # it was made
            os.ftruncate(target, 0)
            at = 0
            while part := os.pread(source, _PART_BYTES, at):
                at += os.pwrite(target, part, at)
            os.fsync(target)

    def sync(self) -> None:
        """Bring the folders to the disk."""
        for top, _, _ in os.walk(self.directory, topdown=False):
            sync_directory(Path(top))
        sync_directory(self.directory.parent)


class Writer:
    """Makes one staged payload by one recipe."""

    def __init__(self, descriptor: int, index: Index, http: Http, progress: Callable[[], None]) -> None:
        self._file = descriptor
        self._index = index
        self._http = http
        self._progress = progress
        self._unsynced, self._synced_s = 0, time.monotonic()
        self.damaged: set[Path] = set()
        """Files of slots that did not hold the piece they should."""

    def allocate(self, size: int) -> None:
        """Give the file its full length, on the disk and not only in name.

        Raises:
            OSError: there is no room.
        """
        os.ftruncate(self._file, size)
        if size:
            os.posix_fallocate(self._file, 0, size)

    def from_chunks(self, numbers: Sequence[int], chunks: dict[bytes, Chunk]) -> list[int]:
        """Copy what lies in slots; returns the pieces that do not, or are damaged there."""
        places, left = offsets(self._index), []
        by_file: dict[Held, list[int]] = {}
        for number in numbers:
            piece = self._index.pieces[number]
            chunk = chunks.get(piece.sha256)
            if chunk is None or chunk.size != piece.size:
                left.append(number)
            else:
                by_file.setdefault(chunk.held, []).append(number)
        for held, its in by_file.items():
            try:
                with held.opened() as source:
                    for number in its:
                        piece = self._index.pieces[number]
                        data = os.pread(source, piece.size, chunks[piece.sha256].offset)
                        if hashlib.sha256(data).digest() == piece.sha256:
                            self._write(data, places[number])
                        else:
                            self.damaged.add(held.path)
                            left.append(number)
            except DeviceError:
                self.damaged.add(held.path)
                left += [number for number in its if number not in left]
        return sorted(left)

    def from_base(self, numbers: Sequence[int], base: int) -> None:
        """Make the pieces that need nothing stored: copies of spans of the base, of any size.

        Raises:
            PieceError: the base does not hold what it should.
        """
        places = offsets(self._index)
        for number in numbers:
            piece = self._index.pieces[number]
            if piece.length:
                continue
            if piece.codec != "copy":
                self._write(_made(piece, b"", base), places[number])
                continue
            found = hashlib.sha256()
            for at in range(0, piece.size, _PART_BYTES):
                part = os.pread(base, min(_PART_BYTES, piece.size - at), piece.base_offset + at)
                found.update(part)
                self._write(part, places[number] + at)
            if found.digest() != piece.sha256:
                raise PieceError(f"the {piece.size} bytes at {piece.base_offset} of the base are not what they were")

    def from_wire(self, run: Run, base: int | None) -> None:
        """Fetch the pieces of a run, verify each as it passes, and write it where it goes.

        Raises:
            PieceError: a piece that is made from the base does not verify: either of them is damaged.
            TrustError: a piece that needs no base does not verify.
            and as `Http.stream`.
        """
        url = self._http.url(pack_path(run.pack))
        blocks = self._http.stream(url, run.start, run.end - run.start)
        try:
            passing = Passing(blocks, run.start)
            for piece, places in run.parts:
                stored = passing.take(piece.offset, piece.length)
                try:
                    made = _made(piece, stored, base)
                except PieceError:
                    raise
                except PackageError as error:
                    raise TrustError(
                        f"{url}, {piece.length} bytes at {piece.offset}: {error}; damaged on the server or on the "
                        "way, or an attack; nothing of it is used"
                    ) from error
                for place in places:
                    self._write(made, place)
                self._progress()
        finally:
            blocks.close()

    def finish(self) -> None:
        """Bring the file to the disk."""
        os.fsync(self._file)

    def _write(self, data: bytes, at: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file, rest[:_PART_BYTES], at)
            at, rest = at + written, rest[written:]
            self._unsynced += written
        if self._unsynced >= _SYNC_BYTES and time.monotonic() - self._synced_s >= _SYNC_S:
            os.fdatasync(self._file)
            self._unsynced, self._synced_s = 0, time.monotonic()


class Passing:
    """Bytes that come once, in order."""

    def __init__(self, blocks: Iterator[bytes], start: int) -> None:
        self._blocks = blocks
        self._at = start
        self._rest = memoryview(b"")

    def take(self, offset: int, length: int) -> bytes:
        """The bytes from there, whatever lies before."""
        self._pass(offset - self._at, None)
        taken = bytearray()
        self._pass(length, taken)
        return bytes(taken)

    def _pass(self, count: int, into: bytearray | None) -> None:
        self._at += count
        while count:
            if not self._rest:
                self._rest = memoryview(next(self._blocks))
            if into is not None:
                into += self._rest[:count]
            passed = min(count, len(self._rest))
            self._rest, count = self._rest[passed:], count - passed


def _open(name: str, folder: int, *, write: bool) -> int | None:
    """A plain file; one that is something else, or shares its bytes, gives way before it is written."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    if not write:
        try:
            descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=folder)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP}:  # ELOOP: a link, which is nothing of ours
                return None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return descriptor
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.unlink(name, dir_fd=folder)
    return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o644, dir_fd=folder)


def _made(piece: Piece, stored: bytes, base: int | None) -> bytes:
    """The piece, checked; PieceError where a base had a part in what is wrong."""
    if not piece.base_size:
        return make(piece, stored, _EMPTY)
    assert base is not None  # noqa: S101  # `read_index` saw to it
    try:
        return make(piece, stored, memoryview(os.pread(base, piece.base_size, piece.base_offset)))
    except PackageError as error:
        raise PieceError(str(error)) from error


def _hash(descriptor: int, at: int, size: int) -> bytes:
    found = hashlib.sha256()
    for part in range(at, at + size, _PART_BYTES):
        found.update(os.pread(descriptor, min(_PART_BYTES, at + size - part), part))
    return found.digest()
