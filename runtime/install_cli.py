"""The commands of an install on this device; `ferryman push` calls them over SSH."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from ferryman.runtime.contracts.errors import CallerError, FerrymanError, to_wire
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.slot import DEFAULT_ROOT, SlotState, parse_pick
from ferryman.runtime.say import echo, failure

# What needs numpy is imported by the command that uses it: `ferryman --help` and each other command start without it.

R = TypeVar("R", bound=Record)


def _checked(pick: str) -> str:
    try:
        parse_pick(pick)
    except CallerError as error:
        raise click.BadParameter(str(error)) from error
    return pick


root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=DEFAULT_ROOT,
    show_default=True,
    help="Directory of the slot store.",
)
pick_option = click.option(
    "--pick",
    callback=lambda _context, _option, value: _checked(value),
    metavar="PICK",
    default="first",
    show_default=True,
    help="Which variant answers requests that name none: the package's first, or what the golden vectors show on the "
    "device to be the fastest, the smallest, the closest to eager, or of nested ones the largest; within a budget, "
    "such as largest-20ms or largest-20ms-60mb.",
)
_SETTINGS = {"help_option_names": ["-h", "--help"]}
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, of errors too.")


@click.command("install", context_settings=_SETTINGS)
@click.argument("package", type=click.Path(path_type=Path))
@root_option
@pick_option
@json_option
def install_command(package: Path, root: Path, pick: str, as_json: bool) -> None:
    """Install PACKAGE on this device: write the inactive slot, prove it, activate it."""
    from ferryman.runtime.install import install
    from ferryman.runtime.picking import describe_golden

    def show(step: str, done: int, total: int) -> None:
        if not as_json:
            echo(f"{step} {done}/{total} bytes" if total else step, err=True)

    result = answer(lambda: install(package, root, pick=pick, progress=show), as_json)
    what = "is now active" if result.changed else "was active already"
    echo(f"{result.active.package_name} {what} in slot {result.active.name}")
    for golden in result.golden:
        echo(f"  {describe_golden(golden)}")
    if result.active.answers:
        echo(f"  {result.active.answers}, answers")


@click.command("prepare", hidden=True, context_settings=_SETTINGS)
@click.argument("sha256")
@click.argument("size_bytes", type=int)
@root_option
@json_option
def prepare_command(sha256: str, size_bytes: int, root: Path, as_json: bool) -> None:
    """Get ready for the upload of a package (what `ferryman push` calls first)."""
    from ferryman.runtime.install import prepare

    prepared = answer(lambda: prepare(root, sha256, size_bytes), as_json)
    echo(f"upload to {prepared.upload_to}" if prepared.active is None else "active already")


@click.command("repick", hidden=True, context_settings=_SETTINGS)
@root_option
@pick_option
@json_option
def repick_command(root: Path, pick: str, as_json: bool) -> None:
    """Pick anew among the active package's variants (what `ferryman push` calls where it is active already)."""
    from ferryman.runtime.install import repick

    echo(answer(lambda: repick(root, pick), as_json).active.answers or "the package's first")


@click.command("rollback", context_settings=_SETTINGS)
@root_option
@json_option
def rollback_command(root: Path, as_json: bool) -> None:
    """Let the previously active package of this device serve again."""
    from ferryman.runtime.slots import SlotStore, disk_errors

    def work() -> SlotState:
        store = SlotStore(root)
        with disk_errors(store):
            return store.rollback()

    state = answer(work, as_json)
    if state.active:
        echo(f"{state.active.package_name} is active again in slot {state.active.name}")


@click.command("confirm", context_settings=_SETTINGS)
@root_option
@json_option
def confirm_command(root: Path, as_json: bool) -> None:
    """Let the package that serves on trial serve for good, on this device; nothing where none is on trial."""
    from ferryman.runtime.slots import SlotStore
    from ferryman.runtime.trial import confirm

    told = "no package is on trial; nothing was changed"

    def work() -> SlotState:
        nonlocal told
        store = SlotStore(root)
        before = store.read_state()
        if before.trial is None or before.active is None:
            return before
        told = f"{before.active.package_name} in slot {before.active.name} serves for good"
        return confirm(store, before.active.package_sha256)

    state = answer(work, as_json)
    if state.trial is not None:
        raise failure("device: another package came on trial in between; look at it, then confirm again")
    echo(told)


def answer(work: Callable[[], R], as_json: bool) -> R:
    """Do the work; as JSON, print the result or the error as a record and end the process."""
    try:
        result = work()
    except Exception as error:
        if as_json:
            if not isinstance(error, FerrymanError):
                traceback.print_exc()  # a bug: the other side gets one line of it, the rest is for the log
            echo(encode(to_wire(error)))
            sys.exit(1)
        if isinstance(error, FerrymanError):
            raise failure(f"{error.party}: {error}") from error
        raise
    if as_json:
        echo(encode(result))
        sys.exit(0)
    return result


if __name__ == "__main__":
    click.Group(commands=[install_command, prepare_command, repick_command, rollback_command, confirm_command])()
