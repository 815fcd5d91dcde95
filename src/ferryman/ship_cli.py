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

from ferryman.convert_cli import How, check_conversion, conversion_options, run_conversion, runtime_option
from ferryman.options import PATH, devices_option
from ferryman.publisher import grown, keys_option, release_options, repository_option, told_steps, utc_now
from ferryman.rollout_cli import need_broker, run
from ferryman.rollout_options import broker_option, database_option, plan_of, plan_options
from ferryman.runtime.contracts.errors import CallerError, FerrymanError
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.runtime.contracts.manifest import RuntimeName
    from ferryman.runtime.contracts.release import Release


@click.command()
@click.argument("source")
@click.option("--to", "query", required=True, metavar="QUERY", help="Which devices; see `ferryman rollout --help`.")
@conversion_options
@runtime_option("--runtime")
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
    runtime: tuple[RuntimeName, ...],
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
    **options: Any,  # noqa: ANN401  # those of conversion_options and of plan_options
) -> None:
    """Convert SOURCE, publish the package, and bring it to the devices that --to means.

    SOURCE is package.module:factory or a .pt2 file, as for `ferryman convert`, or a package that is made already.
    What can be known before a conversion is told before it: the keys, the broker, that the query means a device.
    A package that was published before is not published again. The exit code is that of `ferryman rollout start`.
    """
    from ferryman.converter.source_text import named, parse_source
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.devices.fleet.rollout.cost import Costs

    how = How(**{key: options.pop(key) for key in How.__annotations__})  # type: ignore[typeddict-item]  # its keys
    url = need_broker(broker)
    plan_of("before/1", "", query, url, options)  # what is wrong with it is wrong before a conversion, too
    keyring = Keyring(key_folders)
    with tempfile.TemporaryDirectory(prefix="ferryman-ship-") as folder:
        package = Path(source)
        converts = not package.is_file() or package.suffix == ".pt2"
        if converts:
            into = output or Path(folder)
            check_conversion(source, how, into)
            _look_ahead(
                how["name"] or named(parse_source(source)), family, repository, keyring, url, devices_file, query
            )
            package = _converted(source, runtime, how, into)
        try:
            with _look(repository) if dry_run else nullcontext(repository) as there:
                naming = {"family": family, "version": version, "new_signature": new_signature}
                release = _published(package, there, keyring, naming, dry_run=dry_run)
                plan = plan_of(release.name, release.package_sha256, query, url, options)
                if dry_run:
                    with Costs(there) as costs:
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
    what = f"{verb} as {release.name}, {grown(done)}" if done.is_new else f"is {release.name} already"
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


def _look_ahead(
    name: str,
    family: str | None,
    repository: Path,
    keyring: Keyring,
    url: str,
    devices_file: Path | None,
    query: str,
) -> None:
    """Fail now where a package could not be published, or reach nobody: a conversion may take long.

    Raises:
        CallerError: no such repository or family, a key is missing, or the query means no device.
        LinkError: the broker cannot be reached.
    """
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.repository.publish import check_publishable
    from ferryman.devices.fleet.rollout.start import known_devices, select

    check_publishable(name, repository, keyring, family)
    select(known_devices(parse_broker(url), devices_file), query)


def _converted(source: str, runtime: tuple[RuntimeName, ...], how: How, folder: Path) -> Path:
    made = run_conversion(source, runtime, how, folder)
    for note in made.notes:
        echo(f"note: {note}", err=True)
    echo(f"{made.manifest.name}: {made.path.stat().st_size:,} bytes", err=True)
    return made.path
