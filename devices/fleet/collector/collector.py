"""The collector: telemetry from the broker into the store, nothing acknowledged before it is committed.

The network thread puts what comes into a bounded inbox. One thread takes all there is, commits it, and only then
acknowledges to the broker and sends the devices their receipts; while it commits, the next batch gathers.

Of a SQLite store there is one collector, with a lasting session at the broker. Of a PostgreSQL store there may be any
number: they share one subscription, and each takes whatever the broker gives it. One that dies is forgotten soon, and
what it had not committed the devices send again, to the others.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector.bulk import BulkClient
from ferryman.devices.fleet.collector.inbox import Delivery, Inbox
from ferryman.devices.fleet.collector.parse import ITEMS_MAX, UNPACKED_MAX_BYTES, parse_telemetry
from ferryman.devices.fleet.collector.status import parse_status
from ferryman.devices.fleet.rights import check_right
from ferryman.devices.fleet.store.quarantine import Bad
from ferryman.devices.fleet.store.store import Arrived, Batch, Inserted, Store, ranges
from ferryman.devices.mqtt import Link
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.errors import StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode

log = logging.getLogger(__name__)

MESSAGES_MAX = 4000
"""In one commit; so are ROWS_MAX and BYTES_MAX, but for the message that goes beyond them."""
ROWS_MAX = 2 * ITEMS_MAX
BYTES_MAX = 4 * UNPACKED_MAX_BYTES
RECEIVE_MAX = 8000
"""Messages without our acknowledgement: those of one commit, and the next that gathers meanwhile."""
PACKET_MAX_BYTES = 16 << 20
SESSION_EXPIRY_S = 7 * 24 * 3600
SHARED_EXPIRY_S = 30
"""Of one collector among several: long enough for a restart, short enough that little waits for one that is gone."""
REFRESH_S = 600.0
"""How often the devices' retained status is asked for again: with QoS 0 one may be lost."""
REFRESH_SOON_S = 10.0
"""When records came of a device that told no status: the broker's rules may have let none through."""
RETRY_DISK_S = 1.0
_BEGIN, _TELEMETRY, _STATUS = f"{topics.PREFIX}/".encode(), b"/telemetry", b"/status"


class Commit(NamedTuple):
    """What one commit took in, for those who keep count."""

    messages: int
    inserted: Inserted
    bad: tuple[Bad, ...]
    statuses: int
    seconds: float
    newest_ns: int
    """When the newest of its records was recorded, by the device's clock; 0: it had none."""


class Sorted(NamedTuple):
    """What of some deliveries goes into one commit."""

    batch: Batch
    receipts: list[tuple[str, bytes]]
    """Topic and payload, to be sent once it is committed."""
    taken: int
    """How many of the deliveries that is."""


