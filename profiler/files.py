"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError


def write_whole(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` held; a pipe or a terminal is written to as it is.

    Raises:
        CallerError: the disk refused; what was there before is there still.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, "utf-8", newline="")
            return
        number, name = tempfile.mkstemp(prefix=f".{path.name[:50]}-", dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)  # noqa: PTH101  # mkstemp's are for their owner alone
            os.replace(name, path.resolve())  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise
    except OSError as error:
        raise CallerError(f"cannot write {path}: {error.strerror}; name another place, or make room") from error
