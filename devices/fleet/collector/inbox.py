"""What has come and is not committed yet, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ferryman.devices.fleet.collector.bulk import BulkClient
from ferryman.devices.fleet.collector.framing import Came

INBOX_MAX_BYTES = 64 << 20
MESSAGE_BYTES = 256
"""Charged for each message beside its bytes: the objects that hold it."""


class Delivery(NamedTuple):
    """A message, and the connection it came by: only there it can be acknowledged."""

    client: BulkClient
    topic: bytes
    identifier: bytes
    payload: bytes
    retained: bool = False
    """The broker had kept it: nobody need have said it lately."""


class Inbox:
    """A full one holds up the network thread, and so the broker."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Delivery] = deque()
        self._bytes = 0
        self._closed = False

    @property
    def bytes(self) -> int:
        """What waits, with what is charged for it."""
        return self._bytes

    def put(self, client: BulkClient, messages: Iterable[Came]) -> None:
        """Add what one read brought; waits while there is no room."""
        deliveries = [Delivery(client, *message) for message in messages]
        size = sum(_size(delivery) for delivery in deliveries)
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < INBOX_MAX_BYTES or self._closed)
            if not self._closed:
                self._waiting.extend(deliveries)
                self._bytes += size
                self._changed.notify_all()

    def take(self, timeout_s: float, messages_max: int) -> list[Delivery]:
        """The oldest, as soon as there are any."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            taken = [self._waiting.popleft() for _ in range(min(messages_max, len(self._waiting)))]
            self._bytes -= sum(_size(delivery) for delivery in taken)
            self._changed.notify_all()
            return taken

    def give_back(self, deliveries: list[Delivery]) -> None:
        """What was taken last and is to be taken first."""
        with self._changed:
            self._waiting.extendleft(reversed(deliveries))
            self._bytes += sum(_size(delivery) for delivery in deliveries)

    def close(self) -> None:
        """Let nobody wait any more; what comes now is not taken, nor acknowledged."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _size(delivery: Delivery) -> int:
    return len(delivery.payload) + MESSAGE_BYTES
