"""What the commands of publishers share: options, keys, steps as they are told."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.options import PATH
from ferryman.runtime.say import in_place

if TYPE_CHECKING:
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.devices.fleet.repository.publish import Published

C = TypeVar("C", bound=Callable[..., Any])
DUE = 3
"""Exit code: something is not as it should be, and a person has to look."""


def repository_option(command: C) -> C:
    """Adds `--repository`."""
    return click.option(
        "--repository",
        type=PATH,
        envvar="FERRYMAN_REPOSITORY",
        show_envvar=True,
        required=True,
        help="Folder of the repository; any web server can serve it.",
    )(command)


def keys_option(command: C) -> C:
    """Adds `--keys`, as `key_folders`."""
    return click.option(
        "--keys",
        "key_folders",
        type=PATH,
        envvar="FERRYMAN_KEYS",
        show_envvar=True,
        multiple=True,
        required=True,
        help="Folder of signing keys; may be given several times, such as for root's; the first takes a new family's.",
    )(command)


def release_options(command: C) -> C:
    """Adds what names a release: `--family`, `--version`, `--new-signature`."""
    for option in (
        click.option(
            "--new-signature",
            is_flag=True,
            help="Publish it though it takes or gives something else than the family's newest release.",
        ),
        click.option("--version", help="Name of the release within its family [default: the next number]."),
        click.option("--family", help="Of models [default: the package's name]."),
    ):
        command = option(command)
    return command


def keyring_of(folders: tuple[Path, ...]) -> Keyring:
    """The keys of those folders."""
    from ferryman.devices.fleet.repository.keys import Keyring

    return Keyring(folders)


def grown(done: Published) -> str:
    """What a release added to the repository, and of what kind."""
    deltas = f"{done.delta_bytes:,} of {done.deltas} delta{'s'[: done.deltas > 1]}" if done.deltas else "no deltas"
    indices = done.new_bytes - done.piece_bytes - done.delta_bytes
    return (
        f"{done.new_bytes:,} new bytes ({done.piece_bytes:,} of pieces, {deltas}, {indices:,} of indices); "
        f"{done.shared_bytes:,} of pieces were there already, or come twice in it"
    )


def utc_now() -> datetime:
    """By this machine's clock."""
    return datetime.now(UTC)


@contextlib.contextmanager
def told_steps() -> Iterator[Callable[[str], None]]:
    """Steps on one line of a terminal, which is empty again after them; elsewhere none are told."""
    if not sys.stderr.isatty():
        yield lambda _step: None
        return
    width = shutil.get_terminal_size().columns - 1
    try:
        yield lambda step: in_place(step[:width])
    finally:
        in_place("")
