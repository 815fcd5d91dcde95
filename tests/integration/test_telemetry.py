"""Outbox, publisher, a real broker, collector and store, in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.publisher import Limits, Publisher
from ferryman.devices.fleet.collector import Collector
from ferryman.devices.fleet.store import Store
from ferryman.devices.mqtt import BrokerConfig, Link, Message
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, encode
from tests.support.mosquitto import Mosquitto

QUICK = Limits(again_first_s=0.5, again_cap_s=1.0)


class Note(Record):
    number: int


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextmanager
def agent(broker: BrokerConfig, outbox: Outbox, device: str = "pi", **options) -> Iterator[Publisher]:
    will = Message(topic=topics.status(device), payload=encode(Status(device=device, online=False)), retain=True)
    birth = Message(topic=topics.status(device), payload=encode(Status(device=device, online=True)), retain=True)
    link = Link(broker, f"agent-{device}", will=will)
    publisher = Publisher(outbox, device, link, **{"limits": QUICK, **options})
    link.on_ready(lambda: link.publish(birth))
    link.start()
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop()
        link.stop()


@contextmanager
def collecting(broker: BrokerConfig, store: Store) -> Iterator[Collector]:
    stop = threading.Event()
    collector = Collector(broker, store)
    thread = threading.Thread(target=collector.run, args=(stop,))
    thread.start()
    try:
        yield collector
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    database = Store(tmp_path / "store.db")
    yield database
    database.close()


def fill(outbox: Outbox, count: int) -> None:
    outbox.append_all([("note", Note(number=n)) for n in range(count)], time.time_ns())


def numbers(store: Store) -> list[int]:
    rows = store._read("SELECT json_extract(body, '$.number') FROM records ORDER BY sequence", {})
    return [row[0] for row in rows]


def test_records_reach_the_store_and_leave_the_outbox(tmp_path, outbox, store):
    fill(outbox, 2000)
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store), agent(broker.config, outbox):
        until(lambda: outbox.counts().records == 0)
        until(lambda: [d.status.online for d in store.devices()] == [True])
    assert numbers(store) == list(range(2000))


def test_a_clean_stop_is_reported_as_offline(tmp_path, outbox, store):
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        with agent(broker.config, outbox):
            until(lambda: [d.status.online for d in store.devices()] == [True])
        until(lambda: [d.status.online for d in store.devices()] == [False])


def test_without_a_collector_records_stay_in_the_outbox(tmp_path, outbox, store):
    fill(outbox, 50)
    with Mosquitto(tmp_path) as broker, agent(broker.config, outbox) as publisher:
        until(lambda: len(publisher._window.again_at) == 50 and not publisher._window.in_flight)
        assert outbox.counts().records == 50
        with collecting(broker.config, store):
            until(lambda: outbox.counts().records == 0)
    assert numbers(store) == list(range(50))


def test_the_broker_alone_frees_the_outbox_when_asked(tmp_path, outbox):
    fill(outbox, 50)
    with Mosquitto(tmp_path) as broker, agent(broker.config, outbox, confirm="broker"):
        until(lambda: outbox.counts().records == 0)


def test_a_broker_that_comes_late_is_found(tmp_path, outbox, store):
    fill(outbox, 5)
    broker = Mosquitto(tmp_path)
    with collecting(broker.config, store), agent(broker.config, outbox):
        time.sleep(0.5)
        with broker:
            until(lambda: outbox.counts().records == 0)
    assert numbers(store) == list(range(5))
