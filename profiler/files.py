"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ferryman.runtime.contracts.errors import CallerError


def write_whole(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` held; a pipe or a terminal is written to as it is.

    Raises:
        CallerError: the disk refused; what was there before is there still.
    """
    with whole_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of what `path` held when it is closed, and never if that raises.

    A pipe or a terminal is written to as it is.

    Raises:
        CallerError: the disk refused; what was there before is there still.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        number, name = tempfile.mkstemp(prefix=f".{path.name[:50]}-", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                yield file
                file.flush()
                os.fsync(number)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)  # noqa: PTH101  # mkstemp's are for their owner alone
            os.replace(name, path.resolve())  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise
    except OSError as error:
        raise CallerError(
            f"cannot write {path}: {error.strerror or error}; name another place, or make room"
        ) from error
