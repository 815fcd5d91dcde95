"""`ferryman devices show`, `rename`, `remove`: entries of the devices file."""

from __future__ import annotations

from pathlib import Path

import click

from ferryman.options import devices_option, matching
from ferryman.runtime.say import echo


@click.command()
@click.argument("query", nargs=-1, required=True, metavar="NAME|QUERY...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a device and line.")
@devices_option
def show(query: tuple[str, ...], devices_file: Path | None, *, as_json: bool) -> None:
    """Show what the devices file says of devices, without passwords, and what was last found out. Nobody is asked."""
    from ferryman.devices.fleet.facts.listing import rows
    from ferryman.devices_show import show_device

    found = matching(query, devices_file, unlisted=True)
    for device, row in zip(found, rows(found), strict=True):
        show_device(device, row, as_json=as_json)


@click.command()
@click.argument("old")
@click.argument("new")
@devices_option
def rename(old: str, new: str, devices_file: Path | None) -> None:
    """Call the device OLD NEW in the devices file; the device itself is not touched."""
    from ferryman.devices.fleet.inventory_edit import rename_device

    made = rename_device(old, new, devices_file)
    echo(f"{new}: {made.address}, {old} until now, written to {where(devices_file)}")
    if made.broker:
        echo(
            f"its agent goes by the name it was given there; to be found at the broker it needs the same:"
            f" `provision.sh --device {new}` there, with --enroll for a new certificate where it has one",
            err=True,
        )


@click.command()
@click.argument("name", nargs=-1, required=True)
@devices_option
def remove(name: tuple[str, ...], devices_file: Path | None) -> None:
    """Take each NAME out of the devices file, all or none; the device itself is not touched."""
    from ferryman.devices.fleet.inventory_edit import remove_devices

    remove_devices(name, devices_file)
    for one in dict.fromkeys(name):
        echo(f"{one}: taken out of {where(devices_file)}")


def where(devices_file: Path | None) -> Path:
    """The devices file that was given, or the usual one."""
    from ferryman.devices.fleet.inventory import devices_file as usual

    return devices_file or usual()
