"""`ferryman keys`: what a repository is signed with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.options import PATH
from ferryman.publisher import DUE, keyring_of, keys_option, repository_option, utc_now
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.fleet.repository.manage import Dealt

C = TypeVar("C", bound=Callable[..., Any])


def _offline_option(command: C) -> C:
    return click.option(
        "--offline",
        type=PATH,
        multiple=True,
        help="Root's keys go here instead, to be kept off this machine; given several times, they are dealt out, one "
        "folder after the other.",
    )(command)


@click.group()
def keys() -> None:
    """Make, show and replace the keys that a repository is signed with.

    \b
    A repository has these roles, each with its own keys (The Update Framework):
      root       says which keys count; the only thing a device is given before
      targets    says which family of models has which key
      FAMILY     signs the releases of one family, and no other's
      snapshot   says which of these are in force together
      timestamp  says that this is still so; signed again every few days
    Encrypt the files by a passphrase in $FERRYMAN_KEYS_PASSPHRASE.
    """  # noqa: D301  # click wants the very character, where it shall not wrap


@keys.command("init")
@click.argument("directory", type=PATH)
@repository_option
@click.option("--family", multiple=True, help="A family of models; may be given several times, and more can follow.")
@click.option("--root-keys", type=click.IntRange(1, 16), default=1, show_default=True, help="How many keys root has.")
@click.option(
    "--threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="How many of root's keys must sign."
)
@_offline_option
def init_command(
    directory: Path,
    repository: Path,
    family: tuple[str, ...],
    root_keys: int,
    threshold: int,
    offline: tuple[Path, ...],
) -> None:
    """Make keys in DIRECTORY and an empty repository signed by them.

    Keep root's keys (--offline) apart and offline: whoever has enough of them owns the fleet, and without them no
    stolen key can be replaced. Three keys of which two must sign take three folders.
    """
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.devices.fleet.repository.manage import Dealt, init

    roles = init(
        repository,
        Keyring([directory]),
        utc_now(),
        families=family,
        root_keys=root_keys,
        threshold=threshold,
        offline=offline,
    )
    echo(f"{repository}: {', '.join(roles.names)}")
    echo(f"keys of root: {', '.join(map(str, offline or [directory]))}; of the others: {directory}")
    echo("give devices the root: ferryman keys root; sign again in time: ferryman keys refresh, once a day")
    _warn_of_alone(Dealt.of(root_keys, threshold, offline or [directory]))


@keys.command("add-family")
@click.argument("family")
@repository_option
@keys_option
def add_family_command(family: str, repository: Path, key_folders: tuple[Path, ...]) -> None:
    """Give FAMILY a key of its own; takes the keys of targets, snapshot and timestamp."""
    from ferryman.devices.fleet.repository.manage import add_family

    add_family(repository, family, keyring_of(key_folders), utc_now())
    echo(f"family {family} has a key in {key_folders[0]}")


@keys.command("rotate")
@click.argument("role", nargs=-1, required=True)
@repository_option
@keys_option
@click.option(
    "--root-keys", type=click.IntRange(1, 16), help="How many keys root has from now on [default: as before]."
)
@click.option("--threshold", type=click.IntRange(1, 16), help="How many of them must sign [default: as before].")
@_offline_option
def rotate_command(
    role: tuple[str, ...],
    repository: Path,
    key_folders: tuple[Path, ...],
    root_keys: int | None,
    threshold: int | None,
    offline: tuple[Path, ...],
) -> None:
    """Replace all keys of each ROLE; devices follow by themselves, and the old keys no longer count.

    Each new key goes into the folder that held the old one (root's: or where --offline says).

    Takes root's keys (of a family: those of targets). After a theft, replace every role whose key was on that
    machine in one go: a stolen snapshot or timestamp key can push version numbers ahead, and devices forget those
    once the keys are replaced.
    """
    from ferryman.devices.fleet.repository.manage import rotate

    done = rotate(
        repository, role, keyring_of(key_folders), utc_now(), root_keys=root_keys, threshold=threshold, offline=offline
    )
    for name, one in done.items():
        for key_id, folder in one.made:
            echo(f"{name}: new key {key_id[:16]} in {folder}")
        verb = "counts; delete its file" if len(one.gone) == 1 else "count; delete their files"
        echo(f"{name}: {', '.join(key_id[:16] for key_id in one.gone)} no longer {verb}")
        _warn_of_alone(one.dealt)


@keys.command("refresh")
@repository_option
@keys_option
def refresh_command(repository: Path, key_folders: tuple[Path, ...]) -> None:
    """Sign again what expires soon, and the timestamp in any case; for cron, once a day.

    The exit code is 3 where something else expires soon whose keys are not here, such as root's.
    """
    from ferryman.devices.fleet.repository.manage import refresh

    done = refresh(repository, keyring_of(key_folders), utc_now())
    echo(f"signed: {', '.join(done.signed)}")
    if done.due:
        echo(f"due, and their keys are not here: {', '.join(done.due)}", err=True)
        raise SystemExit(DUE)


@keys.command("show")
@repository_option
def show_command(repository: Path) -> None:
    """Show every role: version, keys, how many must sign, and when it expires."""
    from ferryman.devices.fleet.repository.manage import show

    now = utc_now()
    for status in show(repository, now):
        left = (status.expires - now) / timedelta(days=1)
        when = f"{status.expires:%Y-%m-%d}, " + (f"in {left:.0f} days" if left > 0 else "EXPIRED")
        echo(f"{status.role:<12} version {status.version}, expires {when}{'  <- sign again' if status.soon else ''}")
        echo(f"{'':<12} {status.threshold} of {len(status.key_ids)} keys sign:")
        for key_id in status.key_ids:
            echo(f"{'':<14} {key_id[:16]}")


@keys.command("root")
@repository_option
@click.option("-o", "--output", type=click.File("wb"), default="-", help="File to write [default: standard output].")
def root_command(repository: Path, output: Any) -> None:  # noqa: ANN401  # a click file
    """Write out the root that a device is provisioned with: it trusts this, and what follows from it."""
    from ferryman.devices.fleet.repository.manage import trusted_root

    output.write(trusted_root(repository))


def _warn_of_alone(dealt: Dealt) -> None:
    """Say which folder has enough of root's keys by itself."""
    for folder, count in dealt.alone.items():
        echo(
            f"warning: {folder} holds {count} of root's {len(dealt.folders)} keys, and {dealt.threshold} sign: whoever "
            f"has that folder alone owns the fleet. To need several, deal them to {dealt.folders_needed} folders or "
            "more (one --offline each; now: ferryman keys rotate root)",
            err=True,
        )
