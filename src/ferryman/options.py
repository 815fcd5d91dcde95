"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ferryman.devices.agent.update.config import UpdateConfig
    from ferryman.devices.fleet.inventory import Device

PATH = click.Path(path_type=Path)


class Seconds(click.FloatRange):
    """How long to wait; not a number is none."""

    def __init__(self) -> None:
        super().__init__(min=0, max=86400, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401, D102  # click's signature
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail("nan is not in the range 0<x<=86400.", param, ctx)
        return seconds


def devices_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--devices`, as `devices_file`."""
    return click.option(
        "--devices",
        "devices_file",
        type=PATH,
        help="Devices file (TOML) [default: $FERRYMAN_DEVICES or ~/.config/ferryman/devices.toml].",
    )(command)


def find(name: str, devices_file: Path | None) -> Device:
    """The device of that name."""
    from ferryman.devices.fleet.inventory import find_device, read_devices

    return find_device(read_devices(devices_file), name, devices_file)


def update_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what a device may spend on updates, as the arguments of `update_config`."""
    for option in (
        click.option(
            "--day-max", type=click.FloatRange(min=0, min_open=True), metavar="MB", help="Data for updates a day."
        ),
        click.option(
            "--update-max", type=click.FloatRange(min=0, min_open=True), metavar="MB", help="Data for one update."
        ),
        click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="KB/S", help="Bandwidth cap."),
        click.option("--proxy", metavar="URL", help="HTTP proxy for updates [default: that of the environment]."),
    ):
        command = option(command)
    return command


def update_config(
    url: str, *, proxy: str | None, rate: float | None, update_max: float | None, day_max: float | None
) -> UpdateConfig:
    """Where updates come from and what they may cost.

    Raises:
        CallerError: nothing can be fetched so.
    """
    from ferryman.devices.agent.update.config import UpdateConfig, check_config

    return check_config(
        UpdateConfig(
            url=url,
            proxy=proxy,
            rate_bytes_s=_bytes(rate, 1e3),
            update_max_bytes=_bytes(update_max, 1e6),
            day_max_bytes=_bytes(day_max, 1e6),
        )
    )


def _bytes(number: float | None, unit: float) -> int | None:
    return None if number is None else max(1, round(number * unit))
