"""`ferryman ship`: convert, publish and roll out in one go."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.options import PATH, devices_option
from ferryman.publisher import keys_option, release_options, repository_option, told_steps, utc_now
from ferryman.rollout_cli import need_broker, run
from ferryman.rollout_options import broker_option, database_option, plan_of, plan_options
from ferryman.runtime.contracts.errors import CallerError, FerrymanError
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.runtime.contracts.release import Release


@click.command()
@click.argument("source")
@click.option("--to", "query", required=True, metavar="QUERY", help="Which devices; see `ferryman rollout --help`.")
@click.option(
    "--form",
    multiple=True,
    default=("fp32",),
    show_default=True,
    help="As of `ferryman convert`; given several times, the package holds all of them and --pick chooses.",
)
@click.option(
    "--runtime",
    multiple=True,
    default=("executorch", "tflite"),
    show_default=True,
    type=click.Choice(["executorch", "tflite"]),
    help="Runtime to lower to; may be given twice.",
)
@click.option("--calibrate", metavar="MODULE:FACTORY", help="As of `ferryman convert`.")
@click.option("--name", help="Name of the package [default: that of the factory or file].")
@release_options
@repository_option
@keys_option
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Folder in which the package is kept [default: none; the working directory where it cannot be published].",
)
@broker_option
@database_option
@devices_option
@plan_options
@click.option(
    "--dry-run", is_flag=True, help="Convert, then only tell what would be published and what the rollout would do."
)
@click.option("--detach", is_flag=True, help="Drive the rollout in the background.")
@click.option("--json", "as_json", is_flag=True, help="Print the rollout's end as one JSON object.")
def ship(
    source: str,
    query: str,
    form: tuple[str, ...],
    runtime: tuple[Any, ...],
    calibrate: str | None,
    name: str | None,
    family: str | None,
    version: str | None,
    repository: Path,
    key_folders: tuple[Path, ...],
    output: Path | None,
    broker: str | None,
    database: Path,
    devices_file: Path | None,
    *,
    new_signature: bool,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401  # those of plan_options
) -> None:
    """Convert SOURCE, publish the package, and bring it to the devices that --to means.

    SOURCE is package.module:factory or a .pt2 file, as for `ferryman convert`, or a package that is made already.
    A package that was published before is not published again. The exit code is that of `ferryman rollout start`.
    """
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.devices.fleet.rollout.cost import Costs

    url = need_broker(broker)
    plan_of("before/1", "", query, url, options)  # what is wrong with it is wrong before a conversion, too
    keyring = Keyring(key_folders)
    with tempfile.TemporaryDirectory(prefix="ferryman-ship-") as folder:
        package = Path(source)
        converts = not package.is_file() or package.suffix == ".pt2"
        if converts:
            package = _converted(source, output or Path(folder), form, runtime, calibrate, name)
        try:
            with _look(repository) if dry_run else nullcontext(repository) as place:
                naming = {"family": family, "version": version, "new_signature": new_signature}
                release = _published(package, place, keyring, naming, dry_run=dry_run)
                plan = plan_of(release.name, release.package_sha256, query, url, options)
                if dry_run:
                    with Costs(place) as costs:
                        run(plan, url, database, devices_file, costs=costs, as_json=as_json)
                    return
        except (FerrymanError, OSError):
            if converts:
                _keep(package, Path(folder))
            raise
    run(plan, url, database, devices_file, detach=detach, as_json=as_json)


def _published(package: Path, repository: Path, keyring: Keyring, naming: dict[str, Any], *, dry_run: bool) -> Release:
    from ferryman.devices.fleet.repository.publish import publish

    with told_steps() as progress:
        done = publish(package, repository, keyring, utc_now(), progress=progress, **naming)
    release = done.release
    verb = "would be published" if dry_run else "published"
    what = f"{verb} as {release.name}, {done.new_bytes:,} new bytes" if done.is_new else f"is {release.name} already"
    echo(f"{release.package_name} {release.package_sha256[:12]} {what}", err=True)
    return release


@contextmanager
def _look(repository: Path) -> Iterator[Path]:
    """A copy of a repository to publish to for a look; packs, which never change, are linked.

    Raises:
        CallerError: there is no repository, it cannot be read, or somebody is changing it.
    """
    from ferryman.devices.fleet.repository.files import locked
    from ferryman.devices.fleet.repository.metadata import read_roles

    read_roles(repository)
    with locked(repository) as work:
        copy = work / "look"
        try:
            for folder in ("metadata", "targets"):
                if (repository / folder).is_dir():
                    shutil.copytree(repository / folder, copy / folder)
            if (repository / "packs").is_dir():
                shutil.copytree(repository / "packs", copy / "packs", copy_function=os.link)
        except OSError as error:
            raise CallerError(f"cannot copy the repository {repository} for a look: {error}") from error
        yield copy


def _keep(package: Path, folder: Path) -> None:
    """Where a package that was just made cannot be published, keep it: a conversion may have taken long."""
    if package.parent == folder:
        kept, number = Path(package.name), 1
        while kept.exists():
            number += 1
            kept = Path(f"{package.stem}-{number}{package.suffix}")
        try:
            package = Path(shutil.copyfile(package, kept))
        except OSError as error:
            echo(f"the package cannot be kept in the working directory: {error}", err=True)
            return
    echo(
        f"the package is kept: {package.resolve()}; ship it with `ferryman ship {shlex.quote(str(package))} ...`",
        err=True,
    )


def _converted(
    source: str, folder: Path, form: tuple[str, ...], runtime: tuple[Any, ...], calibrate: str | None, name: str | None
) -> Path:
    from ferryman.converter.source_text import parse_source

    parse_source(source)
    echo("loading the toolchains", err=True)
    from ferryman.converter.api import convert

    made = convert(
        source,
        to=runtime,
        form=form,
        calibration=calibrate,
        output=folder,
        name=name,
        progress=lambda stage: echo(f"  {stage}", err=True),
    )
    for note in made.notes:
        echo(f"note: {note}", err=True)
    echo(f"{made.manifest.name}: {made.path.stat().st_size:,} bytes", err=True)
    return made.path
