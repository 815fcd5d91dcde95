"""Agent half and collector in this process, to be used with `with`."""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import msgspec
import pytest
from sqlalchemy import select

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.publisher import Publisher
from ferryman.devices.agent.window import Limits
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector.collector import Collector
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.fleet.store.tables import records
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.envelope import Envelope, EnvelopeV1, Receipt
from ferryman.runtime.contracts.errors import LinkError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode, encode

QUICK = Limits(again_first_s=0.5, again_cap_s=1.0, spread_s=0.0)
ONCE = Limits(again_first_s=600.0, spread_s=0.0)
"""Where a machine that is slow to answer must not have anything sent twice."""


class Note(Record):
    number: int


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def kept_out(link: Link, why: str) -> str:
    """What a link that is not let in says, which is `why` (a regular expression) sooner or later."""
    until(lambda: re.search(why, link.problem) is not None)
    with pytest.raises(LinkError, match=why) as caught:
        link.wait_ready(0.1)
    return str(caught.value)


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
def collecting(broker: BrokerConfig, store: Store, wait_s: float = 60.0) -> Iterator[Collector]:
    """Subscribed when it yields: a broker drops what comes before that. No wait for a broker that is to come late."""
    stop = threading.Event()
    collector = Collector(broker, store, f"ferryman-collector-{store.id}")
    thread = threading.Thread(target=collector.run, args=(stop,))
    thread.start()
    try:
        if wait_s:
            collector.link.wait_ready(wait_s)
        yield collector
    finally:
        stop.set()
        thread.join()


class Receiver:
    """In the place of a collector: keeps what comes in memory, and sends receipts."""

    def __init__(self, broker: BrokerConfig, device: str = "pi") -> None:
        self.envelopes: list[Envelope | EnvelopeV1] = []
        self.payloads: list[bytes] = []
        self.silent = False
        """Send no receipts."""
        self._topic = topics.receipt(device)
        self.link = Link(broker, "receiver")
        self.link.subscribe(topics.telemetry(device), self._take)

    def __enter__(self) -> Self:
        self.link.start()
        self.link.wait_ready(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop()

    @property
    def sequences(self) -> list[int]:
        return [one for envelope in self.envelopes for one in carried(envelope)]

    def _take(self, delivery: Delivery) -> None:
        envelope = read(delivery.payload)
        self.payloads.append(delivery.payload)
        self.envelopes.append(envelope)
        if not self.silent:
            spans = tuple((one, one) for one in carried(envelope))
            self.link.publish(Message(topic=self._topic, payload=encode(Receipt(boot=envelope.boot, ranges=spans))))


def read(payload: bytes) -> Envelope | EnvelopeV1:
    plain = payload if payload.startswith(b"{") else zlib.decompress(payload)
    schema = msgspec.json.decode(plain)["schema"]
    return decode(plain, Envelope if schema == 2 else EnvelopeV1)


def carried(envelope: Envelope | EnvelopeV1) -> list[int]:
    return [item.sequence for item in envelope.items] if isinstance(envelope, Envelope) else [envelope.sequence]


def fill(outbox: Outbox, count: int) -> None:
    outbox.append_all([("note", Note(number=n)) for n in range(count)])


def numbers(store: Store) -> list[int]:
    return [json.loads(body)["number"] for (body,) in store.read(select(records.c.body).order_by(records.c.sequence))]
