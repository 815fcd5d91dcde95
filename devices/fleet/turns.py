"""One caller at a time measures on a device: two at once would each measure the other."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ferryman.devices.fleet.answers import cache_home
from ferryman.devices.fleet.inventory import Device
from ferryman.runtime.contracts.errors import CallerError

_POLL_S = 0.1


@contextmanager
def turn(device: Device, stop: threading.Event, progress: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Wait until no other thread or process of this user on this machine has the device, and hold it.

    A process that dies lets go of it. Callers on other machines wait at the device's agent, which does one thing after
    the other, and may find their package replaced.

    Args:
        device: whatever name it goes by: its address is what counts.
        stop: set by whoever no longer wants to wait.
        progress: told where there is somebody to wait for.

    Raises:
        CallerError: nothing can be written where the turns are kept; or `stop`.
    """
    folder = cache_home() / "turns"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / hashlib.sha256(device.address.encode()).hexdigest()[:32]
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CallerError(f"the turns of devices are kept in {folder}: {error.strerror}; set XDG_CACHE_HOME") from error
    try:
        told = False
        while not _taken(lock):
            if not told:
                progress(f"{device.name}: another measures there, waiting")
            told = True
            if stop.wait(_POLL_S):
                raise CallerError(f"waiting for {device.name} was given up")
        yield
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
