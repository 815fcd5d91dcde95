"""`ferryman rollout`: a release to a fleet, ring by ring, with an eye on how the devices do."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.options import BROKER_VARIABLE, devices_option
from ferryman.publisher import repository_option
from ferryman.rollout_options import (
    DATABASE,
    broker_option,
    database_option,
    plan_of,
    plan_options,
)
from ferryman.runtime.contracts.errors import CallerError, LinkError, StoreError
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from ferryman.devices.fleet.rollout.overview import Overview
    from ferryman.devices.fleet.rollout.records import Plan, Row, Verb
    from ferryman.devices.fleet.rollout.start import Known
    from ferryman.devices.fleet.rollout.store import RolloutStore

LEFT = 6
"""Exit code: the rollout goes on, or can."""
_HANDLED_S = 10.0


class _Group(click.Group):
    """Lists commands in the order in which they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.commands)


@click.group(cls=_Group)
def rollout() -> None:
    """Bring a published release to many devices, ring by ring, and back where they do not do well with it.

    \b
    A QUERY says which devices: terms between commas must all hold, | means or.
      all               every device that the devices file or the broker knows
      kitchen, pi-*     by name; * stands for anything
      site=lab          by label; also site!=lab, and site~la for a part of it
      model~pi 5        by the kind of device
      !kitchen          not

    \b
    The exit code of start, resume, approve, retry and abort:
      0  all devices have it      3  halted      4  ended, some do not have it
      5  aborted                  6  left, and it can go on      1, 2  an error
    """  # noqa: D301  # click wants the very character, where it shall not wrap


@rollout.command()
@click.argument("release")
@click.option("--to", "query", required=True, metavar="QUERY", help="Which devices; see `ferryman rollout --help`.")
@repository_option
@broker_option
@database_option
@devices_option
@plan_options
@click.option("--dry-run", is_flag=True, help="Tell which devices, in which rings, and the bytes they would fetch.")
@click.option("--detach", is_flag=True, help="Drive it in the background; its log lies beside the database.")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
def start(
    release: str,
    query: str,
    repository: Path,
    broker: str | None,
    database: Path,
    devices_file: Path | None,
    *,
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401  # those of plan_options
) -> None:
    """Bring RELEASE (FAMILY/VERSION) to the devices that QUERY means, and follow until the end.

    Interrupt to leave: what was asked stays asked, nobody else is, and `ferryman rollout resume` goes on.
    """
    from ferryman.devices.fleet.rollout.cost import Costs

    url = need_broker(broker)
    with Costs(repository) as costs:
        found = costs.release(release)
        plan = plan_of(found.name, found.package_sha256, query, url, options)
        run(plan, url, database, devices_file, costs=costs if dry_run else None, detach=detach, as_json=as_json)


def run(
    plan: Plan,
    url: str,
    database: Path,
    devices_file: Path | None,
    *,
    costs: Any = None,  # noqa: ANN401  # Costs, whose imports are the publisher's
    detach: bool = False,
    as_json: bool = False,
) -> None:
    """Find the devices, begin the rollout and drive it; with `costs`, only tell what it would do."""
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.rollout.start import begin, cut, known_devices, select
    from ferryman.devices.fleet.rollout.store import RolloutStore

    devices = select(known_devices(parse_broker(url), devices_file), plan.query)
    rows = cut(plan, devices)
    if costs is not None:
        _tell_plan(plan, rows, {one.target.name: one for one in devices}, costs, as_json=as_json)
        return
    with closing(RolloutStore(database)) as store:
        begin(store, plan, rows)
        _go_on(store, plan.id, url, detach=detach, as_json=as_json)


@rollout.command()
@click.argument("rollout_id", metavar="[ID]", required=False)
@database_option
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object, with all devices.")
def status(rollout_id: str | None, database: Path, as_json: bool) -> None:
    """Show how a rollout stands [default: the last one]; ID may be its beginning or its end."""
    from ferryman.devices.fleet.rollout.store import RolloutStore

    with closing(RolloutStore(database, create=False)) as store:
        plan, _ = store.find(rollout_id)
        _tell(_view(store, plan.id), as_json=as_json)


