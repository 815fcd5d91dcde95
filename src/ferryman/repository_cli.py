"""`ferryman publish`, `withdraw`, `repository` and `serve`: the publisher's side of updates over the air."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.options import PATH
from ferryman.publisher import (
    DUE,
    grown,
    keyring_of,
    keys_option,
    release_options,
    repository_option,
    told_steps,
    utc_now,
)
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.fleet.repository.publish import Published

C = TypeVar("C", bound=Callable[..., Any])


@click.command()
@click.argument("package", type=PATH)
@repository_option
@keys_option
@release_options
@click.option(
    "--delta-from",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="Make deltas against so many newest releases of the family (and against what --base or --adapter is from).",
)
@click.option(
    "--lossy",
    metavar="CODEC",
    help="Publish something less exact that takes far fewer bytes, such as fedzip; it must hold --min-sqnr on the "
    "golden vectors, and the release states its error [default: exact].",
)
@click.option(
    "--base", type=PATH, help="With --lossy: the package that devices have; of a second update, the first's -o."
)
@click.option(
    "--adapter",
    type=PATH,
    metavar="FILE",
    help="Publish what PACKAGE becomes with these adapters merged into it: devices that have PACKAGE fetch their "
    "factors (see `save_adapters` in docs/ota/models.md).",
)
@click.option(
    "--min-sqnr",
    type=click.FloatRange(5, 200),
    default=20.0,
    show_default=True,
    help="With --lossy: the bar in dB against the model's own answers.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="With --lossy or --adapter: where the package goes that devices will have; the next update's base [default: "
    "beside PACKAGE, -lossy or -adapted].",
)
def publish(
    package: Path,
    repository: Path,
    key_folders: tuple[Path, ...],
    family: str | None,
    version: str | None,
    delta_from: int,
    lossy: str | None,
    base: Path | None,
    adapter: Path | None,
    min_sqnr: float,
    output: Path | None,
    *,
    new_signature: bool,
) -> None:
    """Publish PACKAGE: pieces nobody has yet, deltas from what devices may have, and signed metadata.

    Every way to make a file of the package is tried before the release is signed. Stopped at any moment, the
    repository is what it was; run it again.
    """
    from ferryman.devices.fleet.repository.publish import publish as run

    if (lossy is None) != (base is None):
        raise click.UsageError("--lossy and --base go together: a lossy update is one from what devices have")
    if lossy is not None and adapter is not None:
        raise click.UsageError("--lossy and --adapter do not go together; publish one after the other")
    keyring = keyring_of(key_folders)
    options: dict[str, Any] = {"family": family, "version": version, "new_signature": new_signature}
    options |= {"delta_from": delta_from, "base": base}
    if adapter is not None:
        from ferryman.devices.fleet.repository.adapted import adapter_package

        output = output or package.with_name(f"{package.stem}-adapted{package.suffix}")
        merged = adapter_package(package, adapter, output)
        options |= {"hinting": merged.hinting, "base": package}
        package = merged.package
        echo(f"{package}: factors of {merged.factor_bytes:,} bytes; keep it for the next update", err=True)
    if lossy is not None and base is not None:
        from ferryman.devices.fleet.repository.lossy import lossy_package

        output = output or package.with_name(f"{package.stem}-lossy{package.suffix}")
        made = lossy_package(base, package, lossy, output, sqnr_min_db=min_sqnr)
        options |= {"lossy": made.lossy, "hinting": made.hinting}
        package = made.package
        echo(
            f"{package}: {made.lossy.sqnr_min_db:.1f} dB on the golden vectors, {made.lossy.relative_error:.3f} of the "
            f"update lost, weights in 1/{made.lossy.ratio:.0f} of their bytes; keep it for the next update",
            err=True,
        )
    with told_steps() as progress:
        done = run(package, repository, keyring, utc_now(), progress=progress, **options)
    if not done.is_new:
        echo(f"{done.release.name} is this package already; nothing was changed")
        return
    for line in _ways(done):
        echo(line)
    echo(f"published {done.release.name}, a package of {done.release.package_bytes:,} bytes: {grown(done)}")
    if options["base"] and not done.base:
        echo(
            f"{options['base']} is no release of this repository: only devices that have it from a push take the delta "
            "from it; others fetch pieces",
            err=True,
        )


@click.command()
@click.argument("release")
@repository_option
@keys_option
def withdraw(release: str, repository: Path, key_folders: tuple[Path, ...]) -> None:
    """Take RELEASE (FAMILY/VERSION) back: devices do not find it any more. What has it keeps it."""
    from ferryman.devices.fleet.repository.publish import withdraw as run

    run(release, repository, keyring_of(key_folders), utc_now())
    echo(f"withdrew {release}; its bytes go by ferryman repository prune")


@click.group()
def repository() -> None:
    """List, check and tidy up a repository."""


@repository.command("list")
@repository_option
def list_command(repository: Path) -> None:
    """List releases, newest first in each family."""
    from ferryman.devices.fleet.repository.metadata import read_roles
    from ferryman.devices.fleet.repository.releases import family_releases, read_releases

    roles = read_roles(repository)
    releases = read_releases(repository, roles)
    for family in roles.families:
        its = family_releases(releases, family)
        if not its:
            echo(f"{family}: no releases")
        for one in its:
            at = datetime.fromtimestamp(one.published_at_ns / 1e9, UTC)
            stored = sum(payload.recipes[0].stored_bytes for payload in one.payloads)
            deltas = len({recipe.base for payload in one.payloads for recipe in payload.recipes if recipe.base})
            echo(f"{one.name}  {at:%Y-%m-%d %H:%M} UTC{f'  lossy: {one.lossy.codec}' if one.lossy else ''}")
            echo(f"  {one.package_name}  {one.package_sha256[:12]}")
            echo(f"  {one.package_bytes:,} bytes, {stored:,} on the wire, deltas from {deltas} files")


@repository.command("check")
@repository_option
def check_command(repository: Path) -> None:
    """Verify a whole repository: every signature, every hash, every way to make a file.

    The exit code is 3 where something is wrong.
    """
    from ferryman.devices.fleet.repository.upkeep import check

    with told_steps() as progress:
        wrong = check(repository, progress)
    for one in wrong:
        echo(one)
    if wrong:
        raise SystemExit(DUE)
    echo(f"{repository} is whole")


@repository.command("prune")
@repository_option
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="Leave what was written or withdrawn within so many days: a device may be at it.",
)
def prune_command(repository: Path, grace: float) -> None:
    """Delete packs, releases and old metadata that nobody names."""
    from ferryman.devices.fleet.repository.upkeep import prune

    done = prune(repository, utc_now(), timedelta(days=grace))
    echo(f"deleted {done.files} files, {done.bytes} bytes")


@click.command()
@click.argument("repository", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one.")
def serve(repository: Path, host: str, port: int) -> None:
    """Serve REPOSITORY over HTTP, until interrupted; enough for a small fleet.

    Signatures protect what is served, so plain HTTP does; for TLS, many devices or the internet, let a web server or
    an object store serve the same folder.
    """
    from ferryman.devices.fleet.repository.serve import RepositoryServer

    with RepositoryServer(repository, host, port) as server:
        echo(f"serving {repository} at {server.url}", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            echo("stopped", err=True)


def _ways(done: Published) -> Iterator[str]:
    """The best way to each artifact, and to all else together."""
    others = []
    for payload in done.release.payloads:
        whole = payload.recipes[0].index.length + payload.recipes[0].stored_bytes
        best, of = min((whole, ""), done.best.get(payload.path, (whole, "")))
        if payload.path.startswith("artifacts/"):
            delta = f", {best:,} from {of}" if of else ", no delta"
            yield f"{payload.path}: {payload.size_bytes:,} bytes, {whole:,} on the wire{delta}"
        else:
            others.append(best)
    yield f"{len(others)} other files: {sum(others):,} bytes on the wire at best"
