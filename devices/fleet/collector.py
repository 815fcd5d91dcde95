"""The collector: telemetry from the broker into the store, nothing acknowledged before it is committed.

The network thread puts what comes into a bounded inbox. One thread takes all there is, commits it, and only then
acknowledges to the broker and sends the devices their receipts; while it commits, the next batch gathers.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.store.quarantine import WHOLE_MAX_BYTES, Bad
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, Store, open_store, ranges
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.envelope import EnvelopeV1, Receipt
from ferryman.runtime.contracts.errors import LinkError, StoreError
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode, encode

log = logging.getLogger(__name__)

MESSAGE_MAX_BYTES = WHOLE_MAX_BYTES
INBOX_MAX_BYTES = 64 << 20
BATCH_MAX = 2000
RECEIVE_MAX = 2000
SESSION_EXPIRY_S = 7 * 24 * 3600
RETRY_DISK_S = 1.0
_NAME_MAX_CHARS = 256
_SEQUENCE_MAX = (1 << 63) - 1

_BODIES: dict[str, type[Record]] = {"measurement": Measurement, "drift": Drift}
"""Kinds that the queries decode; a body that is not one is quarantined. Other kinds are stored as they are."""


class Progress(NamedTuple):
    """What the collector has done since it started."""

    new: int = 0
    duplicates: int = 0
    quarantined: int = 0
    statuses: int = 0


class Identity(Record):
    """The least of an envelope that a receipt needs."""

    boot: str
    sequence: int


def parse_telemetry(topic: str, payload: bytes) -> EnvelopeV1:
    """Read and check one telemetry message.

    Raises:
        ValueError: it cannot be taken; the message is the reason that goes into quarantine.
    """
    device = topics.device_of(topic)
    if len(payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes, at most {MESSAGE_MAX_BYTES} are taken")
    try:
        envelope = msgspec.json.decode(payload, type=EnvelopeV1)
        body = bytes(envelope.body)
        body.decode()
        msgspec.json.decode(body)  # what is stored can be read by whoever comes later
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not an envelope: {error}") from error
    if envelope.schema != 1:
        raise ValueError(f"schema {envelope.schema}, this collector knows 1")
    if envelope.device != device:
        raise ValueError(f"the topic says device {device!r}, the envelope {envelope.device!r}")
    if not (envelope.boot and envelope.kind and max(len(envelope.boot), len(envelope.kind)) <= _NAME_MAX_CHARS):
        raise ValueError(f"boot and kind must have 1 to {_NAME_MAX_CHARS} characters")
    if not (0 < envelope.sequence <= _SEQUENCE_MAX and 0 <= envelope.time_ns <= _SEQUENCE_MAX):
        raise ValueError("sequence or time_ns out of range")
    if (kind := _BODIES.get(envelope.kind)) is not None:
        try:
            decode(body, kind)
        except ValueError as error:
            raise ValueError(f"body is no {envelope.kind}: {error}") from error
    return envelope


def parse_status(topic: str, payload: bytes) -> Status:
    """Read and check one status message.

    Raises:
        ValueError: as for telemetry.
    """
    device = topics.device_of(topic)
    if len(payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes, at most {MESSAGE_MAX_BYTES} are taken")
    status = decode(payload, Status)
    if status.device != device:
        raise ValueError(f"the topic says device {device!r}, the status {status.device!r}")
    return status


class _Inbox:
    """Deliveries to be committed, bounded in bytes: a full one holds up the network thread, and so the broker."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Delivery] = deque()
        self._bytes = 0
        self._closed = False

    def put(self, delivery: Delivery) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < INBOX_MAX_BYTES or self._closed)
            self._waiting.append(delivery)
            self._bytes += len(delivery.payload)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> list[Delivery]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            taken = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            self._bytes -= sum(len(d.payload) for d in taken)
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Collector:
    """Collects from one broker into one store until stopped."""

    def __init__(self, broker: BrokerConfig, store: Store) -> None:
        self.progress = Progress()
        self._store = store
        self._inbox = _Inbox()
        self._commit_problem: str | None = None
        # The session at the broker belongs to the database: another collector with another one has its own.
        self.link = Link(
            broker,
            f"ferryman-collector-{store.id}",
            session_expiry_s=SESSION_EXPIRY_S,
            manual_ack=True,
            receive_max=RECEIVE_MAX,
        )
        self.link.subscribe(topics.ALL_TELEMETRY, self._inbox.put)
        self.link.subscribe(topics.ALL_STATUS, self._inbox.put)

    def run(self, stop: threading.Event, on_progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Collect until `stop` is set; what was not committed then, the broker keeps."""
        self.link.start()
        try:
            while not stop.is_set():
                deliveries = self._inbox.take(0.2)
                if deliveries and self._commit(deliveries, stop):
                    on_progress(self.progress)
        finally:
            self._inbox.close()
            self.link.stop()

    def _commit(self, deliveries: list[Delivery], stop: threading.Event) -> bool:
        batch, receipts = _sort(deliveries)
        while True:
            try:
                inserted = self._store.insert(batch, time.time_ns())
                break
            except StoreError as error:
                if self._commit_problem != str(error):
                    log.error("%s; nothing is acknowledged, trying again", error)  # noqa: TRY400  # no traceback: said in full
                self._commit_problem = str(error)
                if stop.wait(RETRY_DISK_S):
                    return False
        self._commit_problem = None
        self.progress = Progress(
            self.progress.new + inserted.new,
            self.progress.duplicates + inserted.duplicates,
            self.progress.quarantined + len(batch.bad) + inserted.conflicts,
            self.progress.statuses + len(batch.statuses),
        )
        for bad in batch.bad:
            log.warning("quarantined a message on %s: %s", bad.topic, bad.reason)
        for delivery in deliveries:
            delivery.acknowledge()
        for message in receipts:
            try:
                self.link.publish(message)
            except LinkError:  # the devices send again, and are told then
                break
        return True


def _sort(deliveries: list[Delivery]) -> tuple[Batch, list[Message]]:
    """What to store, and the receipts to send once it is."""
    arrived: list[Arrived] = []
    bad: list[Bad] = []
    statuses: dict[str, Status] = {}
    committed: dict[tuple[str, str], list[int]] = defaultdict(list)
    for delivery in deliveries:
        topic, payload = delivery.topic, delivery.payload
        try:
            if topic.endswith("/status"):
                if payload:  # empty: somebody cleared the retained status
                    status = parse_status(topic, payload)
                    statuses[status.device] = status
                continue
            envelope = parse_telemetry(topic, payload)
            row = Row(envelope.sequence, envelope.kind, envelope.time_ns, None, True, bytes(envelope.body))
            arrived.append(Arrived(envelope.device, envelope.boot, (row,), topic, payload))
            committed[envelope.device, envelope.boot].append(envelope.sequence)
        except ValueError as error:
            bad.append(Bad(topic, payload, str(error)))
            if len(payload) <= WHOLE_MAX_BYTES and (identity := _identity(topic, payload)) is not None:
                # Its bytes are kept in quarantine; without a receipt the device would send it for ever.
                committed[identity[0], identity[1]].append(identity[2])
    receipts = [
        Message(topic=topics.receipt(device), payload=encode(Receipt(boot=boot, ranges=ranges(sequences))))
        for (device, boot), sequences in committed.items()
    ]
    return Batch(arrived, bad, list(statuses.values())), receipts


def _identity(topic: str, payload: bytes) -> tuple[str, str, int] | None:
    try:
        identity = decode(payload, Identity)
        device = topics.device_of(topic)
    except ValueError:
        return None
    if len(identity.boot) > _NAME_MAX_CHARS or not 0 < identity.sequence <= _SEQUENCE_MAX:
        return None
    return device, identity.boot, identity.sequence


def run_collector(
    broker: BrokerConfig,
    database: Path,
    *,
    stop: threading.Event,
    on_connected: Callable[[], None] = lambda: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Collect into `database` (made if missing) until `stop` is set.

    `on_connected` is called on each connection to the broker.

    Raises:
        StoreError: the database cannot be opened, or another collector writes to it.
    """
    store = open_store(database)
    try:
        with _only_one(database):
            collector = Collector(broker, store)
            collector.link.on_ready(on_connected)
            collector.run(stop, on_progress)
            return collector.progress
    finally:
        store.close()


@contextmanager
def _only_one(database: Path) -> Iterator[None]:
    """Two collectors on one store would share a session's name, and throw each other out without end."""
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"store {database}: another collector writes to it; stop that one first") from error
        yield