@rollout.command("list")
@database_option
def list_command(database: Path) -> None:
    """List rollouts, the oldest first."""
    from ferryman.devices.fleet.rollout.overview import headline
    from ferryman.devices.fleet.rollout.store import RolloutStore

    with closing(RolloutStore(database, create=False)) as store:
        damaged: StoreError | None = None
        for rollout_id in store.ids():
            try:
                echo(headline(_view(store, rollout_id)))
            except StoreError as error:
                echo(f"{rollout_id}  is damaged")
                damaged = error
        if damaged is not None:
            raise damaged


@rollout.command()
@click.argument("rollout_id", metavar="[ID]", required=False)
@database_option
def log(rollout_id: str | None, database: Path) -> None:
    """Show who did what and when, and what the rollout did by itself and why."""
    from ferryman.devices.fleet.rollout.store import RolloutStore

    with closing(RolloutStore(database, create=False)) as store:
        plan, _ = store.find(rollout_id)
        for entry in store.log(plan.id):
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at_ns / 1e9))
            device = f" {entry.device}:" if entry.device else ""
            why = f" ({entry.why})" if entry.why else ""
            echo(f"{at}  {entry.who}:{device} {entry.what}{why}")


def _verb(verb: Verb, help_text: str) -> Callable[..., None]:
    """A command that asks something of a rollout, and drives it on where nobody does."""

    @rollout.command(verb, help=help_text)
    @click.argument("rollout_id", metavar="[ID]", required=False)
    @broker_option
    @database_option
    @click.option("--why", default="", help="For the audit log.")
    @click.option("--detach", is_flag=True, help="Drive it in the background.")
    @click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
    def command(
        rollout_id: str | None, broker: str | None, database: Path, why: str, *, detach: bool, as_json: bool
    ) -> None:
        ask(verb, rollout_id, broker, database, why, detach=detach, as_json=as_json)

    return command


def ask(
    verb: Verb,
    rollout_id: str | None,
    broker: str | None,
    database: Path,
    why: str = "",
    *,
    detach: bool = False,
    as_json: bool = False,
) -> None:
    """Ask it of whoever drives the rollout; where nobody does, do it here."""
    from ferryman.devices.fleet.rollout.engine import check_verb
    from ferryman.devices.fleet.rollout.start import whoami
    from ferryman.devices.fleet.rollout.store import RolloutStore

    with closing(RolloutStore(database, create=False)) as store:
        plan, progress = store.find(rollout_id)
        with store.driving(plan.id) as alone:
            pass
        going = verb == "resume" and progress.phase != "paused"
        if alone and verb != "pause":
            need_broker(broker)
        if not (alone and going):  # there is nothing to ask, only to drive
            check_verb(plan, progress, verb)
            store.ask(plan.id, verb, whoami(), why)
        if not alone:
            _wait_handled(store, plan.id, verb)
            _tell(_view(store, plan.id), as_json=as_json)
        elif verb == "pause":
            _pause_here(store, plan.id)
            _tell(_view(store, plan.id), as_json=as_json)
        else:
            _go_on(store, plan.id, need_broker(broker), detach=detach, as_json=as_json, verb=verb)


_verb("pause", "Ask no further device; those that were asked go on. ID is that of `ferryman rollout list`.")
_verb("resume", "Go on with a rollout that was paused, or that nobody drives any more.")
_verb("approve", "Let the next ring of a --manual rollout go.")
_verb("retry", "Ask those devices again that failed, and no others; also what they hold for bad.")
_verb("abort", "End it: devices that have not confirmed the release go back to what they had.")
_verb("roll-back", "End it, or take one back that is done: all its devices go back to what they had.")


