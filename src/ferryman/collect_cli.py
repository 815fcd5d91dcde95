"""`ferryman collect`: the collector in the foreground."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import click

from ferryman.options import BROKER_VARIABLE, PATH, database_option, stop_event
from ferryman.runtime.say import echo, in_place

_SHOW_EVERY_S = 0.2
_DAYS_MAX = 36_500
"""A hundred years; nothing is older."""


def _finite(_context: click.Context, _parameter: click.Parameter, days: float) -> float:
    if math.isnan(days):
        raise click.BadParameter("not a number of days")
    return days


DAYS = click.FloatRange(min=0, min_open=True, max=_DAYS_MAX)


@click.command()
@click.option(
    "--broker",
    required=True,
    envvar=BROKER_VARIABLE,
    show_envvar=True,
    help="mqtt://[user:password@]HOST[:PORT] or mqtts://...",
)
@database_option("SQLite file, or postgresql://[user[:password]@]HOST[:PORT]/DATABASE. Made if it is missing.")
@click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    help="Answer Prometheus at http://HOST:PORT/metrics; without HOST, this machine only.",
)
@click.option("--alerts", type=PATH, metavar="FILE", help="Rules, and whom to tell: webhooks, mail (TOML).")
@click.option(
    "--keep-samples",
    type=DAYS,
    callback=_finite,
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Delete regular samples that are older; their hourly and daily rollups stay.",
)
@click.option(
    "--keep",
    type=DAYS,
    callback=_finite,
    default=365.0,
    show_default=True,
    metavar="DAYS",
    help="Delete all other records that are older.",
)
def collect(
    broker: str, database: str, metrics: str | None, alerts: Path | None, keep_samples: float, keep: float
) -> None:
    """Store what devices send, until interrupted.

    Nothing is acknowledged before it is on disk. A SQLite file has one collector; of a PostgreSQL database any number
    may run, on any machine, and share the load. Meanwhile it keeps rollups, deletes what is old, and watches for what
    is worth an alert.
    """
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.collector.metrics import parse_address
    from ferryman.devices.fleet.collector.run import Progress, run_collector
    from ferryman.devices.fleet.store.retain import Policy

    parsed = parse_broker(broker)
    address = None if metrics is None else parse_address(metrics)
    tty = sys.stderr.isatty()
    began = shown = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal shown
        now = time.monotonic()
        if not tty or now - shown < _SHOW_EVERY_S:
            return
        shown = now
        counts = ", ".join(f"{name} {count:,}" for name, count in progress._asdict().items())
        in_place(f"{counts} in {now - began:,.0f} s")

    def tell(store: str) -> None:
        echo(f"collecting from {parsed.address} into {store}; interrupt to stop", err=True)

    run_collector(
        parsed,
        database,
        stop=stop_event(),
        metrics=address,
        alerts=alerts,
        policy=Policy(samples_days=keep_samples, others_days=keep),
        on_connected=tell,
        on_progress=show,
    )
    if tty:
        echo(err=True)
