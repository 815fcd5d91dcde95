"""Where the shared libraries of ferryman's wheel are."""

from __future__ import annotations

from pathlib import Path

import ferryman.runtime


def native_library(name: str) -> Path | None:
    """Path of `name`; None when this installation was built without it.

    An editable install keeps the libraries in another place than the Python files, so every part of the package's path
    is looked at.
    """
    for folder in ferryman.runtime.__path__:
        path = Path(folder) / "native" / "lib" / name
        if path.exists():
            return path
    return None
