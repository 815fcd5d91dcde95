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
from typing import Literal, NamedTuple

import msgspec

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Entry, Outbox
from ferryman.devices.mqtt import Delivery, Link, Message, backoff_s
from ferryman.runtime.contracts.envelope import EnvelopeV1, Receipt
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.record import decode, encode

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How late a record that another process appended may be noticed."""
RETRY_DISK_S = 5.0
_SEQUENCE_MAX = (1 << 63) - 1


class Limits(NamedTuple):
    """How much is under way at once, and when to send again."""

    in_flight: int = 20
    """Without the broker's acknowledgement."""
    unconfirmed: int = 512
    """Without a receipt; below the 1000 that mosquitto queues for a collector that is away."""
    again_first_s: float = 30.0
    again_cap_s: float = 600.0


class Window:
    """Which records are under way; pure: no clock, disk or socket."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.reset()

    def reset(self) -> None:
        """Nothing is under way: everything in the outbox is to be sent (again)."""
        self.cursor = 0
        self.in_flight: set[int] = set()
        self.again_at: dict[int, float] = {}

    def room(self) -> int:
        """How many more may be sent now."""
        return max(
            0,
            min(self._limits.in_flight - len(self.in_flight), self._limits.unconfirmed - len(self.again_at)),
        )

    def sent(self, sequence: int, again_at: float) -> None:
        """`sequence` went out, and is to go out again at `again_at` unless confirmed."""
        self.cursor = max(self.cursor, sequence)
        self.in_flight.add(sequence)
        self.again_at[sequence] = again_at

    def answered(self, sequence: int) -> None:
        """The broker said something about `sequence`: it counts no more against the broker's limit."""
        self.in_flight.discard(sequence)

    def confirmed(self, first: int, last: int) -> None:
        """These (both included) are done with."""
        for sequence in [s for s in self.again_at if first <= s <= last]:
            del self.again_at[sequence]
            self.in_flight.discard(sequence)

    def due(self, now: float) -> list[int]:
        """Those whose time to be sent again has come, oldest first."""
        return sorted(sequence for sequence, at in self.again_at.items() if at <= now)


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
        """How often the broker refused a record."""
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
        while not self._stopping.is_set():
            self._wake.wait(POLL_S)
            self._wake.clear()
            try:
                self._turn(time.monotonic())
            except LinkError:
                pass  # on_down follows
            except DeviceError as error:
                self._say(str(error))
                self._stopping.wait(RETRY_DISK_S)
            except Exception:  # the agent goes on without this thread, and nobody would see why nothing arrives
                log.exception("publisher: trying again")
                self._stopping.wait(RETRY_DISK_S)

    def _turn(self, now: float) -> None:
        while not self._events.empty():
            self._events.get()()
        self._forget()
        if self._outbox.boot != self._boot:  # the file was replaced: another run of numbers
            self._boot = self._outbox.boot
            self._window.reset()
        if not self._up:
            return
        due = self._window.due(now)
        if due:
            log.info("%d records sent and not confirmed; sending them again", len(due))
            self._silent_rounds += 1
        for sequence in due:
            entry = self._outbox.entry(sequence)
            if entry is None:
                self._window.confirmed(sequence, sequence)
            else:
                self._send(entry, now)
        if room := self._window.room():
            for entry in self._outbox.pending(self._window.cursor, room):
                self._send(entry, now)

    def _send(self, entry: Entry, now: float) -> None:
        envelope = EnvelopeV1(
            device=self._device,
            boot=entry.boot,
            sequence=entry.sequence,
            time_ns=entry.time_ns,
            kind=entry.kind,
            body=msgspec.Raw(entry.body),
        )
        self._link.publish(
            Message(topic=self._topic, payload=encode(envelope)),
            lambda problem: self._post(partial(self._answered, entry.boot, entry.sequence, problem)),
        )
        wait_s = backoff_s(self._silent_rounds, self._limits.again_first_s, self._limits.again_cap_s)
        self._window.sent(entry.sequence, now + wait_s)

    def _answered(self, boot: str, sequence: int, problem: str | None) -> None:
        self._window.answered(sequence)
        if problem is not None:
            self.refused += 1
            self._say(f"broker refuses {self._topic}: {problem}; kept, check the broker's access rules and limits")
        elif self._confirm == "broker":
            self._confirmed.append((boot, sequence, sequence))

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
        self._window.reset()

    def _say(self, problem: str) -> None:
        """Log a problem once, not once per record."""
        if problem != self._said:
            log.error("%s", problem)
        self._said = problem
