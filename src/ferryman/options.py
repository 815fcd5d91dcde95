"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
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
