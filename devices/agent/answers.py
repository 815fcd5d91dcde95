"""Answers on their way: what the broker did not acknowledge before the link broke is sent again while it matters."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import LinkError

log = logging.getLogger(__name__)

KEPT_MAX_BYTES = 64 << 20
"""Of answers that wait for a link; the oldest make room."""


class _Answer(NamedTuple):
    reply_to: str
    payload: bytes
    deadline: float
    refused: Callable[[str], None]


class Answers:
    """Sends answers; safe to use from several threads."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._under_way: dict[str, _Answer] = {}
        link.on_ready(self._again)

    def send(self, request: str, reply_to: str, payload: bytes, wait_s: float, refused: Callable[[str], None]) -> None:
        """Send the answer to a request.

        Args:
            request: its id.
            reply_to: the topic to send to.
            payload: what to send.
            wait_s: how long somebody waits for it; 0: it is not sent again.
            refused: told why, if the broker does not take it.

        Raises:
            ValueError: MQTT cannot carry it.
        """
        answer = _Answer(reply_to, payload, time.monotonic() + wait_s, refused)
        with self._lock:
            self._under_way[request] = answer
            while len(self._under_way) > 1 and self._bytes() > KEPT_MAX_BYTES:
                del self._under_way[next(iter(self._under_way))]
        try:
            self._publish(request, answer)
        except ValueError:
            self._done(request)
            raise

    def _bytes(self) -> int:
        return sum(len(one.payload) for one in self._under_way.values())

    def _again(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._under_way = {name: one for name, one in self._under_way.items() if one.deadline > now}
            left = dict(self._under_way)
        for request, answer in left.items():
            log.info("answer to %s is sent again", request)
            self._publish(request, answer)

    def _publish(self, request: str, answer: _Answer) -> None:
        expiry_s = max(1, math.ceil(answer.deadline - time.monotonic()))
        message = Message(topic=answer.reply_to, payload=answer.payload, expiry_s=expiry_s)
        try:
            self._link.publish(message, partial(self._told, request))
        except LinkError as error:
            log.info("answer to %s waits: %s", request, error)

    def _told(self, request: str, problem: str | None) -> None:
        answer = self._done(request)
        if problem is not None and answer is not None:
            answer.refused(problem)

    def _done(self, request: str) -> _Answer | None:
        with self._lock:
            return self._under_way.pop(request, None)