def _wait_handled(store: RolloutStore, rollout_id: str, verb: Verb) -> None:
    deadline = time.monotonic() + _HANDLED_S
    while store.requests(rollout_id):
        if time.monotonic() > deadline:
            raise LinkError(
                f"the process that drives rollout {rollout_id} has not taken up the request to {verb} within "
                f"{_HANDLED_S:g} s; it will, once its broker is there"
            )
        time.sleep(0.1)
    last = [one for one in store.log(rollout_id) if one.what.startswith(verb)][-1:]
    if last and last[0].what.endswith("was refused"):
        raise CallerError(last[0].why)


def _pause_here(store: RolloutStore, rollout_id: str) -> None:
    """Nobody drives it: a note in the file is all there is to do."""
    from ferryman.devices.fleet.rollout.engine import Engine

    with store.driving(rollout_id):
        plan, progress = store.find(rollout_id)
        engine = Engine(plan, progress, store.rows(plan.id))
        requests = store.requests(rollout_id)
        problem: CallerError | None = None
        for one in requests:
            try:
                engine.request(one.verb, one.who, one.why, time.time_ns())
            except CallerError as error:
                engine.refuse(one.verb, one.who, str(error), time.time_ns())
                problem = error
        if (changes := engine.take()) is not None:
            store.commit(plan, changes, requests)
        if problem is not None:
            raise problem


def _go_on(
    store: RolloutStore, rollout_id: str, url: str, *, detach: bool, as_json: bool, verb: Verb | None = None
) -> None:
    """Drive a rollout to its end, here or in the background; ends the process with the rollout's exit code."""
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.rollout.drive import drive
    from ferryman.rollout_show import Show

    if detach:
        _detach(store.path, rollout_id, url)
        return
    begun = len(store.log(rollout_id))
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Show() as show:
            plan, _ = drive(store, rollout_id, parse_broker(url), stop=stop, watch=show)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    refused = [one for one in store.log(plan.id)[begun:] if one.what == f"{verb} was refused"]
    view = _view(store, plan.id)
    _tell(view, as_json=as_json)
    if refused:
        raise CallerError(refused[-1].why)
    if view.exit_code == LEFT:
        echo(f"left; go on with: {_command('resume', plan.id, store.path)}", err=True)
    sys.exit(view.exit_code)


def _detach(database: Path, rollout_id: str, url: str) -> None:
    log_file = database.with_name(f"{database.name}.{rollout_id}.log")
    words = ("-m", "ferryman.cli", "rollout", "resume", rollout_id, "--database", str(database))
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, BROKER_VARIABLE: url},  # not among the words, which all may read
        )
    echo(f"rollout {rollout_id} is driven by process {process.pid}; its log: {log_file}")
    echo(f"see: {_command('status', rollout_id, database)}", err=True)


def _command(verb: str, rollout_id: str, database: Path) -> str:
    where = "" if database == DATABASE else f" --database {shlex.quote(str(database))}"
    return f"ferryman rollout {verb} {rollout_id}{where}"


def need_broker(broker: str | None) -> str:
    """The URL.

    Raises:
        CallerError: it was not given.
    """
    if not broker:
        raise CallerError(f"--broker is missing, or {BROKER_VARIABLE}: mqtt://[user:password@]HOST[:PORT]")
    return broker


def _view(store: RolloutStore, rollout_id: str) -> Overview:
    from ferryman.devices.fleet.rollout.overview import overview

    plan, progress = store.find(rollout_id)
    return overview(plan, progress, store.rows(plan.id), time.time_ns())


def _tell(view: Overview, *, as_json: bool) -> None:
    from ferryman.devices.fleet.rollout.overview import table
    from ferryman.runtime.contracts.record import encode

    echo(encode(view) if as_json else table(view))


def _tell_plan(plan: Plan, rows: list[Row], known: dict[str, Known], costs: Any, *, as_json: bool) -> None:  # noqa: ANN401  # see run
    from ferryman.devices.fleet.rollout.preview import describe, preview
    from ferryman.runtime.contracts.record import encode

    found = preview(plan, rows, known, costs)
    echo(encode(found) if as_json else describe(found))
