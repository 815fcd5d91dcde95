"""A file's lock, held by one process at a time and let go of by its death."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ferryman.runtime.contracts.errors import FerrymanError


@contextmanager
def held(lock: int, taken: FerrymanError) -> Iterator[None]:
    """Hold the lock of an open file without waiting, and close the file afterwards.

    Args:
        lock: its descriptor.
        taken: raised where another process holds it.
    """
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise taken from error
        yield
    finally:
        os.close(lock)
