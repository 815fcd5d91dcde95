"""`ferryman fleet capacity`: what a fleet of some size takes."""

from __future__ import annotations

import click

from ferryman.runtime.say import echo

_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("devices", type=click.IntRange(1, 100_000_000))
@click.option("--period", type=_POSITIVE, default=60.0, show_default=True, help="Seconds that a sample is of.")
@click.option("--batch", type=click.IntRange(1), default=6, show_default=True, help="Samples a message.")
@click.option("--metrics", type=click.IntRange(1), default=12, show_default=True, help="Values a sample.")
@click.option("--days", type=_POSITIVE, default=30.0, show_default=True, help="Samples are kept so long.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def capacity(devices: int, period: float, batch: int, metrics: int, days: float, *, as_json: bool) -> None:
    """Work out what DEVICES take: messages, brokers, collectors, disk. What is assumed is told in docs/SCALING.md."""
    import msgspec

    from ferryman.devices.fleet.capacity import Fleet, first_limit, needs

    fleet = Fleet(devices, period_s=period, batch=batch, metrics=metrics, raw_days=days)
    found, limits = needs(fleet), first_limit(fleet)
    if as_json:
        echo(msgspec.json.encode({"fleet": fleet._asdict(), "needs": found._asdict(), "carries": limits}))
        return
    rows = [
        ("samples", f"one every {period:g} s, {batch} a message, {metrics} values each"),
        ("records", f"{found.records_s:,.1f} /s"),
        ("messages", f"{found.messages_s:,.1f} /s, {found.broker_messages_s:,.1f} /s through the broker"),
        ("broker nodes", f"{found.broker_nodes:,}"),
        ("collectors", f"{found.collectors:,}"),
        ("database", f"{found.database_share:.1%} of what one primary inserts"),
        ("network", f"{found.network_mbit_s:,.2f} Mbit/s"),
        ("disk", f"{found.disk_gb_day:,.1f} GB/day"),
        ("kept", f"{found.raw_gb:,.0f} GB of samples, {found.rollup_gb:,.0f} GB of rollups"),
    ]
    for name, text in rows:
        echo(f"{name:14}{text}")
    echo("one of each carries:")
    for name, count in sorted(limits.items(), key=lambda one: one[1]):
        echo(f"  {name:20}{count:,.0f} devices")
