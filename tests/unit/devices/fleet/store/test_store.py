from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from ferryman.devices.fleet.store import quarantine
from ferryman.devices.fleet.store.store import Arrived, Bad, Batch, Row, open_store, ranges
from ferryman.devices.fleet.store.tables import records
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, encode
from tests.support.measurements import measurement


class Note(Record):
    text: str = "x"


def item(sequence: int, body: Record | None = None, *, device: str = "pi", kind: str = "note", time_ns: int = 1):
    row = Row(sequence, kind, time_ns, None, True, encode(body or Note()))
    return Arrived(device, "b", (row,), f"ferryman/v1/{device}/telemetry", repr(row).encode())


@pytest.fixture
def store(both):
    return both


@pytest.fixture
def file(tmp_path: Path):
    database = open_store(tmp_path / "store.db")
    yield database
    database.close()


def test_the_same_record_again_is_a_duplicate_even_within_one_batch(store):
    assert store.insert(Batch([item(1), item(2), item(1)]), 5) == (2, 1, 0)
    assert store.insert(Batch([item(1), item(3)]), 6) == (1, 1, 0)
    assert store.totals() == (3, 0, 0)


@pytest.mark.parametrize("other", [item(1, Note(text="other")), item(1, time_ns=2), item(1, kind="memo")])
def test_another_record_under_the_same_name_is_kept_in_quarantine(store, other):
    store.insert(Batch([item(1)]), 5)
    assert store.insert(Batch([other]), 6) == (0, 0, 1)
    (found,) = store.quarantine()
    assert (found.raw, found.received_at_ns) == (other.raw, 6)
    assert "conflict" in found.reason
    assert store.totals().records == 1


def test_bad_messages_are_kept_once_and_counted(store):
    bad = Bad("ferryman/v1/pi/telemetry", b"\xff\x00", "not an envelope")
    store.insert(Batch(bad=[bad, bad]), 5)
    store.insert(Batch(bad=[bad]), 6)
    (found,) = store.quarantine()
    assert (found.topic, found.raw, found.reason, found.times) == (*bad, 3)


def test_the_last_status_of_each_device_is_kept(store):
    for device, online in (("b", True), ("a", True), ("a", False)):
        store.insert(Batch(statuses=[Status(device=device, online=online)]), 5)
    assert [(d.status.device, d.status.online) for d in store.devices()] == [("a", False), ("b", True)]


def test_measurements_come_back_newest_first_and_filtered(store):
    first, second, third = (
        measurement(started_at_ns=1),
        measurement("faces", "ab", started_at_ns=2),
        measurement(started_at_ns=3),
    )
    store.insert(
        Batch(
            [
                item(1, third, kind="measurement", time_ns=30),
                item(2, first, kind="measurement", time_ns=10),
                item(1, second, kind="measurement", time_ns=20, device="nano"),
                item(3),
            ]
        ),
        99,
    )
    assert [m.measurement for m in store.measurements()] == [third, second, first]
    assert [m.device for m in store.measurements(limit=2)] == ["pi", "nano"]
    assert [m.measurement for m in store.measurements(device="pi")] == [third, first]
    assert [m.measurement for m in store.measurements(package="faces")] == [second]
    assert [m.measurement for m in store.measurements(package="ab", device="nano")] == [second]
    assert store.measurements(package="no such") == []


def test_a_store_keeps_its_id_and_records(tmp_path):
    first = open_store(tmp_path / "s.db")
    first.insert(Batch([item(1)]), 5)
    first.close()
    again = open_store(tmp_path / "s.db", create=False)
    assert again.id == first.id
    assert again.totals().records == 1
    again.close()


def test_a_store_of_a_later_version_is_refused(tmp_path):
    open_store(tmp_path / "s.db").close()
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"later ferryman .*version 99"):
        open_store(tmp_path / "s.db")


