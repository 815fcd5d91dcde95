"""How much of everything a fleet needs: arithmetic over stated inputs, no clock, disk or network (docs/SCALING.md).

Inputs are of three kinds, and `Source` says which each is: measured on the project's machine, assumed with a source, or
chosen by whoever runs the fleet.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

DAY_S = 86_400
_K = 200
Source = Literal["measured", "assumed", "chosen"]


class Fleet(NamedTuple):
    """Chosen by whoever runs it."""

    devices: int
    period_s: float = 60.0
    """Of a sample; what the agent does unless it is told otherwise."""
    batch: int = 6
    """Samples a message."""
    metrics: int = 12
    """Values a sample."""
    raw_days: float = 30.0
    """Samples are kept so long."""
    hourly_days: float = 180.0
    daily_days: float = 730.0
    spare: float = 0.5
    """Nothing is planned to be busier than this share of what it can: the rest is for peaks and for catching up."""


class Costs(NamedTuple):
    """What one of each takes, and what one of each can do. Each has its source in SOURCES."""

    wire_record_bytes: float = 150.0
    """A record in a message of 6, compressed."""
    wire_message_bytes: float = 120.0
    """Beside its records: topic, MQTT and TCP headers of the message and its acknowledgement, TLS."""
    receipt_bytes: float = 250.0
    row_bytes: float = 840.0
    """A stored sample of 540 bytes, its share of indexes included; PostgreSQL."""
    rollup_bytes: float = 500.0
    """One metric of one device over an hour or a day, its share of indexes included, without the sketch; PostgreSQL."""
    compression: float = 1.0
    """Of samples older than a day, where TimescaleDB's columnar compression is switched on; 1: it is not."""
    collector_records_s: float = 50_000.0
    """Stored by one collector process, batched."""
    collector_messages_s: float = 10_000.0
    """Stored by one collector process."""
    database_records_s: float = 100_000.0
    """Inserted into one PostgreSQL primary on a server of its own."""
    broker_messages_s: float = 20_000.0
    """In and out, of one node."""
    broker_connections: float = 100_000.0
    """Of one node."""


SOURCES: dict[str, tuple[Source, str]] = {
    "wire_record_bytes": ("measured", "zlib of a typical sample of 12 values and 10 latencies, six in an envelope"),
    "wire_message_bytes": ("assumed", "a topic of 30 bytes; MQTT 5 section 3.3, TCP/IPv4 and TLS 1.3 headers"),
    "receipt_bytes": ("assumed", "one range, and the same headers; at most one a message"),
    "row_bytes": ("measured", "20,000 such samples in PostgreSQL 15, relation and indexes"),
    "rollup_bytes": ("measured", "rollups in PostgreSQL 15, relation and indexes, less their sketches"),
    "compression": ("assumed", "none; TimescaleDB tells of a tenth for numbers, JSON bodies will be more"),
    "collector_records_s": ("measured", "SQLite: 94,000, PostgreSQL: 56,000; rounded down to the bar of the benchmark"),
    "collector_messages_s": ("measured", "33,000; rounded down to the bar of the benchmark"),
    "database_records_s": ("assumed", "batches of thousands into 16 partitions on 16 cores and NVMe; try yours"),
    "broker_messages_s": ("measured", "mosquitto 2.0.11, QoS 1, one core; clusters tell of 100,000 a node"),
    "broker_connections": ("assumed", "mosquitto with ulimit raised; EMQX and TBMQ tell of 4,000,000 a node"),
}
"""Field of `Costs` -> how it is known, and from where."""


class Needs(NamedTuple):
    """What the fleet takes."""

    records_s: float
    messages_s: float
    broker_messages_s: float
    """Telemetry in and out, receipts in and out."""
    broker_nodes: int
    collectors: int
    database_share: float
    """Of what one primary inserts, records and rollups; above `spare` it needs more than one, or bigger ones."""
    network_mbit_s: float
    """From devices to the broker and back."""
    disk_gb_day: float
    """What comes to be stored in a day."""
    raw_gb: float
    """All samples that are kept."""
    rollup_gb: float
    """All rollups that are kept."""
    plain_gb: float
    """Samples kept for as long as the rollups are, without any rollup: what down-sampling saves."""


def needs(fleet: Fleet, costs: Costs = Costs()) -> Needs:  # noqa: B008  # frozen
    """What `fleet` takes at `costs`."""
    records_s = fleet.devices / fleet.period_s
    messages_s = records_s / fleet.batch
    broker_messages_s = 4 * messages_s
    sent = fleet.batch * costs.wire_record_bytes + costs.wire_message_bytes + costs.receipt_bytes
    hours_s = fleet.devices * fleet.metrics / 3600
    days_s = fleet.devices * fleet.metrics / DAY_S
    raw_day = records_s * DAY_S * costs.row_bytes
    hourly_day = hours_s * DAY_S * (costs.rollup_bytes + sketch_bytes(3600 / fleet.period_s))
    daily_day = days_s * DAY_S * (costs.rollup_bytes + sketch_bytes(DAY_S / fleet.period_s))
    fresh_days = min(1.0, fleet.raw_days)
    return Needs(
        records_s=records_s,
        messages_s=messages_s,
        broker_messages_s=broker_messages_s,
        broker_nodes=_parts(
            broker_messages_s / costs.broker_messages_s, fleet.devices / costs.broker_connections, spare=fleet.spare
        ),
        collectors=_parts(
            records_s / costs.collector_records_s, messages_s / costs.collector_messages_s, spare=fleet.spare
        ),
        database_share=(records_s + hours_s + days_s) / costs.database_records_s,
        network_mbit_s=messages_s * sent * 8 / 1e6,
        disk_gb_day=(raw_day + hourly_day + daily_day) / 1e9,
        raw_gb=raw_day * (fresh_days + (fleet.raw_days - fresh_days) / costs.compression) / 1e9,
        rollup_gb=(hourly_day * fleet.hourly_days + daily_day * fleet.daily_days) / 1e9,
        plain_gb=raw_day * max(fleet.raw_days, fleet.hourly_days, fleet.daily_days) / 1e9,
    )


def first_limit(fleet: Fleet, costs: Costs = Costs()) -> dict[str, float]:  # noqa: B008  # frozen
    """How many devices one of each carries at `fleet`'s rates, with room to spare: the least is the first limit."""
    one = needs(fleet._replace(devices=1), costs)
    return {
        "collector": fleet.spare
        / max(one.records_s / costs.collector_records_s, one.messages_s / costs.collector_messages_s),
        "broker, messages": fleet.spare * costs.broker_messages_s / one.broker_messages_s,
        "broker, connections": fleet.spare * costs.broker_connections,
        "database, inserts": fleet.spare / one.database_share,
        "disk, 1 TB": 1000 / (one.raw_gb + one.rollup_gb),
        "network, 1 Gbit/s": fleet.spare * 1000 / one.network_mbit_s,
    }


def sketch_bytes(values: float) -> float:
    """Of a serialised KLL sketch of k = 200, within a quarter: all values up to k, then ever fewer, then no more."""
    if values <= _K:
        return 32 + 4 * values
    return min(32 + 4 * values, 832 + 975 * math.log10(values / _K), 2300)


def _parts(*shares: float, spare: float) -> int:
    """How many of something, none of them busier than `spare`."""
    return max(1, math.ceil(max(shares) / spare))
