"""What `rollout` and `ship` have in common: how a rollout goes, as options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ferryman.options import BROKER_VARIABLE, PATH, Size
from ferryman.runtime.contracts.errors import CallerError

if TYPE_CHECKING:
    from ferryman.devices.fleet.rollout.records import Plan
    from ferryman.runtime.contracts.rollout import Window

C = TypeVar("C", bound=Callable[..., Any])
DATABASE = Path("ferryman-rollouts.sqlite")


class Duration(click.ParamType[float]):
    """Seconds, or with a unit: 90, 10m, 2h, 1d."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401, D102  # click's signature
        from ferryman.devices.fleet.rollout.options import parse_duration

        try:
            return parse_duration(value)
        except CallerError as error:
            self.fail(str(error), param, ctx)


class Limit(click.ParamType["float | str"]):
    """A number above 0, or `off`."""

    name = "NUMBER|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:  # noqa: ANN401, D102  # click's signature
        if str(value).strip() == "off":
            return "off"
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is neither a number above 0 nor `off`", param, ctx)
        return number


class DayWindow(click.ParamType["Window"]):
    """`22:00-05:30`, in each device's local time."""

    name = "HH:MM-HH:MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Window:  # noqa: ANN401, D102  # click's signature
        from ferryman.devices.fleet.rollout.options import parse_window

        try:
            return parse_window(value)
        except CallerError as error:
            self.fail(str(error), param, ctx)


def database_option(command: C) -> C:
    """Adds `--database`."""
    return click.option(
        "--database", type=PATH, default=DATABASE, show_default=True, help="File in which rollouts are kept."
    )(command)


def broker_option(command: C) -> C:
    """Adds `--broker`, as a URL or None."""
    return click.option(
        "--broker",
        envvar=BROKER_VARIABLE,
        show_envvar=True,
        help="Where the devices are: mqtt://[user:password@]HOST[:PORT] or mqtts://...",
    )(command)


def plan_options(command: C) -> C:
    """Adds how a rollout goes: rings, thresholds, health, budgets."""
    options = (
        click.option(
            "--rings",
            default="1,10%,50%,100%",
            show_default=True,
            help="Totals of devices, asked one ring after the other; the first has one of each kind of device.",
        ),
        click.option(
            "--failures",
            default="5%",
            show_default=True,
            help="How many devices of a ring may fail, as a number or share (rounded down); one more halts.",
        ),
        click.option(
            "--slower",
            type=Limit(),
            default="1.5",
            show_default=True,
            help="Halt where the median device of a ring is more times slower than with the package before.",
        ),
        click.option(
            "--energy",
            type=Limit(),
            default="1.5",
            show_default=True,
            help="The same of the energy of a call, where devices measure it.",
        ),
        click.option(
            "--drift",
            type=Limit(),
            default="off",
            show_default=True,
            help="Halt where the median device's outputs are further than this from those of the package before.",
        ),
        click.option(
            "--soak",
            type=Duration(),
            default="60",
            show_default=True,
            help="Wait so long after a ring has answered, before the next.",
        ),
        click.option(
            "--timeout",
            type=Duration(),
            help="A device that has not answered so long after it was asked does not hold the ring up [default: 1h; "
            "26h with --window].",
        ),
        click.option(
            "--parallel", type=click.IntRange(min=1), help="So many devices at the same time [default: a ring]."
        ),
        click.option("--manual", is_flag=True, help="Rings after the first wait for `ferryman rollout approve`."),
        click.option("--no-roll-back", is_flag=True, help="Past a threshold, halt and leave devices as they are."),
        click.option(
            "--watch",
            type=Duration(),
            default="60",
            show_default=True,
            help="Each device confirms the release once it has served well for so long, else it goes back by itself.",
        ),
        click.option(
            "--errors",
            type=click.FloatRange(0, 1),
            default=0.05,
            show_default=True,
            help="Share of requests that may fail on a device meanwhile.",
        ),
        click.option("--latency-max", type=Limit(), default="off", help="Milliseconds of the median call on a device."),
        click.option(
            "--pick",
            default="first",
            show_default=True,
            help="Which variant a device is to have, such as largest-20ms: of each kind one device tries all, the "
            "others fetch only the one that it found to fit.",
        ),
        click.option("--window", type=DayWindow(), help="When devices may install, in their local time."),
        click.option("--budget", type=Size(), help="What a device may spend on the wire, such as 5MB."),
        click.option("--force", is_flag=True, help="Also where a device holds the package for bad."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def plan_of(release: str, package_sha256: str, query: str, broker: str, options: dict[str, Any]) -> Plan:
    """What `plan_options` asked for."""
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.rollout.records import Thresholds
    from ferryman.devices.fleet.rollout.start import make_plan
    from ferryman.runtime.contracts.slot import HealthRules

    def limit(name: str) -> float | None:
        return None if options[name] == "off" else options[name]

    return make_plan(
        release,
        package_sha256,
        query,
        rings=options["rings"],
        thresholds=Thresholds(
            failures_max=options["failures"],
            slower_max=limit("slower"),
            energy_max=limit("energy"),
            drift_max=limit("drift"),
        ),
        health=HealthRules(
            window_s=options["watch"], errors_max=options["errors"], latency_max_ms=limit("latency_max")
        ),
        pick=options["pick"],
        window=options["window"],
        update_max_bytes=options["budget"],
        force=options["force"],
        soak_s=options["soak"],
        ring_timeout_s=options["timeout"],
        parallel=options["parallel"],
        manual=options["manual"],
        roll_back=not options["no_roll_back"],
        broker=parse_broker(broker).address,
    )
