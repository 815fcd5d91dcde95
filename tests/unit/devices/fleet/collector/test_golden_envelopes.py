"""What every released version sends is taken for ever: stored as it came, and found by the queries."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ferryman.devices.fleet.collector.collector import sort
from ferryman.devices.fleet.collector.inbox import Delivery
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.devices.fleet.store.tables import latest, records, sources
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.record import decode
from tests.support.envelopes import BOOT, DEVICE, GOLDEN

VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
KINDS = {"measurement", "drift", "slots", "update", "dropped", "outbox-set-aside", "note"}
LATER_KINDS = KINDS | {"sample", "log", "clock"}


def collected(store: Store, files: list[Path]) -> None:
    found = sort([Delivery(None, f"ferryman/v1/{DEVICE}/telemetry".encode(), b"", file.read_bytes()) for file in files])
    assert list(found.batch.bad) == []
    inserted = store.insert(found.batch, 1)
    assert (inserted.duplicates, inserted.conflicts) == (0, 0)
    ((topic, receipt),) = found.receipts
    assert topic == f"ferryman/v1/{DEVICE}/receipt"
    told = decode(receipt, Receipt)
    assert told.boot == BOOT
    assert sum(last - first + 1 for first, last in told.ranges) == inserted.new


def sent(file: Path) -> list[tuple[int, str, int, int | None, Any]]:
    """Sequence, kind, time, uptime and body of each record, read without any of our own code."""
    data = file.read_bytes()
    message = json.loads(zlib.decompress(data) if file.suffix == ".z" else data)
    if message["schema"] == 1:
        return [(message["sequence"], message["kind"], message["time_ns"], None, message["body"])]
    return [(sequence, kind, at, uptime, body) for sequence, kind, at, uptime, _, body in message["items"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_envelope_of_every_version_is_stored_as_it_came_and_found(tmp_path, version):
    files = sorted((GOLDEN / version).iterdir())
    store = open_store(tmp_path / "store.db")
    collected(store, files)
    rows = store.read(
        select(records.c.sequence, records.c.kind, records.c.recorded_ns, records.c.uptime_ns, records.c.body)
        .join(sources, sources.c.id == records.c.source)
        .where(sources.c.device == DEVICE, sources.c.boot == BOOT)
        .order_by(records.c.sequence)
    )
    assert [(*row[:4], json.loads(row.body)) for row in rows] == sorted(one for file in files for one in sent(file))
    kinds = {row.kind for row in rows}
    assert kinds == (KINDS if version == "0.1.0" else LATER_KINDS)
    assert {m.measurement.package_name for m in store.measurements(device=DEVICE)} == {"digits"}
    assert len(store.measurements()) == sum(row.kind == "measurement" for row in rows)
    assert len(store.drift()) == sum(row.kind == "drift" for row in rows)
    known = {row.kind for row in store.read(select(latest).where(latest.c.device == DEVICE))}
    assert known == {"slots", "update"} | (kinds & {"sample"})
    store.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_sent_again_they_are_duplicates(tmp_path, version):
    files = sorted((GOLDEN / version).iterdir())
    store = open_store(tmp_path / "store.db")
    collected(store, files)
    deliveries = [Delivery(None, f"ferryman/v1/{DEVICE}/telemetry".encode(), b"", f.read_bytes()) for f in files]
    again = store.insert(sort(deliveries).batch, 2)
    assert (again.new, again.conflicts) == (0, 0)
    store.close()


def test_a_version_is_there_for_each_schema():
    assert {"0.1.0", "0.2.0"} <= set(VERSIONS)
