"""The arithmetic of the capacity model, the inputs that are measured, and every number of docs/SCALING.md's tables."""

from __future__ import annotations

import json
import math
import random
import re
import zlib

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from datasketches import kll_floats_sketch
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from ferryman.capacity_cli import capacity
from ferryman.devices.agent.sampler import PERIOD_S
from ferryman.devices.fleet.capacity import SOURCES, Costs, Fleet, Needs, first_limit, needs, sketch_bytes
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, open_store
from ferryman.runtime.contracts.envelope import Envelope, Item
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import Sample
from tests.support.interpreters import ROOT
from tests.support.postgresql import new_database

BOOT = "59847469ac76d26d.5ed1cf13-3af4-4bfa-98a0-f7498931f709"
BEGAN_NS = 1_800_000_000 * 10**9
PAGE = (ROOT / "docs" / "SCALING.md").read_text()


def typical(chance: random.Random) -> Sample:
    latencies = sorted(round(chance.gauss(12, 1.5), 3) for _ in range(10))
    return Sample(
        period_s=10.0,
        values={
            "inferences": 10.0,
            "errors": 0.0,
            "latency_ms": latencies[5],
            "cpu_percent": round(chance.uniform(20, 60), 1),
            "memory_used_mb": round(chance.uniform(900, 1100), 1),
            "agent_memory_mb": round(chance.uniform(110, 130), 1),
            "disk_free_mb": round(chance.uniform(9000, 9010), 1),
            "temperature_c": round(chance.uniform(45, 60), 1),
            "clock_mhz": 1500.0,
            "throttled": 0.0,
            "outbox_records": 2.0,
            "outbox_mb": 0.01,
        },
        unavailable={
            "power_w": "no meter is named",
            "energy_mj": "no meter is named",
            "battery_percent": "no battery",
        },
        latencies_ms=tuple(latencies),
        package_sha256="5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    )


def test_a_record_on_the_wire_is_as_large_as_the_model_says():
    chance = random.Random(1)  # noqa: S311  # nothing is secret
    items = tuple(
        Item(
            sequence=n + 1,
            kind="sample",
            time_ns=BEGAN_NS + n * 10**10 + chance.randrange(10**6),
            uptime_ns=10**15 + n * 10**10 + chance.randrange(10**6),
            sure=True,
            body=msgspec.Raw(encode(typical(chance))),
        )
        for n in range(Fleet(1).batch)
    )
    sent = len(zlib.compress(encode(Envelope(device="pi-0001", boot=BOOT, items=items))))
    assert sent / len(items) == pytest.approx(Costs().wire_record_bytes, rel=0.1)


def test_rows_in_postgresql_are_as_large_as_the_model_says():
    chance = random.Random(1)  # noqa: S311  # nothing is secret
    devices, samples = 100, 120
    with new_database() as url:
        store = open_store(url)
        for first in range(0, samples, 6):
            store.insert(Batch(arrived=[message(device, first, chance) for device in range(devices)]), BEGAN_NS)
        sketch = sketch_of(360)
        names = [f"pi-{device:04}" for device in range(20)]
        rows = [hour(name, metric, n, sketch) for name in names for metric in range(12) for n in range(12)]
        store.write(lambda connection: connection.execute(tables.rollups.insert(), rows) and None)
        sizes = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relname LIKE "
        (records,), (rollups,) = (store.read(text(f"{sizes} '{name}'"))[0] for name in ("records\\_%", "rollups"))
        store.close()
    assert float(records) / (devices * samples) == pytest.approx(Costs().row_bytes, rel=0.15)
    assert float(rollups) / len(rows) - len(sketch) == pytest.approx(Costs().rollup_bytes, rel=0.2)


@pytest.mark.parametrize("values", [2, 60, 200, 360, 720, 1440, 3600, 8640, 100_000])
def test_sketches_are_as_large_as_the_model_says(values):
    assert len(sketch_of(values)) == pytest.approx(sketch_bytes(values), rel=0.25)


def sketch_of(values: int) -> bytes:
    sketch = kll_floats_sketch(200)
    sketch.update(np.random.default_rng(1).normal(10, 1, values).astype(np.float32))
    return sketch.serialize()


def message(device: int, first: int, chance: random.Random) -> Arrived:
    rows = [
        Row(n + 1, "sample", BEGAN_NS + n * 10**10, 10**15 + n * 10**10, True, encode(typical(chance)))
        for n in range(first, first + 6)
    ]
    return Arrived(f"pi-{device:04}", BOOT, rows, "", b"")


def hour(device: str, metric: int, number: int, sketch: bytes) -> dict[str, object]:
    return {
        "device": device,
        "metric": f"metric_{metric}",
        "package": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
        "span_s": 3600,
        "start_s": 1_800_000_000 + 3600 * number,
        "count": 360,
        "total": 3600.0,
        "least": 5.0,
        "most": 15.0,
        "sketch": sketch,
        "sealed": 0,
    }


def test_every_cost_says_how_it_is_known():
    assert set(SOURCES) == set(Costs._fields)


def test_the_arithmetic_by_hand():
    fleet = Fleet(
        1_000_000, period_s=100, batch=10, metrics=10, raw_days=11, hourly_days=100, daily_days=1000, spare=0.5
    )
    costs = Costs(
        wire_record_bytes=100,
        wire_message_bytes=100,
        receipt_bytes=150,
        row_bytes=1000,
        rollup_bytes=324,
        compression=5,
        collector_records_s=4_000,
        collector_messages_s=1_000,
        database_records_s=20_000,
        broker_messages_s=2_000,
        broker_connections=100_000,
    )
    found = needs(fleet, costs)
    assert found.records_s == 10_000
    assert found.messages_s == 1_000
    assert found.broker_messages_s == 4_000  # telemetry in and out, receipts in and out
    assert found.broker_nodes == 20  # by connections; by messages it were 4
    assert found.collectors == 5
    assert found.database_share == pytest.approx((10_000 + 1e7 / 3600 + 1e7 / 86_400) / 20_000)
    assert found.network_mbit_s == pytest.approx(1_000 * 1250 * 8 / 1e6)
    hourly = 1e7 * 24 * (324 + 32 + 4 * 36) / 1e9  # 120 GB: 36 values are all in the sketch
    daily = 1e7 * (324 + 832 + 975 * math.log10(864 / 200)) / 1e9
    assert found.disk_gb_day == pytest.approx(864 + hourly + daily)
    assert found.raw_gb == pytest.approx(864 * (1 + 10 / 5))
    assert found.rollup_gb == pytest.approx(hourly * 100 + daily * 1000)
    assert found.plain_gb == pytest.approx(864 * 1000)


@given(
    devices=st.integers(1, 10**8),
    period_s=st.floats(0.1, 3600),
    batch=st.integers(1, 1000),
    more=st.integers(2, 10),
)
def test_more_devices_never_take_less_and_nothing_is_busier_than_planned(devices, period_s, batch, more):
    small, large = (Fleet(n, period_s=period_s, batch=batch) for n in (devices, devices * more))
    assert all(a <= b for a, b in zip(needs(small), needs(large), strict=True))
    found, costs = needs(large), Costs()
    room = large.spare * (1 + 1e-9)
    assert found.records_s <= found.collectors * costs.collector_records_s * room
    assert found.messages_s <= found.collectors * costs.collector_messages_s * room
    assert large.devices <= found.broker_nodes * costs.broker_connections * room


def test_a_fleet_at_its_first_limit_takes_one_of_each_and_one_device_more_takes_two():
    limits = first_limit(Fleet(1))
    at = int(limits["broker, connections"])
    assert needs(Fleet(at)).broker_nodes == 1
    assert needs(Fleet(at + 1)).broker_nodes == 2
    assert needs(Fleet(int(limits["collector"]))).collectors == 1
    assert needs(Fleet(int(limits["collector"]) + 10)).collectors == 2


# What the page says.


def table(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without its head."""
    below = PAGE.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE).group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(words: str) -> float:
    return float(re.match(r"[\d,.]+", words).group().replace(",", ""))


def shown(value: float) -> str:
    """As the page shows numbers: three digits, thousands by commas."""
    if value == 0 or value >= 1000:
        digits = 3 - len(str(int(value)))
        return f"{round(value, digits):,.0f}"
    return f"{float(f'{value:.3g}'):g}"


_ROWS: dict[str, tuple[str, float]] = {
    "records/s": ("records_s", 1),
    "messages/s": ("messages_s", 1),
    "messages/s through brokers": ("broker_messages_s", 1),
    "broker nodes": ("broker_nodes", 1),
    "collectors": ("collectors", 1),
    "share of one PostgreSQL primary, %": ("database_share", 100),
    "network, Mbit/s": ("network_mbit_s", 1),
    "disk, GB/day": ("disk_gb_day", 1),
    "samples kept, GB": ("raw_gb", 1),
    "rollups kept, GB": ("rollup_gb", 1),
    "two years of samples instead, GB": ("plain_gb", 1),
}


@pytest.mark.parametrize(
    ("heading", "fleet"),
    [
        ("### A sample every ten seconds, six a message", Fleet(1, period_s=10)),
        ("### A sample a minute, ten a message", Fleet(1, period_s=60, batch=10)),
    ],
)
def test_every_number_of_the_needs_tables_is_the_models(heading, fleet):
    rows = table(heading)
    assert [row[0] for row in rows] == ["devices", *_ROWS]
    counts = [int(number(cell)) for cell in rows[0][1:]]
    assert counts == [100, 1000, 10_000, 100_000, 1_000_000]
    for at, count in enumerate(counts, 1):
        found = needs(fleet._replace(devices=count))
        for row in rows[1:]:
            field, factor = _ROWS[row[0]]
            assert row[at] == shown(getattr(found, field) * factor), (row[0], count)
    assert set(Needs._fields) == {field for field, _ in _ROWS.values()}


def test_every_input_of_the_page_is_the_models():
    rows = table("### Inputs")
    assert {row[0].strip("`") for row in rows} == set(Costs._fields)
    for name, value, kind, source in rows:
        field = name.strip("`")
        assert number(value) == getattr(Costs(), field), field
        assert (kind, source) == SOURCES[field]


def test_the_limits_stand_in_the_order_the_model_says():
    rows = table("### What becomes the limit, in which order")
    limits = first_limit(Fleet(1, period_s=10))
    order = sorted(limits, key=lambda name: limits[name])
    assert [row[0] for row in rows] == order
    assert [row[1] for row in rows] == [shown(limits[name]) for name in order]


def test_the_command_tells_the_same():
    done = CliRunner().invoke(capacity, ["1000000", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["needs"] == needs(Fleet(1_000_000))._asdict()
    assert Fleet(1).period_s == PERIOD_S  # what an agent does that was told nothing else
    words = CliRunner().invoke(capacity, ["1000000"])
    assert "one every 60 s, 6 a message" in words.output
    assert "16,666.7 /s" in words.output
    assert "100,000.0 /s" in CliRunner().invoke(capacity, ["1000000", "--period", "10"]).output
    assert "broker, connections" in words.output
