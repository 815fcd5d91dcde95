"""Keep a toolchain's chatter, C++ logs included, out of the user's sight; `ferryman -vv` shows it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("ferryman.toolchain")


@contextmanager
def quiet() -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to a file; log what was written there at DEBUG level."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as sink:
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, target in zip(kept, (1, 2), strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
            sink.seek(0)
            for line in sink.read().decode(errors="replace").splitlines():
                log.debug(line)
