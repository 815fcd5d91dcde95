"""Files that are small, or not what they should be: never more of one is read than it may hold."""

from __future__ import annotations

from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError


def read_small(path: Path, most_bytes: int) -> bytes:
    """Read a plain file, or what a link leads to.

    Raises:
        CallerError: it is not there, is no plain file, or is larger.
    """
    try:
        if path.exists() and not path.is_file():
            raise CallerError(f"{path} is no plain file; name one")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise CallerError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > most_bytes:
        raise CallerError(f"{path} has more than {most_bytes} bytes; see whether it is the right file")
    return data
