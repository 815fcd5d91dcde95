"""The agent's folders on disks that refuse: it serves all the same, and says in a word why nothing can be written.

A card that fails is made read-only by the kernel; a root that is read-only on purpose has its outbox elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ferryman.devices.agent.outbox import FILE, Outbox
from ferryman.devices.agent.recorder import UNRECORDED_MAX
from ferryman.devices.agent.spending import TelemetryConfig
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.held import held

log = logging.getLogger(__name__)

_WORDS = {errno.EROFS: "read-only", errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EIO: "failing"}
"""What a disk says that refuses; anything else is a mistake of who set it up, and no reason to go on."""
_PROBE_BYTES = 4096


def why_not_writable(folder: Path) -> str:
    """`read-only`, `full`, `failing`, or what the kernel says; empty: a file could be written there."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        try:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, bytes(_PROBE_BYTES))
            finally:
                os.close(descriptor)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return _WORDS.get(error.errno or 0, error.strerror or type(error).__name__)
    return ""


def open_outbox(root: Path, config: TelemetryConfig) -> Outbox:
    """The outbox; where its disk refuses, that is said, and it is tried again with every record.

    Raises:
        DeviceError: a folder cannot be made, or is another user's.
        CallerError: no outbox can be so small.
    """
    folder = config.outbox or root
    _make(root, "--root")
    _make(folder, "--outbox")
    outbox = Outbox(folder / FILE, max_bytes=config.outbox_max_bytes, keep_days=config.keep_days)
    if not outbox.id:
        log.error(
            "%s cannot be written (%s): the agent serves all the same, and %d records of telemetry wait in memory; "
            "make it writable, or name a folder that is with --outbox, such as one in /run, which a power cut empties",
            folder,
            why_not_writable(folder) or "failing",
            UNRECORDED_MAX,
        )
    return outbox


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the root: one agent serves it.

    Raises:
        DeviceError: another does, or the root is another user's.
    """
    with held(_open_lock(root), DeviceError(f"another agent serves {root}; stop it first")):
        yield


def _open_lock(root: Path) -> int:
    """The file that is locked; the root itself on a disk that takes none."""
    path = root / "agent.lock"
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno not in _WORDS:
            raise DeviceError(
                f"cannot write {path}: {error.strerror}; run the agent as the user who owns {root}"
            ) from error
    return os.open(path if path.exists() else root, os.O_RDONLY | os.O_CLOEXEC)


def _make(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"cannot make the folder {folder}: {error.strerror}; make it for the user who runs the agent, or name "
            f"another {option}"
        ) from error