class Collector:
    """Collects from one broker into one store until stopped."""

    def __init__(
        self,
        broker: BrokerConfig,
        store: Store,
        client_id: str,
        on_commit: Callable[[Commit], None] = lambda _: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            broker: where from.
            store: where to.
            client_id: unique at the broker; see `ferryman.devices.fleet.collector.instance`.
            on_commit: told of each commit, on the thread that commits.
            on_failure: told of each commit that the store refused.
        """
        self.inbox = Inbox()
        self._store = store
        self._on_commit, self._on_failure = on_commit, on_failure
        self._commit_problem: str | None = None
        shared = store.dialect == "postgresql"
        self.link = Link(
            broker,
            client_id,
            session_expiry_s=SHARED_EXPIRY_S if shared else SESSION_EXPIRY_S,
            manual_ack=True,
            receive_max=RECEIVE_MAX,
            packet_max_bytes=PACKET_MAX_BYTES,
            new_client=functools.partial(BulkClient, _BEGIN, (_TELEMETRY, _STATUS), self.inbox.put),
        )
        group = f"$share/ferryman-{store.id}/" if shared else ""
        self.link.subscribe(group + topics.ALL_TELEMETRY, _taken_in_bulk)
        # A shared subscription gets nothing retained, and a queue of QoS 1 holds less than a fleet.
        self.link.subscribe(topics.ALL_STATUS, _taken_in_bulk, qos=0)
        check_right(self.link, "collector", "receipt")
        self._told: set[str] = set()
        """Devices whose status came, or was asked for again in vain."""
        self._untold: set[str] = set()
        """Those whose records came, and no status."""

    def run(self, stop: threading.Event) -> None:
        """Collect until `stop` is set; what was not committed then, the broker or the device keeps."""
        self.link.start()
        refresh_at = time.monotonic() + REFRESH_S
        soon_at = time.monotonic() + REFRESH_SOON_S
        try:
            while not stop.is_set():
                if deliveries := self.inbox.take(0.2, MESSAGES_MAX):
                    self._take(deliveries, stop)
                now = time.monotonic()
                if now >= refresh_at or (self._untold and now >= soon_at):
                    self.link.refresh()
                    self._told |= self._untold
                    self._untold.clear()
                    refresh_at, soon_at = now + REFRESH_S, now + REFRESH_SOON_S
        finally:
            self.inbox.close()
            self.link.stop()

    def _take(self, deliveries: list[Delivery], stop: threading.Event) -> None:
        """Commit the first of `deliveries`, and leave the rest for the next time."""
        batch, receipts, count = sort(deliveries)
        if count < len(deliveries):
            self.inbox.give_back(deliveries[count:])
        began = time.monotonic()
        if (inserted := self._insert(batch, stop)) is None:
            return
        seconds = time.monotonic() - began
        acknowledged: dict[BulkClient, list[bytes]] = defaultdict(list)
        for delivery in deliveries[:count]:
            acknowledged[delivery.client].append(delivery.identifier)
        *earlier, last = acknowledged.items()
        for client, identifiers in earlier:
            client.send(identifiers, ())
        last[0].send(last[1], receipts)
        told_of = (*batch.statuses, *batch.retained)
        told = {status.device for status in told_of}
        self._told |= told
        self._untold = (self._untold - told) | ({one.device for one in batch.arrived} - self._told)
        for bad in batch.bad:
            log.warning("quarantined a message on %s: %s", bad.topic, bad.reason)
        newest_ns = max((row.time_ns for one in batch.arrived for row in one.rows), default=0)
        self._on_commit(Commit(count, inserted, tuple(batch.bad), len(told_of), seconds, newest_ns))

    def _insert(self, batch: Batch, stop: threading.Event) -> Inserted | None:
        """Again and again until it is committed; None: stopped meanwhile."""
        while True:
            try:
                inserted = self._store.insert(batch, time.time_ns())
            except StoreError as error:
                self._on_failure()
                if self._commit_problem != str(error):
                    log.error("%s; nothing is acknowledged, trying again", error)  # noqa: TRY400  # no traceback: said in full
                self._commit_problem = str(error)
                if stop.wait(RETRY_DISK_S):
                    return None
            else:
                if self._commit_problem is not None:
                    log.warning("store %s: it commits again", self._store.name)
                self._commit_problem = None
                return inserted


def sort(deliveries: Iterable[Delivery]) -> Sorted:
    """What to store, and the receipts to send once it is: one message for each device and boot; pure."""
    arrived: list[Arrived] = []
    bad: list[Bad] = []
    statuses: list[Status] = []
    retained: list[Status] = []
    committed: dict[tuple[str, str], list[int]] = defaultdict(list)
    count = rows = size = 0
    for delivery in deliveries:
        if rows >= ROWS_MAX or size >= BYTES_MAX:
            break
        count += 1
        topic, payload = delivery.topic.decode(errors="replace"), delivery.payload
        if topic.endswith("/status"):
            if payload:  # empty: somebody cleared the retained status
                try:
                    (retained if delivery.retained else statuses).append(parse_status(topic, payload))
                except ValueError as error:
                    bad.append(Bad(topic, payload, str(error)))
            continue
        found = parse_telemetry(topic, payload)
        if found.arrived is not None:
            arrived.append(found.arrived)
        bad.extend(found.bad)
        if found.sequences:
            committed[found.device, found.boot].extend(found.sequences)
        rows += len(found.sequences)
        size += found.unpacked_bytes + len(payload)
    receipts = [
        (topics.receipt(device), encode(Receipt(boot=boot, ranges=ranges(sequences))))
        for (device, boot), sequences in committed.items()
    ]
    return Sorted(Batch(arrived, bad, statuses, retained), receipts, count)


def _taken_in_bulk(_: object) -> None:
    raise AssertionError("BulkClient hands over what comes here")
