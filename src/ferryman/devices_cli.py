"""`ferryman devices`: which devices there are, what they are, and how they are reached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.devices_discover_cli import discover
from ferryman.devices_entry_cli import remove, rename, show, where
from ferryman.options import PATH, Seconds, devices_option, matching
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.say import echo, in_place

if TYPE_CHECKING:
    from ferryman.devices.fleet.facts.probe import Probe
    from ferryman.devices.fleet.inventory import Device


@click.group()
def devices() -> None:
    """The devices file, what its devices are, and what they could run.

    \b
    A query names devices: all, NAME (with *), label=VALUE, label~TEXT,
    !term; `,` for and, `|` for or. `name` and `model` are labels of every
    device, `model` once it was probed.
    """  # noqa: D301  # click wants the very character, where it shall not wrap


@devices.command()
@click.argument("name")
@click.option("--host", help="Name or address of its SSH server.")
@click.option("--user", help="Who pushes there and owns its root.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of its SSH server [default: 22].")
@click.option("--key", help="Private key file [default: the SSH agent's keys and the usual ones].")
@click.option("--known-hosts", help="File with its host key [default: ~/.ssh/known_hosts].")
@click.option("--adb", metavar="SERIAL", help="Instead of --host: a phone, as `adb devices` lists it.")
@click.option("--mqtt", metavar="URL", help="Instead of --host: reached through its agent at this broker alone.")
@click.option("--broker", metavar="URL", help="Of the broker its agent talks to.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="What queries find it by.")
@click.option("--root", help="Folder of slots and outbox there.")
@click.option("--command", help="How to call ferryman there.")
@click.option("--replace", is_flag=True, help="Let these settings take the place of those of a device of that name.")
@click.option("--trust", "fingerprint", metavar="SHA256:...", help="Trust the SSH host key with this fingerprint.")
@click.option("--probe", "ask", is_flag=True, help="Ask it at once what it is.")
@click.option("--timeout", type=Seconds(), default=20.0, show_default=True, help="Seconds for each step of asking.")
@devices_option
def add(
    name: str,
    adb: str | None,
    mqtt: str | None,
    labels: tuple[str, ...],
    replace: bool,
    fingerprint: str | None,
    ask: bool,
    timeout: float,
    devices_file: Path | None,
    **given: str | int | None,
) -> None:
    """Write NAME into the devices file, which keeps its comments. Nothing is asked of the device without --probe.

    NAME is the device's own, too: the agent's --device.
    """
    from ferryman.devices.fleet.inventory import SshDevice
    from ferryman.devices.fleet.inventory_edit import add_device
    from ferryman.devices.labels import parse_labels

    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    _check_way(name, settings, adb, mqtt)
    if adb is not None:
        settings["adb"] = adb
    if mqtt is not None:
        settings["broker"] = mqtt
    if labels:
        settings["labels"] = parse_labels(labels)
    made = add_device(name, settings, devices_file, replace=replace)
    echo(f"{name}: {made.address}, written to {where(devices_file)}")
    if fingerprint is not None:
        _trust(made, fingerprint)
    elif isinstance(made, SshDevice) and not ask:
        echo(f"its host key must be known: `ferryman devices trust {name}` shows it, and how to compare it", err=True)
    if ask:
        _probe_and_show([made], timeout, package=None, as_json=False)


def _check_way(name: str, settings: dict[str, Any], adb: str | None, mqtt: str | None) -> None:
    ways = [
        way for way, value in (("--host", settings.get("host")), ("--adb", adb), ("--mqtt", mqtt)) if value is not None
    ]
    if len(ways) != 1 and not (name == "local" and not ways):
        raise click.UsageError(
            f"one of --host, --adb and --mqtt says how {name} is reached, found {' and '.join(ways) or 'none'}"
        )
    if ways == ["--host"] and "user" not in settings:
        raise click.UsageError("--host needs --user: who pushes there and owns its root")
    over_ssh = [key for key in ("user", "port", "key", "known_hosts") if key in settings]
    if ways != ["--host"] and over_ssh:
        raise click.UsageError(
            f"{', '.join('--' + key.replace('_', '-') for key in over_ssh)}: of SSH, which needs --host"
        )
    if mqtt is not None and "broker" in settings:
        raise click.UsageError("--mqtt names the broker already; leave --broker out")


@devices.command()
@click.argument("who", nargs=-1, required=True, metavar="NAME|QUERY... NAME=VALUE|NAME-...")
@devices_option
def label(who: tuple[str, ...], devices_file: Path | None) -> None:
    """Set labels of devices in the devices file (site=lab), and take some away (site-): of all of them, or of none.

    The first word says which devices, and so does every word up to the first change.
    """
    from ferryman.devices.fleet.inventory_edit import label_devices
    from ferryman.devices.labels import parse_labels

    split = next((at for at, word in enumerate(who) if at and ("=" in word or word.endswith("-"))), None)
    if split is None:
        raise click.UsageError(f"what is to change about {' '.join(who)}? NAME=VALUE sets a label, NAME- takes it away")
    change = who[split:]
    away = tuple(one[:-1] for one in change if "=" not in one and one.endswith("-"))
    set_ = parse_labels(one for one in change if "=" in one or not one.endswith("-"))
    names = [one.name for one in matching(who[:split], devices_file)]
    for made in label_devices(names, set_, away, devices_file):
        echo(f"{made.name}: {', '.join(f'{k}={v}' for k, v in sorted(made.labels.items())) or 'no labels'}")


@devices.command("list")
@click.argument("query", default="all")
@click.option("--probe", "ask", is_flag=True, help="Ask each of them first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--timeout", type=Seconds(), default=20.0, show_default=True, help="Seconds for each step of asking.")
@devices_option
def list_(query: str, ask: bool, as_json: bool, timeout: float, devices_file: Path | None) -> None:
    """Show devices, how they are reached, and what was last found out about them."""
    from ferryman.devices.fleet.facts.listing import rows
    from ferryman.devices_show import show_failures, show_json, show_table

    found = matching((query,), devices_file, unlisted=True)
    failed: list[Probe] = []
    if ask:
        failed = [one for one in _probe(found, timeout) if one.failed]
    (show_json if as_json else show_table)(rows(found))
    show_failures(failed)
    _fail(failed, len(found))


@devices.command()
@click.argument("query", nargs=-1, required=True, metavar="NAME|QUERY...")
@click.option("--package", type=PATH, help="Also tell whether this package would run there, and fit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a device and line.")
@click.option("--timeout", type=Seconds(), default=20.0, show_default=True, help="Seconds for each step of asking.")
@devices_option
def probe(
    query: tuple[str, ...], package: Path | None, as_json: bool, timeout: float, devices_file: Path | None
) -> None:
    """Ask devices what they are, over every way that reaches them, and tell what they could run.

    A device without ferryman is asked through its shell. Exit code 1 if any way of any device failed.
    """
    if package is not None:
        from ferryman.runtime.package import open_package

        open_package(package).close()  # what is wrong with it is wrong for all of them
    _probe_and_show(matching(query, devices_file, unlisted=True), timeout, package=package, as_json=as_json)


@devices.command()
@click.argument("name")
@click.argument("fingerprint", required=False, metavar="[SHA256:...]")
@devices_option
def trust(name: str, fingerprint: str | None, devices_file: Path | None) -> None:
    """Show the SSH host keys that NAME offers; with the fingerprint of one, trust it.

    Read the fingerprint on the device itself, for whoever is between could show a key of his own.
    """
    from ferryman.devices.fleet.host_key import ON_DEVICE, offered
    from ferryman.devices.fleet.inventory import SshDevice
    from ferryman.options import find

    device = find(name, devices_file)
    if fingerprint is not None:
        _trust(device, fingerprint)
        return
    if not isinstance(device, SshDevice):
        raise CallerError(f"{name} is not reached over SSH")
    for one, line in offered(device).items():
        echo(f"{one}  {line.split()[1]}")
    echo(
        f"compare with what the device prints itself:\n  {ON_DEVICE}\nand where one is the same:\n"
        f"  ferryman devices trust {name} SHA256:...",
        err=True,
    )


def _trust(device: Device, fingerprint: str) -> None:
    from ferryman.devices.fleet.host_key import trust as run
    from ferryman.devices.fleet.inventory import SshDevice

    if not isinstance(device, SshDevice):
        raise CallerError(f"{device.name} is not reached over SSH, so it has no host key to trust")
    new = run(device, fingerprint)
    echo(f"{device.name}: the host key {fingerprint} {'is trusted now' if new else 'was trusted already'}")


def _probe(found: list[Device], timeout_s: float) -> list[Probe]:
    from ferryman.devices.fleet.facts.probe import probe as run

    came = []
    for one in run(found, timeout_s=timeout_s):
        came.append(one)
        if sys.stderr.isatty():
            in_place(f"{len(came)} of {len(found)} devices asked", done=len(came) == len(found))
    order = {device.name: number for number, device in enumerate(found)}
    return sorted(came, key=lambda one: order[one.device])


def _probe_and_show(found: list[Device], timeout_s: float, *, package: Path | None, as_json: bool) -> None:
    from ferryman.devices_show import show_report

    probes = _probe(found, timeout_s)
    for one in probes:
        show_report(one, package=package, as_json=as_json)
    _fail([one for one in probes if one.failed], len(found))


def _fail(failed: list[Probe], of: int) -> None:
    if failed:
        raise DeviceError(
            f"{len(failed)} of {of} devices did not answer on every way: {', '.join(one.device for one in failed)}"
        )


for command in (discover, show, rename, remove):
    devices.add_command(command)
