from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector import collector
from ferryman.devices.fleet.collector.collector import Collector, Commit, sort
from ferryman.devices.fleet.collector.inbox import Delivery
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.errors import StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from tests.unit.devices.fleet.collector.test_parse import JSON, ONE, TOPIC, batch, item, raw


class Client:
    """The end of a connection, without a broker."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[bytes], list[tuple[str, bytes]]]] = []

    def send(self, acknowledged, messages) -> None:
        self.sent.append((list(acknowledged), list(messages)))


def came(topic: str, payload: bytes, client: Any = None, identifier: bytes = b"") -> Delivery:
    return Delivery(client, topic.encode(), identifier, payload)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Store]:
    database = open_store(tmp_path_factory.mktemp("store") / "store.db")
    yield database
    database.close()


def test_receipts_cover_what_is_stored_and_what_is_quarantined_with_a_name():
    deliveries = [came(TOPIC, raw(sequence=s)) for s in (3, 1, 2, 7)]
    deliveries += [came(TOPIC, raw(sequence=4, schema=9)), came(TOPIC, b"garbage"), came(TOPIC, batch(item(9), ["x"]))]
    deliveries += [came("ferryman/v1/pi/status", b""), came("ferryman/v1/pi/status", b"garbage")]
    found = sort(deliveries)
    assert [row.sequence for one in found.batch.arrived for row in one.rows] == [3, 1, 2, 7, 9]
    assert len(found.batch.bad) == 4
    ((topic, payload),) = found.receipts
    assert topic == "ferryman/v1/pi/receipt"
    assert decode(payload, Receipt) == Receipt(boot="b", ranges=((1, 4), (7, 7), (9, 9)))


def test_a_device_gets_one_receipt_a_commit_and_boot():
    deliveries = [
        came(f"ferryman/v1/{device}/telemetry", batch(item(n), device=device, boot=boot))
        for n in range(1, 30)
        for device in ("a", "b")
        for boot in ("x", "y")
    ]
    assert len(sort(deliveries).receipts) == 4


def test_every_status_of_a_device_is_handed_on_in_order():
    births = [Status(device="pi", online=online, birth=birth) for online, birth in ((True, 2), (False, 1))]
    found = sort([came("ferryman/v1/pi/status", encode(one)) for one in births])
    assert list(found.batch.statuses) == births


def test_what_goes_beyond_one_commit_is_left_for_the_next(monkeypatch):
    monkeypatch.setattr(collector, "ROWS_MAX", 10)
    payload = batch(*[item(n) for n in range(1, 7)])
    assert sort([came(TOPIC, payload)] * 5).taken == 2
    monkeypatch.setattr(collector, "BYTES_MAX", 10)
    assert sort([came(TOPIC, payload)] * 5).taken == 1


class Refusing:
    """A store that fails for some time."""

    dialect, name, id = "sqlite", "x", "0"

    def __init__(self, store: Store, times: int) -> None:
        self.times = times
        self._store = store

    def insert(self, batch, now_ns):
        self.times -= 1
        if self.times >= 0:
            raise StoreError("store x: disk full")
        return self._store.insert(batch, now_ns)


def a_collector(store: Any, **options: Any) -> Collector:
    return Collector(BrokerConfig(host="127.0.0.1", port=1), store, "x", **options)


def test_nothing_is_acknowledged_before_it_is_committed(store, monkeypatch, caplog):
    monkeypatch.setattr(collector, "RETRY_DISK_S", 0.0)
    client, commits = Client(), []
    refusing = Refusing(store, 3)

    def on_commit(commit: Commit) -> None:
        commits.append(commit)
        assert refusing.times == -1

    a_collector(refusing, on_commit=on_commit)._take(
        [came(TOPIC, raw(boot="once", sequence=1), client, b"\0\1")], threading.Event()
    )
    ((acknowledged, receipts),) = client.sent
    assert acknowledged == [b"\0\1"]
    assert [topic for topic, _ in receipts] == ["ferryman/v1/pi/receipt"]
    assert commits[0].inserted.new == 1
    assert caplog.text.count("nothing is acknowledged") == 1
    assert "it commits again" in caplog.text


def test_a_stop_while_the_store_fails_acknowledges_nothing(store):
    client, stop = Client(), threading.Event()
    stop.set()
    a_collector(Refusing(store, 1000))._take([came(TOPIC, raw(), client, b"\0\1")], stop)
    assert client.sent == []


def test_each_connection_has_its_own_acknowledgements_and_the_newest_the_receipts(store):
    old, new = Client(), Client()
    deliveries = [
        came(TOPIC, raw(boot="two", sequence=n), client, bytes((0, n))) for n, client in ((1, old), (2, new), (3, new))
    ]
    a_collector(store)._take(deliveries, threading.Event())
    assert old.sent == [([b"\0\1"], [])]
    ((acknowledged, receipts),) = new.sent
    assert (acknowledged, len(receipts)) == ([b"\0\2", b"\0\3"], 1)


def test_what_is_too_much_for_one_commit_is_committed_next(store, monkeypatch):
    monkeypatch.setattr(collector, "ROWS_MAX", 3)
    client, seen = Client(), []
    one = a_collector(store, on_commit=lambda commit: seen.append(commit.messages))
    one.inbox.put(client, [(TOPIC.encode(), bytes((0, n)), raw(boot="much", sequence=n)) for n in range(1, 9)])
    while deliveries := one.inbox.take(0, 100):
        one._take(deliveries, threading.Event())
    assert seen == [3, 3, 2]
    assert [a for acknowledged, _ in client.sent for a in acknowledged] == [bytes((0, n)) for n in range(1, 9)]
    assert one.inbox.bytes == 0


def test_the_newest_record_tells_the_lag(store):
    commits: list[Commit] = []
    one = a_collector(store, on_commit=commits.append)
    one._take(
        [came(TOPIC, raw(boot="lag", sequence=n, time_ns=n * 100), Client()) for n in (1, 3, 2)], threading.Event()
    )
    one._take([came(TOPIC, b"garbage", Client())], threading.Event())
    assert [commit.newest_ns for commit in commits] == [300, 0]


CHANGED = st.dictionaries(st.sampled_from([*ONE, "extra"]), JSON).map(lambda changes: raw(**changes))
TEXT_CHANGED = st.tuples(CHANGED, st.integers(0, 200), st.binary(max_size=4)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
)
ITEMS = st.lists(st.one_of(JSON, st.tuples(JSON, st.just("note"), st.just(5), JSON, JSON, JSON)), max_size=4)
BATCHES = ITEMS.map(lambda items: batch(*items))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), CHANGED, TEXT_CHANGED, BATCHES),
    st.one_of(st.just(TOPIC), st.just("ferryman/v1/pi/status"), st.text(st.characters(codec="utf-8"), max_size=40)),
)
def test_whatever_comes_is_either_stored_or_quarantined_and_never_crashes(store, payload, topic):
    before = store.totals()
    found = sort([came(topic, payload)])
    batch = found.batch
    if not (topic.endswith("/status") and not payload):
        assert batch.arrived or batch.bad or batch.statuses
    inserted = store.insert(batch, 1)
    after = store.totals()
    assert after.records == before.records + inserted.new
    assert after.quarantined <= before.quarantined + len(batch.bad) + inserted.conflicts
    assert store.measurements() == []
    for _, message in found.receipts:
        assert decode(message, Receipt).ranges


def test_bad_bytes_in_a_topic_are_quarantined():
    found = sort([Delivery(None, b"ferryman/v1/\xff/telemetry", b"", json.dumps(ONE).encode())])
    assert len(found.batch.bad) == 1


@pytest.mark.parametrize("told", [False, True])
def test_a_status_is_asked_for_soon_when_records_come_without_one(store, monkeypatch, told):
    monkeypatch.setattr(collector, "REFRESH_SOON_S", 0.0)
    one, stop, asked = Collector(BrokerConfig(host="127.0.0.1", port=1), store, "x"), threading.Event(), []
    for name in ("start", "stop"):
        monkeypatch.setattr(one.link, name, lambda: None)
    monkeypatch.setattr(one.link, "refresh", lambda: asked.append(1))
    turns = iter([[came(TOPIC, raw(sequence=1), Client())], [], [], []])

    def take(_wait_s, _most):
        if (found := next(turns, None)) is None:
            stop.set()
        return found

    monkeypatch.setattr(one.inbox, "take", take)
    if told:
        one._take([came("ferryman/v1/pi/status", encode(Status(device="pi", online=True)), Client())], stop)
    one.run(stop)
    assert len(asked) == (not told)  # and once: not again while none comes
