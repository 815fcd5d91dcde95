"""`ferryman update`: on the device, a release from a signed repository: plan, fetch, install."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.options import update_config, update_options
from ferryman.runtime.contracts.errors import DeviceError, FerrymanError, to_wire
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.install_cli import pick_option, root_option
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.agent.update.client import UpdateClient
    from ferryman.devices.agent.update.planner import Plan, Way
    from ferryman.runtime.install import InstallResult


class WayShown(Record):
    """How one payload would come."""

    path: str
    size_bytes: int
    how: str
    """staged, same, delta or chunks."""
    source: str | None
    """The file of a slot that it is, or is made from."""
    wire_bytes: int


class UpdateShown(Record):
    """What `ferryman update --json` prints."""

    release: str
    package_sha256: str
    serves_already: bool
    """Nothing was to be done."""
    variants: tuple[str, ...]
    """Empty: all."""
    plan: tuple[WayShown, ...]
    planned_bytes: int
    """On the wire, for payloads that are not staged."""
    full_bytes: int
    """The same where nothing were here."""
    wire_bytes: int
    """Spent, metadata and retries included."""
    notes: tuple[str, ...] = ()
    install: InstallResult | None = None
    """None: a dry run, or nothing was to be done."""


@click.command()
@click.argument("name", metavar="FAMILY[/VERSION]")
@click.option(
    "--repository",
    metavar="URL",
    envvar="FERRYMAN_REPOSITORY_URL",
    show_envvar=True,
    required=True,
    help="Where it comes from.",
)
@root_option
@pick_option
@click.option("--variant", multiple=True, help="Only this variant; may be given twice [default: all that run here].")
@click.option("--dry-run", is_flag=True, help="Tell how every payload would come, and what that would cost.")
@update_options
@click.option("--force", is_flag=True, help="Install it though it served badly here, or was rolled back by hand.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, of errors too.")
def update(
    name: str,
    repository: str,
    root: Path,
    pick: str,
    variant: tuple[str, ...],
    dry_run: bool,
    force: bool,
    as_json: bool,
    **spending: Any,  # noqa: ANN401  # what `update_options` adds
) -> None:
    """Bring this device a release from a signed repository: the newest of FAMILY, or FAMILY/VERSION.

    Only what is not here is fetched; what was fetched is kept, so the same command goes on after whatever ended it.
    The device must have been given the repository's root: ROOT/trust/root.json.
    """
    from ferryman.devices.agent.update.client import UpdateClient
    from ferryman.runtime.picking import describe_golden

    try:
        with UpdateClient(root, update_config(repository, **spending)) as client:
            shown = _work(client, root, name, variant, pick, dry_run=dry_run, force=force, quiet=as_json)
    except FerrymanError as error:
        if not as_json:
            raise
        echo(encode(to_wire(error)))
        sys.exit(1)
    if as_json:
        echo(encode(shown))
    elif shown.serves_already:
        echo(f"{shown.release} serves already; {shown.wire_bytes} bytes to find out")
    elif shown.install is not None:
        echo(f"{shown.release} is now active in slot {shown.install.active.name}, {shown.wire_bytes} bytes")
        for golden in shown.install.golden:
            echo(f"  {describe_golden(golden)}")


def _work(
    client: UpdateClient,
    root: Path,
    name: str,
    variants: tuple[str, ...],
    pick: str,
    *,
    dry_run: bool,
    force: bool,
    quiet: bool,
) -> UpdateShown:
    from ferryman.runtime.slots import SlotStore
    from ferryman.runtime.staged import install_staged, name_active
    from ferryman.runtime.trial import is_bad

    store = SlotStore(root)
    release = client.check(name)
    state = store.read_state()
    active = state.active
    if active is not None and active.package_sha256 == release.package_sha256 and not variants and store.intact(active):
        if not dry_run:
            name_active(store, release.package_sha256, release.name)
        return UpdateShown(
            release=release.name,
            package_sha256=release.package_sha256,
            serves_already=True,
            variants=active.variants or (),
            plan=(),
            planned_bytes=0,
            full_bytes=0,
            wire_bytes=client.wire_bytes,
        )
    if not force and (bad := is_bad(state, release.package_sha256)):
        raise DeviceError(bad.refusal(release.name))
    plan = client.plan(release, variants)
    if not quiet:
        _tell(plan)
    notes: tuple[str, ...] = ()
    result, progress = None, _Progress(quiet=quiet)
    if not dry_run:
        staged = client.fetch(release, variants, progress=progress)
        notes = staged.notes
        for note in () if quiet else notes:
            echo(f"note: {note}", err=True)
        result = install_staged(
            store,
            staged.directory,
            staged.manifest,
            package_sha256=release.package_sha256,
            release=release.name,
            variants=staged.variants,
            pick=pick,
            force=force,
            progress=progress,
        )
        client.discard(release)
    return UpdateShown(
        release=release.name,
        package_sha256=release.package_sha256,
        serves_already=False,
        variants=plan.variants,
        plan=tuple(map(_shown, plan.ways)),
        planned_bytes=plan.wire_bytes,
        full_bytes=plan.full_bytes,
        wire_bytes=client.wire_bytes,
        notes=notes,
        install=result,
    )


def _shown(way: Way) -> WayShown:
    return WayShown(
        path=way.payload.path,
        size_bytes=way.payload.size_bytes,
        how=way.kind,
        source=str(way.held.path) if way.held else None,
        wire_bytes=way.wire_bytes,
    )


def _tell(plan: Plan) -> None:
    echo(f"{plan.release.name} takes {plan.wire_bytes} bytes on the wire, of {plan.full_bytes} for all of it")
    for way in plan.ways:
        echo(f"  {way.said}")


class _Progress:
    """A line for every step, and for every tenth of it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last: tuple[str, int] = "", 0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = step, 10 * done // total if total else 0
        if now != self._last and not self._quiet:
            echo(f"{step} {done}/{total} bytes" if total else step, err=True)
        self._last = now
