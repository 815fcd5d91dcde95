"""Sends what is in the outbox, and forgets it when someone vouches for having it.

A broker's acknowledgement is not that by default: a broker that is killed forgets what it acknowledged. The record
stays until the collector's receipt; without one it is sent again after a reconnect and after a time-out.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

from ferryman.devices import topics
from ferryman.devices.agent import batching
from ferryman.devices.agent.outbox import Entry, Outbox
from ferryman.devices.agent.window import Limits, Window
from ferryman.devices.mqtt import Delivery, Link, Message, backoff_s
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.telemetry import Priority

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How late a record that another process appended may be noticed."""
LINGER_S = 0.05
"""How long a message that is not full waits for more while another is under way."""
RETRY_DISK_S = 5.0
TOO_LARGE = "Packet too large"
"""The broker's reason (MQTT 5, reason code 0x95)."""
_SEQUENCE_MAX = (1 << 63) - 1


class Publisher:
    """Owns the sending half of a link; one thread does everything, appenders never wait for it."""

    def __init__(
        self,
        outbox: Outbox,
        device: str,
        link: Link,
        *,
        confirm: Literal["collector", "broker"] = "collector",
        limits: Limits | None = None,
    ) -> None:
        """Attach to `link`, which must not be started yet.

        Args:
            outbox: what to send.
            device: whose telemetry this is.
            link: how.
            confirm: whose word frees a record; `broker` is for those who run no collector of ferryman's.
            limits: how much at once.
        """
        self.refused = 0
        """How often the broker refused a message."""
        self._outbox = outbox
        self._device = device
        self._topic = topics.telemetry(device)
        self._link = link
        self._confirm = confirm
        self._limits = limits or Limits()
        self._window = Window(self._limits)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._confirmed: list[tuple[str, int, int]] = []
        self._boot = outbox.boot
        self._cursor = dict.fromkeys(Priority, 0)
        """Up to where the records of each priority were sent on this connection."""
        self._floor = 0
        """What was appended when the connection came up is history."""
        self._bytes_max = batching.BYTES_MAX
        self._linger_until: float | None = None
        self._up = False
        self._silent_rounds = 0
        self._said: str | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        link.subscribe(topics.receipt(device), self._on_receipt)
        link.on_ready(lambda: self._post(partial(self._set_up, up=True)))
        link.on_down(lambda: self._post(partial(self._set_up, up=False)))

    def start(self) -> None:
        """Begin sending whenever the link is up."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending; what is not confirmed stays in the outbox."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """Something was appended: send it now rather than at the next poll."""
        self._wake.set()

    def _post(self, event: Callable[[], None]) -> None:
        self._events.put(event)
        self._wake.set()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            wait_s = POLL_S
            try:
                wait_s = self._turn(time.monotonic())
            except LinkError:
                pass  # on_down follows
            except DeviceError as error:
                self._say(str(error))
                self._stopping.wait(RETRY_DISK_S)
            except Exception:  # the agent goes on without this thread, and nobody would see why nothing arrives
                log.exception("publisher: trying again")
                self._stopping.wait(RETRY_DISK_S)

    def _turn(self, now: float) -> float:
        """Do what there is to do; returns after how many seconds to look again."""
        while not self._events.empty():
            self._events.get()()
        self._forget()
        if self._outbox.boot != self._boot:  # the file was replaced: another run of numbers
            self._boot = self._outbox.boot
            self._reset()
        if not self._up:
            return POLL_S
        if overdue := self._window.overdue(now):
            log.info("%d records sent and not confirmed; sending them again", overdue)
            self._silent_rounds += 1
        while room := min(self._window.room(), self._bytes_max):
            if self._window.again:
                self._send_again(room, now)
                continue
            waiting = self._waiting(room)
            entries = batching.take(waiting, room, self._floor)
            if not entries:
                break
            if len(entries) == len(waiting) < batching.RECORDS_MAX and (left_s := self._linger(now)) > 0:
                return left_s
            self._send(entries, now, historical=entries[0].sequence <= self._floor)
            for entry in entries:
                self._cursor[entry.priority] = entry.sequence
        self._linger_until = None
        return POLL_S

    def _waiting(self, room: int) -> list[Entry]:
        """What is to be sent next, in order of sequence; a message's worth, or all there is."""
        return batching.in_order(
            self._outbox.waiting(level, self._cursor[level], batching.RECORDS_MAX, room) for level in Priority
        )

    def _linger(self, now: float) -> float:
        """For how long a message that is not full waits for more: not at all where nothing is under way."""
        if not self._window.in_flight:
            return 0.0
        if self._linger_until is None:
            self._linger_until = now + LINGER_S
        return self._linger_until - now

    def _send_again(self, room: int, now: float) -> None:
        sequences = self._window.again.popleft()
        wanted = set(sequences)
        entries = [e for e in self._outbox.between(sequences[0], sequences[-1]) if e.sequence in wanted]
        taken = batching.take(entries, room)
        if rest := [entry.sequence for entry in entries[len(taken) :]]:
            self._window.again.appendleft(rest)
        if taken:
            self._send(taken, now, historical=True)

    def _send(self, entries: list[Entry], now: float, *, historical: bool) -> None:
        payload = batching.pack(self._device, entries, historical=historical)
        wait_s = backoff_s(self._silent_rounds, self._limits.again_first_s, self._limits.again_cap_s)
        boot, sequences = entries[0].boot, [entry.sequence for entry in entries]
        number = self._window.sent(sequences, len(payload), now + wait_s)
        self._linger_until = None
        self._link.publish(
            Message(topic=self._topic, payload=payload),
            lambda problem: self._post(partial(self._answered, boot, number, len(payload), problem)),
        )

    def _answered(self, boot: str, number: int, size: int, problem: str | None) -> None:
        sequences = self._window.answered(number)
        if problem is not None:
            self.refused += 1
            if problem == TOO_LARGE and len(sequences) > 1:
                log.warning("broker takes no message of %d bytes; sending it in parts", size)
                self._bytes_max = max(1, min(self._bytes_max, size) // 2)
                self._window.take_back(number)
                return
            self._say(f"broker refuses {self._topic}: {problem}; kept, check the broker's access rules and limits")
        elif self._confirm == "broker":
            self._confirmed.extend((boot, first, last) for first, last in _ranges(sequences))

    def _on_receipt(self, delivery: Delivery) -> None:
        try:
            receipt = decode(delivery.payload, Receipt)
        except ValueError as error:
            log.warning("receipt on %s cannot be read, ignored: %s", delivery.topic, error)
            return
        if receipt.boot.partition(".")[0] != self._outbox.id or any(
            not 0 < first <= last <= _SEQUENCE_MAX for first, last in receipt.ranges
        ):
            log.warning("receipt on %s is not for this outbox, ignored", delivery.topic)
            return
        self._post(lambda: self._confirmed.extend((receipt.boot, *span) for span in receipt.ranges))

    def _forget(self) -> None:
        """Forget what is confirmed; on a full disk it stays in the list for the next turn."""
        if not self._confirmed:
            return
        for boot in {boot for boot, _, _ in self._confirmed}:
            self._outbox.forget(boot, [(first, last) for b, first, last in self._confirmed if b == boot])
        for _, first, last in self._confirmed:
            self._window.confirmed(first, last)
        self._confirmed.clear()
        self._silent_rounds = 0
        self._said = None

    def _set_up(self, *, up: bool) -> None:
        self._up = up
        self._reset()

    def _reset(self) -> None:
        self._window.reset()
        self._cursor = dict.fromkeys(Priority, 0)
        self._floor = self._outbox.newest()
        self._linger_until = None

    def _say(self, problem: str) -> None:
        """Log a problem once, not once per record."""
        if problem != self._said:
            log.error("%s", problem)
        self._said = problem


def _ranges(sequences: list[int]) -> list[tuple[int, int]]:
    """The same as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for sequence in sequences:
        if found and found[-1][1] == sequence - 1:
            found[-1] = (found[-1][0], sequence)
        else:
            found.append((sequence, sequence))
    return found
