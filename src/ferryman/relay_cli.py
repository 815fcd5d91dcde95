"""`ferryman relay`."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from ferryman.options import devices_option, find, stop_event
from ferryman.runtime.say import echo


@click.command()
@click.argument("phone", nargs=-1, required=True)
@devices_option
@click.option(
    "--sample",
    type=click.FloatRange(1, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Every so often, how the phone does becomes a telemetry record.",
)
def relay(phone: tuple[str, ...], devices_file: Path | None, sample: float) -> None:
    """Send telemetry of each PHONE (adb) to its broker from here, in its name, until interrupted.

    Battery, temperature, thermal status, clocks and memory, and whatever an earlier `ferryman profile` could not send.
    Records wait on this machine's disk until the collector has them. While a phone is away, its status says so.
    """
    from ferryman.devices.fleet.inventory import AdbDevice
    from ferryman.devices.fleet.phone.relay import run_relay
    from ferryman.runtime.contracts.errors import CallerError, FerrymanError

    targets: list[AdbDevice] = []
    for name in dict.fromkeys(phone):
        device = find(name, devices_file)
        if not isinstance(device, AdbDevice):
            raise CallerError(f"{name} is no phone: the devices file gives it no `adb`; its own agent sends telemetry")
        targets.append(device)
    stop = stop_event()
    failed: list[FerrymanError] = []

    def run(device: AdbDevice) -> None:
        try:
            run_relay(device, sample, stop)
        except FerrymanError as error:
            failed.append(error)
            echo(f"{device.name}: {error.party}: {error}", err=True)

    threads = [threading.Thread(target=run, args=(device,), name=f"relay {device.name}") for device in targets]
    for thread in threads:
        thread.start()
    echo(f"relaying {', '.join(device.name for device in targets)}", err=True)
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
    if failed:
        raise failed[0]
