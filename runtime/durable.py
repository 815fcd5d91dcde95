"""Files that are on the disk, whole, once a function returns; and that are read from the disk, not from memory."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError

_CHUNK_BYTES = 1 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
"""What file systems say that have no hard links, or no more of them."""


def write_new(path: Path, data: bytes | Iterable[bytes], *, sync: bool = True, mode: int = 0o644) -> None:
    """Write a file that is not there yet, and with `sync` bring it to the disk; its folder takes `sync_directory`.

    Raises:
        FileExistsError: it is there.
        OSError: the disk refused.
    """
    descriptor = os.open(path, _NEW_FILE, mode)
    try:
        for chunk in (data,) if isinstance(data, bytes) else data:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest[:_CHUNK_BYTES]) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, data: bytes, *, sync: bool = True, mode: int = 0o644) -> None:
    """Replace a file in one step that survives a power cut; without `sync`, a kill.

    Raises:
        DeviceError: the disk refused; the old file is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        write_new(new, data, sync=sync, mode=mode)
        new.replace(path)
        if sync:
            sync_directory(path.parent)
    except OSError as error:
        raise DeviceError(
            f"cannot write {path}: {error.strerror}; make room on the device, or put that right"
        ) from error


def sync_directory(path: Path) -> None:
    """Bring a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Bring a file to the disk that someone else wrote.

    Raises:
        PackageError: it is no plain file.
        OSError: it is not there, or the disk refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PackageError(f"{path} is a symbolic link, and ferryman makes none") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PackageError(f"{path} is no plain file")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_move(source: Path, target: Path) -> None:
    """Give a file one more name; where the file system allows one only, that name.

    Raises:
        FileExistsError: the name is taken.
        CallerError: it is on another file system.
        OSError: the disk refused.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise CallerError(
                f"{source} is on another file system than the slot store; stage downloads below the store's root"
            ) from error
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
        source.rename(target)


def expect_hash(directory: Path, path: str, sha256: str) -> None:
    """Hash what the disk holds, not what memory remembers of writing it.

    Raises:
        PackageError: it is something else.
        OSError: it cannot be read.
    """
    descriptor = os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise PackageError(f"{path} has sha256 {found}, expected {sha256}: damaged")


def refuse_links(top: Path, bottom: Path) -> None:
    """Raise PackageError if anything from `top` down to `bottom` is a symbolic link."""
    while True:
        if bottom.is_symlink():
            raise PackageError(f"{bottom} is a symbolic link, and ferryman makes none")
        if bottom == top:
            return
        bottom = bottom.parent
