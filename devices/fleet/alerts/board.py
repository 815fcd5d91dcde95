"""What holds, as retained messages on MQTT: one a device and rule, empty once it is over."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from ferryman.devices import topics
from ferryman.devices.fleet.alerts.book import Book
from ferryman.devices.fleet.alerts.kept import Kept
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.alert import Alert
from ferryman.runtime.contracts.errors import CallerError, LinkError
from ferryman.runtime.contracts.record import decode, encode

log = logging.getLogger(__name__)

NAME = "mqtt"
UNDER_WAY_MAX = 2000
FOUND_MAX = 10_000
"""Alerts that the broker kept, of which it is looked up whether they are over."""
AGAIN_S = 60.0
"""What the broker did not acknowledge in that time is sent again."""


class Board:
    """Posts what the book says is to be posted, and all that holds after each connecting: brokers forget.

    One that was killed may also go back to what it last wrote to its disk: what it kept and is over is taken off again.
    """

    def __init__(self, link: Link, book: Book) -> None:
        self.heard_s: float | None = None
        """Since when the link is up, Unix epoch; None: it is not."""
        self._link, self._book = link, book
        self._lock = threading.Lock()
        self._under_way: dict[tuple[int, bool], float] = {}
        self._again: set[int] | None = None
        """Ids to post once more; None: all that holds."""
        self._refused = ""
        self._found: list[Alert] = []
        """What the broker had kept when we subscribed."""
        link.subscribe(f"{topics.ALERTS}/+/+", self._on_kept, qos=0, needed=False)
        link.on_ready(self._on_ready)
        link.on_down(self._on_down)

    def post(self, rows: Sequence[Kept], is_over: Callable[[Alert], bool] = lambda _: False) -> None:
        """Send what is due.

        Args:
            rows: all that hold and all that are untold.
            is_over: whether one that is not among those is known to be over; others are another store's.
        """
        if self.heard_s is None:
            return
        holding = {row.id: row.alert for row in rows if row.alert.until_ns is None}
        held = {(alert.device, alert.rule) for alert in holding.values()}
        with self._lock:
            if self._again is None:
                self._again = set(holding)
            wanted = {which: holding[which] for which in self._again & holding.keys()}
            now_s = time.monotonic()
            self._under_way = {key: at_s for key, at_s in self._under_way.items() if now_s - at_s < AGAIN_S}
        wanted.update(self._book.on_board())
        for which, alert in wanted.items():
            over = alert.until_ns is not None
            if over and (alert.device, alert.rule) in held:  # it has begun again, and that stands there
                self._book.posted(which, over=over)
            elif not self._send(which, alert, over=over):
                return
        with self._lock:
            found, self._found = self._found, []
        for alert in found:
            if (alert.device, alert.rule) not in held and is_over(alert):
                self._clear(alert)

    def _clear(self, alert: Alert) -> None:
        with contextlib.suppress(LinkError):  # the next connection tells of it again
            self._link.publish(Message(topic=topics.alert(alert.device, alert.rule), payload=b"", retain=True))

    def _on_kept(self, delivery: Delivery) -> None:
        if not delivery.retained or not delivery.payload:
            return
        try:
            alert = decode(delivery.payload, Alert)
            if delivery.topic != topics.alert(alert.device, alert.rule):
                return
        except (ValueError, CallerError):  # not ours
            return
        with self._lock:
            if len(self._found) < FOUND_MAX:
                self._found.append(alert)

    def _send(self, which: int, alert: Alert, *, over: bool) -> bool:
        with self._lock:
            if (which, over) in self._under_way:
                return True
            if len(self._under_way) >= UNDER_WAY_MAX:
                return False
            self._under_way[which, over] = time.monotonic()
        topic = topics.alert(alert.device, alert.rule)
        message = Message(topic=topic, payload=b"" if over else encode(alert), retain=True)
        try:
            self._link.publish(message, lambda problem: self._done(which, problem, over=over))
        except LinkError:  # it is posted once there is one
            return False
        return True

    def _done(self, which: int, problem: str | None, *, over: bool) -> None:
        if problem is not None:  # stays under way, and is sent again after AGAIN_S
            if problem != self._refused:
                log.warning("alerts: the broker refuses messages on %s/#: %s", topics.ALERTS, problem)
            self._refused = problem
            return
        with self._lock:
            self._under_way.pop((which, over), None)
            if self._again is not None and not over:
                self._again.discard(which)
        self._book.posted(which, over=over)

    def _on_ready(self) -> None:
        with self._lock:
            self._again = None
            self._under_way.clear()
        self.heard_s = time.time()

    def _on_down(self) -> None:
        self.heard_s = None
