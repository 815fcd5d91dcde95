"""Packed weights on disk, so that the next start need not pack them again.

A folder holds files that nothing ever changes:

    KEY.SIZE.CHECKSUM.packed   what a runtime packed, in its own format
    KEY.none                   of this artifact nothing is kept: its answers with packed weights were not the same
    .KEY.RANDOM.part           being written; locked by whoever does

KEY is a hash of all that shapes packed weights: which artifact, which runtime, which processor. An artifact is known by
its SHA-256 where the caller has it, else by where its file is and when it was last changed, which no one but the kernel
sets. SIZE and CHECKSUM are compared at every start. Files are written whole, synced and then given their name; those
not used for longest go first. Whatever goes wrong here costs time, and is logged; it is no error.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.cpu import CPUINFO, fingerprint
from ferryman.runtime.durable import sync_directory
from ferryman.runtime.weights import checksum, log, processor

CacheUse = Literal["off", "memory", "built", "warm"]
"""What became of packed weights when a session was opened: packed for every use; packed once, in memory; packed once,
and written to disk; found on disk."""
LAYOUT = 1
"""Of the folder and of what its files are checked for; another starts anew."""
_NAME = re.compile(r"(?P<key>[0-9a-f]{32})\.(?P<size>[0-9a-f]+)\.(?P<checksum>[0-9a-f]{16})\.packed")
_FILES_MAX = 16
_BYTES_MAX = 2 << 30
_RACY_NS = 2_000_000_000
"""Two changes so close to each other may bear the same time."""
_ROOM = 4
"""Times the artifact that must be free on disk, and in memory: packed weights take about as much as it, and while they
are tried out there are two of them."""
_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_LOCK_S = 2.0
_LOCK_POLL_S = 0.002


@dataclass(frozen=True)
class Cache:
    """Where packed weights are kept, and by what the artifact is known."""

    folder: Path
    sha256: str | None = None


@dataclass(frozen=True)
class Kept:
    """An open file of packed weights; for its owner to close."""

    descriptor: int
    use: CacheUse
    of: str | None = None
    """What `state_of` said of the artifact they were packed from; None: it is known by its hash."""

    @property
    def path(self) -> str:
        """A path that reaches this very file, whatever happens to its name."""
        return f"/proc/self/fd/{self.descriptor}"


Fill = Callable[[str], bool]
"""Has a runtime pack all weights into the file of that path; False: its answers are then not the same to the bit."""


def memory() -> Kept:
    """An empty file in memory."""
    return Kept(os.memfd_create("ferryman-packed-weights", os.MFD_CLOEXEC), "memory")


class _Differ(Exception):  # no error: an answer
    """With packed weights an artifact's answers are not the same."""


def keep(cache: Cache, artifact: Path, version: str, fill: Fill, *, shared: bool = False) -> Kept | None:
    """The artifact's packed weights: found in the folder, or packed and put there; None: each use packs its own.

    Args:
        cache: where.
        artifact: the file.
        version: of the runtime, with its name.
        fill: packs them.
        shared: several layers use one weight: where none are kept, they are to be packed once in memory.
    """
    try:
        identity = cache.sha256 or _settled(artifact)
        if identity is None:
            log.info("%s was changed a moment ago: its packed weights are not kept this time", artifact)
        else:
            key = _key(identity, version)
            kept = _find(cache.folder, key) or _build(cache, artifact, identity, key, fill)
            if kept is not None:
                return replace(kept, of=None if cache.sha256 else identity)
    except _Differ:
        return None
    except (OSError, ValueError, FerrymanError) as error:
        log.warning("packed weights of %s are not kept in %s: %s", artifact, cache.folder, error)
    return memory() if shared else None


def is_of(kept: Kept, artifact: Path) -> bool:
    """Whether the artifact is still the one that was packed, asked after the runtime has opened it."""
    return kept.of is None or kept.of == state_of(artifact)


def state_of(artifact: Path) -> str:
    """Which file it is, and when it was last changed; anything that writes it changes this.

    Raises:
        OSError: it is not there.
    """
    found = artifact.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _settled(artifact: Path) -> str | None:
    """Its state; None: it was changed so lately that another change might not show."""
    found = artifact.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _RACY_NS:  # a clock set back counts as lately
        return None
    return state_of(artifact)


