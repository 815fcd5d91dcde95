"""How a repository's files reach the disk: whole or not at all, one publisher at a time.

ROOT/lock      held by whoever changes anything
ROOT/.work     what a publisher is about to put in its place; emptied by the next one
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.durable import sync_directory

WORK = ".work"
_WAIT_S = 5.0
_POLL_S = 0.05


@contextlib.contextmanager
def locked(root: Path) -> Iterator[Path]:
    """Hold a repository for a change; yields an empty folder beside it to work in. The kernel lets go with the process.

    Raises:
        CallerError: another publisher holds it, and for longer than is waited here, or it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CallerError(f"cannot write the repository {root}: {error.strerror}") from error
    work = root / WORK
    try:
        _wait(lock, root)
        with contextlib.suppress(OSError):  # a full disk; the process only tells whom to wait for
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
        finally:  # by who holds the lock alone: it is the holder's
            shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(lock)


def _wait(lock: int, root: Path) -> None:
    """Take the lock; what signs again, by cron, is done in a moment."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_POLL_S)
                continue
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            raise CallerError(f"process {holder} is changing the repository {root}; wait until it is done") from None


def put(path: Path, data: bytes, work: Path) -> None:
    """Write a file in one step that survives a power cut, by way of `work` on the same disk."""
    partial = work / path.name
    with partial.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    move(partial, path)


def move(partial: Path, path: Path) -> None:
    """Give a file that is on the disk its place."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)
    for folder in (path.parent, *(folder.parent for folder in missing)):
        sync_directory(folder)