@contextlib.contextmanager
def opened(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection
        connection.commit()


def test_a_database_of_another_application_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "s.db"
    for version in (0, 1, 15):
        with opened(path) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS bookmarks (url TEXT)")
            connection.execute(f"PRAGMA user_version = {version}")
        before = path.read_bytes()
        for create in (True, False):
            with pytest.raises(
                StoreError, match=r"s\.db is no store of ferryman.*name the one that `ferryman collect`"
            ):
                open_store(path, create=create)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_reading_makes_nothing_of_an_empty_file(tmp_path):
    (tmp_path / "s.db").touch()
    with pytest.raises(StoreError, match="is no store of ferryman"):
        open_store(tmp_path / "s.db", create=False)
    assert [(p.name, p.stat().st_size) for p in tmp_path.iterdir()] == [("s.db", 0)]


def test_a_store_opened_for_reading_takes_nothing(tmp_path, file):
    reader = open_store(file.path, create=False)
    with pytest.raises(StoreError, match="readonly"):
        reader.insert(Batch([item(1)]), 5)
    reader.close()


@pytest.mark.parametrize("create", [True, False])
def test_a_store_without_its_id_says_what_to_do(tmp_path, create):
    open_store(tmp_path / "s.db").close()
    with opened(tmp_path / "s.db") as connection:
        connection.execute("DELETE FROM store")
    with pytest.raises(StoreError, match=r"s\.db: its table `store` is empty .*; move it away"):
        open_store(tmp_path / "s.db", create=create)


def test_a_damaged_measurement_is_named_and_the_others_come(file):
    file.insert(Batch([item(n, measurement(), kind="measurement", time_ns=n) for n in range(1, 6)]), 5)
    with opened(file.path) as connection:
        for sequence, body in ((1, "{"), (2, b"\xff"), (4, 7)):
            connection.execute("UPDATE records SET body = ? WHERE sequence = ?", (body, sequence))
        connection.execute("UPDATE records SET body = CAST(x'ff7b' AS TEXT) WHERE sequence = 5")
    for filters in ({}, {"package": "digits"}):
        damaged = []
        assert len(file.measurements(**filters, on_damaged=damaged.append)) == 1
        assert len(damaged) == 4
        assert "pi, boot b, sequence 5" in damaged[0]
    assert len(file.measurements()) == 1


def test_measurements_are_counted_beyond_the_limit(store):
    store.insert(Batch([item(n, measurement(), kind="measurement") for n in range(1, 6)]), 5)
    assert len(store.measurements(limit=2)) == 2
    assert store.count_measurements() == store.count_measurements(device="pi", package="digits") == 5
    assert store.count_measurements(package="other") == 0


def test_what_is_too_long_is_kept_as_head_and_hash(store):
    raw = bytes(range(256)) * 8192
    bad = Bad("ferryman/v1/pi/telemetry", raw, "too long")
    store.insert(Batch(bad=[bad, bad]), 5)
    (found,) = store.quarantine()
    assert found.raw == raw[: quarantine.HEAD_BYTES]
    assert (found.times, found.reason) == (
        2,
        f"too long; {len(raw)} bytes with sha256 {hashlib.sha256(raw).hexdigest()}, of which the first are kept",
    )
    whole = bytes(quarantine.WHOLE_MAX_BYTES)
    store.insert(Batch(bad=[Bad("t", whole, "r")]), 6)
    assert store.quarantine()[0].raw == whole


def test_a_full_quarantine_drops_the_oldest_counts_them_and_says_so(store, monkeypatch, caplog):
    monkeypatch.setattr(quarantine, "QUARANTINE_MAX_BYTES", 100_000)
    for n in range(300):
        store.insert(Batch(bad=[Bad("t", b"%04d" % n + bytes(1000), "r")]), n)
    *kept, dropped = sorted(store.quarantine(), key=lambda one: one.topic == "")
    assert dropped.reason == "older messages that made room for newer ones"
    assert len(kept) + dropped.times == 300
    assert {one.raw[:4] for one in kept} == {b"%04d" % n for n in range(dropped.times, 300)}
    assert sum(len(one.raw) for one in kept) < 100_000
    assert len(kept) > 60
    assert "quarantine" in caplog.text


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "s.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        open_store(tmp_path / "s.db")
    assert (tmp_path / "s.db").read_bytes() == b"no database" * 1000


def test_reading_a_store_that_is_not_there_does_not_make_one(tmp_path):
    with pytest.raises(CallerError, match="ferryman collect"):
        open_store(tmp_path / "s.db", create=False)
    assert list(tmp_path.iterdir()) == []


@given(st.sets(st.integers(1, 30)))
def test_ranges_hold_exactly_the_sequences(sequences):
    spans = ranges(sequences)
    assert [s for first, last in spans for s in range(first, last + 1)] == sorted(sequences)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(spans))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.sampled_from("ab")), max_size=6), max_size=5))
def test_whatever_comes_in_whatever_order_the_first_wins_and_nothing_is_lost(tmp_path_factory, batches):
    store = open_store(tmp_path_factory.mktemp("store") / "s.db")
    first: dict[int, str] = {}
    conflicts = set()
    for batch in batches:
        expected_new = 0
        for sequence, text in batch:
            expected_new += sequence not in first
            if first.setdefault(sequence, text) != text:
                conflicts.add((sequence, text))
        assert store.insert(Batch([item(s, Note(text=t)) for s, t in batch]), 1).new == expected_new
    rows = store.read(select(records.c.sequence, records.c.body))
    assert {sequence: json.loads(body)["text"] for sequence, body in rows} == first
    assert len(store.quarantine()) == len(conflicts)
    store.close()


def test_a_file_that_was_moved_away_or_replaced_takes_nothing_until_it_is_back(tmp_path):
    path, away = tmp_path / "store.db", tmp_path / "away.db"
    batch = Batch(arrived=[Arrived("pi", "b.k", [Row(1, "note", 1, 1, True, b"1")], "t", b"raw")])
    with contextlib.closing(open_store(path)) as store:
        path.rename(away)
        for _ in range(2):
            with pytest.raises(StoreError, match="deleted, moved or replaced"):
                store.insert(batch, 1)
            with pytest.raises(StoreError, match="deleted, moved or replaced"):
                store.totals()
            assert not path.exists()
        another = contextlib.closing(open_store(path))
        with another, pytest.raises(StoreError, match="deleted, moved or replaced"):
            store.insert(batch, 1)
        away.rename(path)
        assert store.insert(batch, 1).new == 1
    with contextlib.closing(open_store(path, create=False)) as store:
        assert store.totals().records == 1


def test_a_file_that_goes_during_a_commit_is_not_acknowledged(tmp_path):
    path = tmp_path / "store.db"
    opened = contextlib.closing(open_store(path))
    with opened as store, pytest.raises(StoreError, match="deleted, moved or replaced"):
        store.write(lambda _: path.rename(tmp_path / "away.db"))


def test_a_name_that_is_too_long_is_an_error_with_advice(tmp_path):
    with pytest.raises(CallerError, match="name another"):
        open_store(tmp_path / ("x" * 300), create=False)
