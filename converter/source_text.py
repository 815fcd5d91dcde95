"""SOURCE as the command line takes it, understood before torch is loaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError

PROGRAM_SUFFIX = ".pt2"


def parse_source(text: str) -> Path | tuple[str, str]:
    """A program's file, or the names of a module and of a factory in it.

    Raises:
        CallerError: it is neither, or there is no such file.
    """
    if text.endswith(PROGRAM_SUFFIX):
        if not Path(text).is_file():
            raise CallerError(f"no file {text}; save a program there with torch.export.save")
        return Path(text)
    module_name, _, factory_name = text.partition(":")
    if not (module_name and factory_name):
        raise CallerError(f"SOURCE is package.module:factory or a {PROGRAM_SUFFIX} file, found {text!r}")
    return module_name, factory_name


def named(source: Path | tuple[str, str]) -> str:
    """What a package of it is called, where nobody says another name."""
    return source.name.removesuffix(PROGRAM_SUFFIX) if isinstance(source, Path) else source[1]


def look_for(source: Path | tuple[str, str]) -> None:
    """Miss a module before much is loaded for it; only the outermost package is looked for, and nothing is imported.

    Raises:
        CallerError: it is not there.
    """
    if isinstance(source, Path):
        return
    outermost = source[0].split(".", maxsplit=1)[0]
    see_current_directory()
    importlib.invalidate_caches()
    if outermost and outermost not in sys.modules and importlib.util.find_spec(outermost) is None:
        raise missing(outermost)


def see_current_directory() -> None:
    """Put the current directory on the import path, first."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def missing(module: str) -> CallerError:
    """The error of a module that is not there."""
    return CallerError(f"no module {module!r}; is it installed, or in the current directory?")