def _key(identity: str, version: str) -> str:
    told = fingerprint(CPUINFO.read_text())
    whole = "\n".join((str(LAYOUT), identity, version, platform.machine(), told, f"{processor():x}"))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _find(folder: Path, key: str) -> Kept | None:
    """The file of that key whose bytes are those that were written; damaged ones are removed."""
    if not folder.is_dir():
        return None
    for path in folder.iterdir():
        parts = _NAME.fullmatch(path.name)
        if parts is None or parts["key"] != key:
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # swept meanwhile, or none of ours
            continue
        if _is_sound(descriptor, int(parts["size"], 16), int(parts["checksum"], 16)):
            with contextlib.suppress(OSError):  # a folder that may only be read
                os.utime(path)
            return Kept(descriptor, "warm")
        os.close(descriptor)
        log.warning("%s is damaged; it is made anew", path)
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _is_sound(descriptor: int, size: int, expected: int) -> bool:
    found = os.fstat(descriptor)
    ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not (stat.S_ISREG(found.st_mode) and ours and found.st_size == size > 0):
        return False
    return checksum(descriptor) == expected


def _build(cache: Cache, artifact: Path, identity: str, key: str, fill: Fill) -> Kept | None:
    """Pack into memory, and write that: a disk that fills up is then an error, and not the end of the process."""
    folder, none = cache.folder, cache.folder / f"{key}.none"
    if none.exists():
        raise _Differ
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if scarce := _scarce(folder, _ROOM * artifact.stat().st_size):
        log.warning("packed weights of %s are not kept: there is little %s left", artifact, scarce)
        return None
    with _part(folder, key) as (part, descriptor), contextlib.ExitStack() as stack:
        packed = memory()
        stack.callback(os.close, packed.descriptor)
        same = fill(packed.path)
        _give_back()
        if not same:
            log.warning("packed weights of %s are not kept: with them its answers are not the same", artifact)
            with contextlib.suppress(OSError):
                none.touch()
            raise _Differ
        if not cache.sha256 and state_of(artifact) != identity:
            log.warning("packed weights of %s are not kept: it was changed while it was read", artifact)
            return None
        try:
            return _publish(folder, key, part, descriptor, packed.descriptor)
        except OSError as error:
            log.warning("packed weights of %s cannot be written to %s: %s", artifact, folder, error)
            stack.pop_all()
            return packed


def _scarce(folder: Path, needed_bytes: int) -> str:
    """What there is too little of; empty: nothing."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < needed_bytes:
        return f"room in {folder}"
    available = _AVAILABLE.search(_MEMINFO.read_text())
    return "memory" if available and int(available[1]) * 1024 < needed_bytes else ""


def _give_back() -> None:
    """Have the C library return what packing took for a while; only glibc's keeps it, and has a way."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _part(folder: Path, key: str) -> Iterator[tuple[Path, int]]:
    """A new file, to be read only, locked, and gone afterwards unless it was renamed."""
    part = folder / f".{key}.{secrets.token_hex(4)}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield part, descriptor
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _publish(folder: Path, key: str, part: Path, descriptor: int, packed: int) -> Kept | None:
    size, done = os.fstat(packed).st_size, 0
    found = checksum(packed)
    if found is None:
        return None
    while done < size:
        done += os.sendfile(descriptor, packed, done, size - done)
    os.fsync(descriptor)
    # ExecuTorch would take a lock for a sign of a writer, and make a file of that name anew.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    reader = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        part.rename(folder / f"{key}.{size:x}.{found:016x}.packed")
        sync_directory(folder)
        _sweep(folder, key)
    except BaseException:
        os.close(reader)
        raise
    return Kept(reader, "built")


def _sweep(folder: Path, fresh: str) -> None:
    """Remove what dead writers left, and of the rest what was not used for longest, down to the bounds."""
    held: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            found = path.lstat()
            if path.suffix == ".part":
                _remove_dead(path)
            elif path.suffix in (".packed", ".none") and stat.S_ISREG(found.st_mode):
                held.append((found.st_mtime, found.st_size, path))
    total = 0
    newest_first = sorted(held, key=lambda one: (not one[2].name.startswith(fresh), -one[0]))
    for index, (_, size, path) in enumerate(newest_first):
        total += size
        if index and (index >= _FILES_MAX or total > _BYTES_MAX):
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_dead(part: Path) -> None:
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else is within this on the same folder, in this process or another.

    Raises:
        OSError: somebody was for too long.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
