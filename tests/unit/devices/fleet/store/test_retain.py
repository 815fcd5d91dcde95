"""What is too old goes, and nothing else; rollups after that: test_rollup.py."""

from __future__ import annotations

import json
import os

from sqlalchemy import func, select

from ferryman.devices.fleet.store.quarantine import Bad
from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, open_store
from ferryman.devices.fleet.store.tables import latest, records, rollups
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import Sample
from tests.unit.devices.fleet.store.test_migrate import old, swell  # noqa: F401  # a fixture

DAY = 86_400 * 10**9
NOW = 20_000 * DAY
BODY = encode(Sample(period_s=10, values={"cpu_percent": 5.0}))


def put(store, *rows: Row, device: str = "pi", now_ns: int = NOW) -> None:
    store.insert(Batch([Arrived(device, "outbox.kernel", rows, "t", b"raw")]), now_ns)


def row(sequence: int, time_ns: int = NOW, kind: str = "sample") -> Row:
    return Row(sequence, kind, time_ns, sequence, True, BODY)


def left(store) -> list[int]:
    return sorted(sequence for (sequence,) in store.read(select(records.c.sequence)))


def test_each_kind_goes_at_its_age(both):
    put(both, row(1), row(2, kind="log"), row(3, kind="update"))
    for device in ("nano", "pico"):
        put(both, row(7), device=device)
    roll_up(both, NOW + DAY)
    assert retain(both, Policy(), NOW + 29 * DAY)[:2] == (0, 0)
    assert retain(both, Policy(), NOW + 31 * DAY)[:2] == (3, 0)
    assert left(both) == [2, 3]
    assert retain(both, Policy(), NOW + 364 * DAY).others == 0
    assert retain(both, Policy(), NOW + 366 * DAY).others == 2
    assert both.read(select(latest.c.kind).where(latest.c.device == "pi").order_by("kind")) == [
        ("sample",),
        ("update",),
    ]


def test_nothing_goes_when_it_is_kept_for_ever(both):
    put(both, row(1), row(2, kind="log"))
    roll_up(both, NOW + DAY)
    policy = Policy(samples_days=None, others_days=None, hours_days=None)
    assert retain(both, policy, NOW + 9999 * DAY)[:5] == (0, 0, 0, 0, 0)


def test_the_age_counts_from_arrival_where_that_is_later_and_where_the_clock_was_ahead(both):
    put(both, row(1, NOW - 300 * DAY), row(2, NOW + 3000 * DAY), row(3, 5, kind="log"))
    roll_up(both, NOW + DAY)
    assert retain(both, Policy(), NOW + 29 * DAY)[:2] == (0, 0)
    assert retain(both, Policy(), NOW + 32 * DAY).samples == 2
    assert retain(both, Policy(), NOW + 366 * DAY).others == 1


def test_hours_go_before_days_and_days_where_it_is_said(both):
    put(both, *(row(n, NOW + n * DAY // 8) for n in range(1, 30)))
    roll_up(both, NOW + 10 * DAY)

    def count(span_s: int) -> int:
        return both.read(select(func.count()).where(rollups.c.span_s == span_s))[0][0]

    assert (count(3600), count(86400)) == (29, 4)
    assert retain(both, Policy(), NOW + 182 * DAY).hours == 15
    assert (count(3600), count(86400)) == (14, 4)
    assert retain(both, Policy(days_days=400), NOW + 402 * DAY).days == 2
    assert (count(3600), count(86400)) == (0, 2)


def test_quarantine_keeps_to_its_bytes(both):
    for n in range(50):
        both.insert(Batch(bad=[Bad("t", b"%d" % n + bytes(1000), "r")]), NOW + n)
    assert retain(both, Policy(quarantine_max_bytes=20_000), NOW).quarantined > 30
    kept = both.quarantine()
    assert sum(len(bad.raw) for bad in kept) < 20_000
    assert kept[0].raw.startswith(b"49")


def test_a_sqlite_file_gives_back_what_is_free(tmp_path):
    store = open_store(tmp_path / "s.db")
    body = json.dumps({"text": os.urandom(500).hex()}).encode()
    for first in range(1, 30_000, 5000):
        put(store, *(Row(n, "log", NOW, n, True, body) for n in range(first, first + 5000)))
    done = retain(store, Policy(), NOW + 400 * DAY)
    assert done.others == 30_000
    assert done.freed_bytes > 25_000_000
    assert done.not_freed == ""
    put(store, row(99_999))
    store.close()
    assert (tmp_path / "s.db").stat().st_size < 5_000_000


def test_a_file_of_an_earlier_version_says_why_it_stays_as_large(old):  # noqa: F811
    swell(old, 40_000)
    store = open_store(old)
    done = retain(store, Policy(), NOW + 400 * DAY)
    assert done.others == 40_000
    assert done.freed_bytes == 0
    assert "stop the collector and run VACUUM" in done.not_freed
    store.close()
