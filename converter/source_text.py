"""SOURCE as the command line takes it, understood before torch is loaded."""

from __future__ import annotations

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
