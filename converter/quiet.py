"""Keep a toolchain's chatter, C++ logs included, out of the user's sight; `ferryman -vv` shows it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

log = logging.getLogger("ferryman.toolchain")
_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """Have threads take turns: file descriptors and toolchains are the whole process's. Decorates functions too."""
    with _LOCK:
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to a file, one thread at a time; log what was written there at DEBUG level."""
    with alone(), _sink() as sink:
        _flush()
        kept = os.dup(1), os.dup(2)
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            _flush()
            for descriptor, target in zip(kept, (1, 2), strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
            sink.seek(0)
            for line in sink.read().decode(errors="replace").splitlines():
                log.debug(line)


def _sink() -> IO[bytes]:
    _occupy()
    return tempfile.TemporaryFile()


def _occupy() -> None:
    """Open a closed 1 or 2 on nothing: else the next file that is opened gets the number, and chatter goes into it."""
    for target in (1, 2):
        try:
            os.fstat(target)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != target:
                os.dup2(opened, target)
                os.close(opened)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:  # None: it was closed before Python started
            stream.flush()
