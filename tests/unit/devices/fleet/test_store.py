from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet.store import Bad, Batch, Store, ranges
from ferryman.runtime.contracts.envelope import Envelope
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, encode
from tests.support.measurements import measurement


class Note(Record):
    text: str = "x"


def item(sequence: int, body: Record | None = None, *, device: str = "pi", kind: str = "note", time_ns: int = 1):
    envelope = Envelope(
        device=device,
        boot="b",
        sequence=sequence,
        time_ns=time_ns,
        kind=kind,
        body=msgspec.Raw(encode(body or Note())),
    )
    return envelope, f"ferryman/v1/{device}/telemetry", encode(envelope)


@pytest.fixture
def store(tmp_path: Path):
    database = Store(tmp_path / "store.db")
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
    assert (found.raw, found.received_at_ns) == (other[2], 6)
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
    first = Store(tmp_path / "s.db")
    first.insert(Batch([item(1)]), 5)
    first.close()
    again = Store(tmp_path / "s.db", create=False)
    assert again.id == first.id
    assert again.totals().records == 1
    again.close()


def test_a_store_of_a_later_version_is_refused(tmp_path):
    Store(tmp_path / "s.db").close()
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"later ferryman .*version 99"):
        Store(tmp_path / "s.db")


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "s.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        Store(tmp_path / "s.db")
    assert (tmp_path / "s.db").read_bytes() == b"no database" * 1000


def test_reading_a_store_that_is_not_there_does_not_make_one(tmp_path):
    with pytest.raises(CallerError, match="ferryman collect"):
        Store(tmp_path / "s.db", create=False)
    assert list(tmp_path.iterdir()) == []


@given(st.sets(st.integers(1, 30)))
def test_ranges_hold_exactly_the_sequences(sequences):
    spans = ranges(sequences)
    assert [s for first, last in spans for s in range(first, last + 1)] == sorted(sequences)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(spans))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.sampled_from("ab")), max_size=6), max_size=5))
def test_whatever_comes_in_whatever_order_the_first_wins_and_nothing_is_lost(tmp_path_factory, batches):
    store = Store(tmp_path_factory.mktemp("store") / "s.db")
    first: dict[int, str] = {}
    conflicts = set()
    for batch in batches:
        expected_new = 0
        for sequence, text in batch:
            expected_new += sequence not in first
            if first.setdefault(sequence, text) != text:
                conflicts.add((sequence, text))
        assert store.insert(Batch([item(s, Note(text=t)) for s, t in batch]), 1).new == expected_new
    rows = store._read("SELECT sequence, json_extract(body, '$.text') FROM records", {})
    assert dict(rows) == first
    assert len(store.quarantine()) == len(conflicts)
    store.close()
