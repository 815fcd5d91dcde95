"""`ferryman keys`, `publish`, `withdraw`, `repository` and `serve`: the publisher's side of updates over the air."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.options import PATH

if TYPE_CHECKING:
    from ferryman.devices.fleet.repository.keys import Keyring
    from ferryman.devices.fleet.repository.manage import Dealt
    from ferryman.devices.fleet.repository.publish import Published

C = TypeVar("C", bound=Callable[..., Any])
_DUE = 3
"""Exit code: something is not as it should be, and a person has to look."""


def _repository_option(command: C) -> C:
    return click.option(
        "--repository",
        type=PATH,
        envvar="FERRYMAN_REPOSITORY",
        show_envvar=True,
        required=True,
        help="Folder of the repository; any web server can serve it.",
    )(command)


def _keys_option(command: C) -> C:
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
@_repository_option
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
        _now(),
        families=family,
        root_keys=root_keys,
        threshold=threshold,
        offline=offline,
    )
    click.echo(f"{repository}: {', '.join(roles.names)}")
    click.echo(f"keys of root: {', '.join(map(str, offline or [directory]))}; of the others: {directory}")
    click.echo("give devices the root: ferryman keys root; sign again in time: ferryman keys refresh, once a day")
    _warn_of_alone(Dealt.of(root_keys, threshold, offline or [directory]))


@keys.command("add-family")
@click.argument("family")
@_repository_option
@_keys_option
def add_family_command(family: str, repository: Path, key_folders: tuple[Path, ...]) -> None:
    """Give FAMILY a key of its own; takes the keys of targets, snapshot and timestamp."""
    from ferryman.devices.fleet.repository.manage import add_family

    add_family(repository, family, _keyring(key_folders), _now())
    click.echo(f"family {family} has a key in {key_folders[0]}")


@keys.command("rotate")
@click.argument("role", nargs=-1, required=True)
@_repository_option
@_keys_option
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
        repository, role, _keyring(key_folders), _now(), root_keys=root_keys, threshold=threshold, offline=offline
    )
    for name, one in done.items():
        for key_id, folder in one.made:
            click.echo(f"{name}: new key {key_id[:16]} in {folder}")
        verb = "counts; delete its file" if len(one.gone) == 1 else "count; delete their files"
        click.echo(f"{name}: {', '.join(key_id[:16] for key_id in one.gone)} no longer {verb}")
        _warn_of_alone(one.dealt)


@keys.command("refresh")
@_repository_option
@_keys_option
def refresh_command(repository: Path, key_folders: tuple[Path, ...]) -> None:
    """Sign again what expires soon, and the timestamp in any case; for cron, once a day.

    The exit code is 3 where something else expires soon whose keys are not here, such as root's.
    """
    from ferryman.devices.fleet.repository.manage import refresh

    done = refresh(repository, _keyring(key_folders), _now())
    click.echo(f"signed: {', '.join(done.signed)}")
    if done.due:
        click.echo(f"due, and their keys are not here: {', '.join(done.due)}", err=True)
        raise SystemExit(_DUE)


@keys.command("show")
@_repository_option
def show_command(repository: Path) -> None:
    """Show every role: version, keys, how many must sign, and when it expires."""
    from ferryman.devices.fleet.repository.manage import show

    now = _now()
    for status in show(repository, now):
        left = (status.expires - now) / timedelta(days=1)
        when = f"{status.expires:%Y-%m-%d}, " + (f"in {left:.0f} days" if left > 0 else "EXPIRED")
        click.echo(
            f"{status.role:<12} version {status.version}, expires {when}{'  <- sign again' if status.soon else ''}"
        )
        click.echo(f"{'':<12} {status.threshold} of {len(status.key_ids)} keys sign:")
        for key_id in status.key_ids:
            click.echo(f"{'':<14} {key_id[:16]}")


@keys.command("root")
@_repository_option
@click.option("-o", "--output", type=click.File("wb"), default="-", help="File to write [default: standard output].")
def root_command(repository: Path, output: Any) -> None:  # noqa: ANN401  # a click file
    """Write out the root that a device is provisioned with: it trusts this, and what follows from it."""
    from ferryman.devices.fleet.repository.manage import trusted_root

    output.write(trusted_root(repository))


@click.command()
@click.argument("package", type=PATH)
@_repository_option
@_keys_option
@click.option("--family", help="Of models [default: the package's name, or the only family there is].")
@click.option("--version", help="Name of the release within its family [default: the next number].")
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
    keyring = _keyring(key_folders)
    options: dict[str, Any] = {"family": family, "version": version, "delta_from": delta_from, "base": base}
    if adapter is not None:
        from ferryman.devices.fleet.repository.adapted import adapter_package

        output = output or package.with_name(f"{package.stem}-adapted{package.suffix}")
        merged = adapter_package(package, adapter, output)
        options |= {"hinting": merged.hinting, "base": package}
        package = merged.package
        click.echo(f"{package}: factors of {merged.factor_bytes:,} bytes; keep it for the next update", err=True)
    if lossy is not None and base is not None:
        from ferryman.devices.fleet.repository.lossy import lossy_package

        output = output or package.with_name(f"{package.stem}-lossy{package.suffix}")
        made = lossy_package(base, package, lossy, output, sqnr_min_db=min_sqnr)
        options |= {"lossy": made.lossy, "hinting": made.hinting}
        package = made.package
        click.echo(
            f"{package}: {made.lossy.sqnr_min_db:.1f} dB on the golden vectors, {made.lossy.relative_error:.3f} of the "
            f"update lost, weights in 1/{made.lossy.ratio:.0f} of their bytes; keep it for the next update",
            err=True,
        )
    with told_steps() as progress:
        done = run(package, repository, keyring, _now(), progress=progress, **options)
    if not done.is_new:
        click.echo(f"{done.release.name} is this package already; nothing was changed")
        return
    for line in _ways(done):
        click.echo(line)
    click.echo(f"published {done.release.name}: {done.new_bytes:,} bytes for {done.release.package_bytes:,}")
    if options["base"] and not done.base:
        click.echo(
            f"{options['base']} is no release of this repository: only devices that have it from a push take the delta "
            "from it; others fetch pieces",
            err=True,
        )


@click.command()
@click.argument("release")
@_repository_option
@_keys_option
def withdraw(release: str, repository: Path, key_folders: tuple[Path, ...]) -> None:
    """Take RELEASE (FAMILY/VERSION) back: devices do not find it any more. What has it keeps it."""
    from ferryman.devices.fleet.repository.publish import withdraw as run

    run(release, repository, _keyring(key_folders), _now())
    click.echo(f"withdrew {release}; its bytes go by ferryman repository prune")


@click.group()
def repository() -> None:
    """List, check and tidy up a repository."""


@repository.command("list")
@_repository_option
def list_command(repository: Path) -> None:
    """List releases, newest first in each family."""
    from ferryman.devices.fleet.repository.metadata import read_roles
    from ferryman.devices.fleet.repository.releases import family_releases, read_releases

    roles = read_roles(repository)
    releases = read_releases(repository, roles)
    for family in roles.families:
        its = family_releases(releases, family)
        if not its:
            click.echo(f"{family}: no releases")
        for one in its:
            at = datetime.fromtimestamp(one.published_at_ns / 1e9, UTC)
            stored = sum(payload.recipes[0].stored_bytes for payload in one.payloads)
            deltas = len({recipe.base for payload in one.payloads for recipe in payload.recipes if recipe.base})
            click.echo(f"{one.name}  {at:%Y-%m-%d %H:%M} UTC{f'  lossy: {one.lossy.codec}' if one.lossy else ''}")
            click.echo(f"  {one.package_name}  {one.package_sha256[:12]}")
            click.echo(f"  {one.package_bytes:,} bytes, {stored:,} on the wire, deltas from {deltas} files")


@repository.command("check")
@_repository_option
def check_command(repository: Path) -> None:
    """Verify a whole repository: every signature, every hash, every way to make a file.

    The exit code is 3 where something is wrong.
    """
    from ferryman.devices.fleet.repository.upkeep import check

    with told_steps() as progress:
        wrong = check(repository, progress)
    for one in wrong:
        click.echo(one)
    if wrong:
        raise SystemExit(_DUE)
    click.echo(f"{repository} is whole")


@repository.command("prune")
@_repository_option
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

    done = prune(repository, _now(), timedelta(days=grace))
    click.echo(f"deleted {done.files} files, {done.bytes} bytes")


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
        click.echo(f"serving {repository} at {server.url}", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


def _keyring(folders: tuple[Path, ...]) -> Keyring:
    from ferryman.devices.fleet.repository.keys import Keyring

    return Keyring(folders)


@contextlib.contextmanager
def told_steps() -> Iterator[Callable[[str], None]]:
    """Steps on one line of a terminal, which is empty again after them; elsewhere none are told."""
    if not sys.stderr.isatty():
        yield lambda _step: None
        return
    width = shutil.get_terminal_size().columns - 1
    try:
        yield lambda step: click.echo(f"\r\x1b[K{step[:width]}", nl=False, err=True)
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


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


def _warn_of_alone(dealt: Dealt) -> None:
    """Say which folder has enough of root's keys by itself."""
    for folder, count in dealt.alone.items():
        click.echo(
            f"warning: {folder} holds {count} of root's {len(dealt.folders)} keys, and {dealt.threshold} sign: whoever "
            f"has that folder alone owns the fleet. To need several, deal them to {dealt.folders_needed} folders or "
            "more (one --offline each; now: ferryman keys rotate root)",
            err=True,
        )


def _now() -> datetime:
    return datetime.now(UTC)
