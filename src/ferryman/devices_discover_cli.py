"""`ferryman devices discover`: devices that are not in the devices file yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ferryman.devices_entry_cli import where
from ferryman.options import Seconds, devices_option
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.say import echo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ferryman.devices.fleet.announced import Announced
    from ferryman.runtime.contracts.messages import Status

_USER = "ferryman"
_QUEUE = 1000
"""mosquitto's `max_queued_messages` where nobody set it."""


@click.command()
@click.option("--mqtt", metavar="URL", help="Instead of this network: devices whose agents are known at this broker.")
@click.option(
    "--database", metavar="FILE|URL", help="With --mqtt: and those that the store of `ferryman collect` knows."
)
@click.option(
    "--seconds",
    type=Seconds(),
    default=3.0,
    show_default=True,
    help="How long to listen; with --mqtt: until no other device came for so long.",
)
@click.option(
    "--add",
    "wanted",
    multiple=True,
    metavar="HOST[=NAME]|QUERY",
    help="Write this host into the devices file; with --mqtt, all that the query means and the file has not.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="With --add: what queries find them by.")
@click.option("--user", help=f"With --add HOST: who pushes there [default: {_USER}].")
@click.option("--broker", metavar="URL", help="With --add HOST: of the broker its agent talks to.")
@click.option("--interface", "interfaces", multiple=True, metavar="ADDRESS", help="Ask on this one [default: all].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a host or device and line.")
@devices_option
def discover(
    mqtt: str | None,
    database: str | None,
    seconds: float,
    wanted: tuple[str, ...],
    labels: tuple[str, ...],
    user: str | None,
    broker: str | None,
    interfaces: tuple[str, ...],
    as_json: bool,
    devices_file: Path | None,
) -> None:
    """Find devices: on this network (mDNS), or with --mqtt those that are reached through their agents alone.

    What is shown is what strangers say: nothing is trusted, and nothing written without --add. The host of that name
    is written so as to be reached over SSH, whose host key is not trusted by that. With --mqtt, what the query means
    (all, 'shelf-*', label=VALUE, model~TEXT) is written as `ferryman devices add NAME --mqtt URL` would, all of them
    or none; devices that the file has stay as they are.
    """
    from ferryman.devices.labels import parse_labels

    if labels and not wanted:
        raise click.UsageError("--label is of what --add writes")
    given = parse_labels(labels)
    if mqtt is None:
        if database is not None:
            raise click.UsageError("--database goes with --mqtt: where the devices of the store are reached")
        _on_network(seconds, wanted, given, user or _USER, broker, interfaces, devices_file, as_json=as_json)
        return
    if broker is not None:
        raise click.UsageError("--mqtt names the broker already; leave --broker out")
    if user is not None or interfaces:
        raise click.UsageError("--user and --interface are of devices on this network; leave them out with --mqtt")
    _at_broker(mqtt, database, seconds, wanted, given, devices_file, as_json=as_json)


def _on_network(
    seconds: float,
    wanted: tuple[str, ...],
    labels: dict[str, str],
    user: str,
    broker: str | None,
    interfaces: tuple[str, ...],
    devices_file: Path | None,
    *,
    as_json: bool,
) -> None:
    from ferryman.devices.fleet.discover import discover as listen
    from ferryman.devices.fleet.discover import settings_of
    from ferryman.devices.fleet.inventory_edit import add_device
    from ferryman.devices_show import show_discovery

    found = listen(seconds, interfaces=interfaces)
    show_discovery(found, as_json=as_json)
    hosts = {one.host: one for one in found.hosts}
    for word in wanted:
        host, _, name = word.partition("=")
        if host not in hosts:
            raise CallerError(f"--add {host}: no such host answered; there are: {', '.join(hosts) or 'none'}")
        name = name or hosts[host].suggested
        settings = {**settings_of(hosts[host], user=user, broker=broker), **({"labels": labels} if labels else {})}
        made = add_device(name, settings, devices_file)
        echo(f"{name}: {made.address}, written to {where(devices_file)}; see `ferryman devices trust {name}`", err=True)


def _at_broker(
    url: str,
    database: str | None,
    seconds: float,
    wanted: tuple[str, ...],
    labels: dict[str, str],
    devices_file: Path | None,
    *,
    as_json: bool,
) -> None:
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.announced import join, listen, marked, meant
    from ferryman.devices.fleet.inventory import read_devices
    from ferryman.devices.fleet.inventory_edit import add_devices
    from ferryman.devices.fleet.rollout.query import parse_query
    from ferryman.devices_show import show_announced

    broker, queries = parse_broker(url), [parse_query(word) for word in wanted]
    listed = {} if devices_file is not None and not devices_file.exists() else read_devices(devices_file)
    stored = () if database is None else _stored(database)
    found = join(listen(broker, seconds), stored)
    devices = marked(found.devices, listed)
    show_announced(devices, as_json=as_json)
    if found.left_out:
        echo(f"{found.left_out:,} left out: no status of a device, of no name for one, too long, or too many", err=True)
    if not found.ended:
        echo("others kept coming and were not waited for", err=True)
    if len(found.devices) > _QUEUE:
        echo(
            f"a mosquitto that was not told to queue more than {_QUEUE:,} messages keeps what comes last from a slow "
            "reader: there may be more (firmware_scripts/mosquitto-ferryman.conf raises that)",
            err=True,
        )
    if queries:
        new, had = _parted(meant(devices, queries))
        if new:
            add_devices({name: {"broker": url, **({"labels": labels} if labels else {})} for name in new}, devices_file)
            echo(f"{_counted(new)} written to {where(devices_file)}", err=True)
        if had:
            echo(f"{_counted(had)} in {where(devices_file)} already, left as it says", err=True)


def _stored(database: str) -> list[Status]:
    """What a collector's store has of devices, and whether they are there."""
    import msgspec

    from ferryman.devices.fleet.query.left_out import LeftOut
    from ferryman.devices.fleet.query.who import who
    from ferryman.devices.fleet.store.store import open_store

    left_out = LeftOut()
    store = open_store(database, create=False)
    try:
        known = who(store, None, None, left_out).known
    finally:
        store.close()
    for words in left_out.words():
        echo(f"left out: {words}", err=True)
    return [msgspec.structs.replace(one.status, online=one.online) for one in known.values()]


def _parted(devices: Iterable[Announced]) -> tuple[list[str], list[str]]:
    """Names that the devices file does not know, and those that it does."""
    new: list[str] = []
    had: list[str] = []
    for one in devices:
        (had if one.listed else new).append(one.device)
    return new, had


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names):,} devices"
