"""Options that several commands share."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ferryman.runtime.contracts.errors import CallerError

if TYPE_CHECKING:
    from ferryman.devices.agent.instruments import InstrumentsConfig
    from ferryman.devices.agent.spending import TelemetryConfig
    from ferryman.devices.agent.update.config import UpdateConfig
    from ferryman.devices.fleet.inventory import Device

PATH = click.Path(path_type=Path)
DATABASE = "ferryman.sqlite"
DATABASE_VARIABLE = "FERRYMAN_DATABASE"
"""Where it is said which store is asked."""
BROKER_VARIABLE = "FERRYMAN_BROKER"


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


def runner_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--runner`, of phones."""
    return click.option(
        "--runner",
        type=PATH,
        envvar="FERRYMAN_RUNNER",
        show_envvar=True,
        help="For a phone: the native runner's bundle [default: dist/ferryman-runner-MACHINE.tar.gz].",
    )(command)


def find(name: str, devices_file: Path | None) -> Device:
    """The device of that name."""
    from ferryman.devices.fleet.inventory import find_device, read_devices

    return find_device(read_devices(devices_file), name, devices_file)


def matching(words: Iterable[str], devices_file: Path | None, *, unlisted: bool = False) -> list[Device]:
    """Devices that any of the words means, each a name or a query; each must mean one.

    Args:
        words: as given.
        devices_file: None: the usual one.
        unlisted: whether a query may mean this machine though the devices file does not name it.
    """
    from ferryman.devices.fleet.facts.listing import target_of
    from ferryman.devices.fleet.inventory import LocalDevice, read_devices, there_are
    from ferryman.devices.fleet.rollout.query import parse_query

    there = read_devices(devices_file)
    found: dict[str, Device] = {}
    for word in words:
        if word in there:
            found[word] = there[word]
            continue
        query = parse_query(word)
        meant = {
            name: one
            for name, one in there.items()
            if query.matches(target_of(one)) and (unlisted or one != LocalDevice())
        }
        if not meant:
            raise CallerError(f"no device matches {word!r}; {there_are(there, word, devices_file)}")
        found |= meant
    return list(found.values())


class Size(click.ParamType[int]):
    """Bytes, or with a unit: 500kB, 5MB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401, D102  # click's signature
        from ferryman.devices.sizes import parse_size

        try:
            return parse_size(value)
        except CallerError as error:
            self.fail(str(error), param, ctx)


def update_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what a device may spend on updates, as the arguments of `update_config`."""
    for option in (
        click.option("--update-max", type=Size(), help="What one update may cost on the wire [default: no matter]."),
        click.option("--rate", type=Size(), help="Bandwidth cap, a second [default: none]."),
        click.option("--proxy", metavar="URL", help="HTTP proxy for updates [default: as http_proxy and so on say]."),
    ):
        command = option(command)
    return command


def update_config(
    url: str, *, proxy: str | None, rate: int | None, update_max: int | None, day_max: int | None = None
) -> UpdateConfig:
    """Where updates come from and what they may cost.

    Raises:
        CallerError: nothing can be fetched so.
    """
    from ferryman.devices.agent.update.config import UpdateConfig, check_config

    return check_config(
        UpdateConfig(url=url, proxy=proxy, rate_bytes_s=rate, update_max_bytes=update_max, day_max_bytes=day_max)
    )


def stop_event() -> threading.Event:
    """Set by the signals that ask a process to end."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


outbox_option = click.option(
    "--outbox",
    type=PATH,
    metavar="DIR",
    envvar="FERRYMAN_OUTBOX",
    show_envvar=True,
    help="Folder of the outbox, where the root cannot be written [default: the root].",
)


def telemetry_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what a device may spend on telemetry, as the arguments of `telemetry_config`."""
    for option in (
        click.option(
            "--keep",
            type=click.FloatRange(min=0, max=3650, min_open=True),
            default=7.0,
            show_default=True,
            metavar="DAYS",
            help="How long samples and logs may wait to be sent; other records wait until room is short.",
        ),
        click.option(
            "--mode",
            type=click.Choice(["full", "metered", "offline"]),
            default="full",
            show_default=True,
            help="How much the link may be used, as long as `ferryman outbox mode` has not said: metered sends what "
            "matters every 15 minutes, offline does not connect.",
        ),
        click.option(
            "--telemetry-day-max",
            type=Size(),
            help="What telemetry may cost a day (UTC) on the wire; what is over waits [default: no matter].",
        ),
        click.option(
            "--outbox-max",
            type=Size(),
            help="What may wait at most, then the oldest of what matters least goes [default: 64 MiB].",
        ),
        outbox_option,
        click.option("--telemetry-rate", type=Size(), help="Bandwidth cap of telemetry, a second [default: none]."),
    ):
        command = option(command)
    return command


def telemetry_config(
    *,
    telemetry_rate: int | None,
    telemetry_day_max: int | None,
    mode: Any,  # noqa: ANN401  # click has checked it
    keep: float,
    outbox: Path | None,
    outbox_max: int | None,
) -> TelemetryConfig:
    """What an agent may spend on telemetry.

    Raises:
        CallerError: nothing can be sent so.
    """
    from ferryman.devices.agent.spending import TelemetryConfig

    most = {} if outbox_max is None else {"outbox_max_bytes": outbox_max}
    config = TelemetryConfig(
        rate_bytes_s=telemetry_rate,
        day_max_bytes=telemetry_day_max,
        mode=mode,
        keep_days=keep,
        outbox=outbox,
        **most,
    )
    config.check()
    return config


def instrument_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds what is shown of a device, as the arguments of `instruments_config`."""
    for option in (
        click.option(
            "--sparkplug", metavar="GROUP", help="Be an edge node of this Sparkplug B group, too (extra `sparkplug`)."
        ),
        click.option(
            "--home-assistant",
            metavar="[PREFIX]",
            is_flag=False,
            flag_value="homeassistant",
            help="Have Home Assistant find this device by MQTT discovery, below PREFIX [default: homeassistant].",
        ),
        click.option(
            "--meter",
            metavar="NAME",
            help="What tells the power of samples: `device` for its own sensors, or as for `ferryman profile --meter`.",
        ),
        click.option(
            "--sample",
            type=float,
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="Every so often, how the device does becomes a telemetry record; 0: never.",
        ),
    ):
        command = option(command)
    return command


def instruments_config(
    *, sample: float, meter: str | None, home_assistant: str | None, sparkplug: str | None
) -> InstrumentsConfig:
    """What `instrument_options` says."""
    from ferryman.devices.agent.instruments import InstrumentsConfig

    return InstrumentsConfig(sample_s=sample, meter=meter, home_assistant=home_assistant, sparkplug=sparkplug)


def database_option(words: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds `--database`, the collector's store; `words` are its help."""
    return click.option(
        "--database",
        default=DATABASE,
        envvar=DATABASE_VARIABLE,
        show_default=True,
        show_envvar=True,
        metavar="PATH|URL",
        help=words,
    )
