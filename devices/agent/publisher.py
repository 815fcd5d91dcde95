"""Sends what is in the outbox, and forgets it when someone vouches for having it.

A broker's acknowledgement is not that by default: a broker that is killed forgets what it acknowledged. The record
stays until the collector's receipt; without one it is sent again after a reconnect and after a time-out.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from ferryman.devices import topics
from ferryman.devices.agent import batching
from ferryman.devices.agent.modes import LEVELS, METERED_EVERY_S, Mode
from ferryman.devices.agent.outbox import Entry, Outbox
from ferryman.devices.agent.spending import Share, Spending, TelemetryConfig
from ferryman.devices.agent.window import Limits, Size, Window
from ferryman.devices.mqtt import Delivery, Link, Message, backoff_s
from ferryman.runtime.alive import beat, watched
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.telemetry import Priority

log = logging.getLogger(__name__)

POLL_S = 0.5
"""How late a record that another process appended may be noticed, or a mode that was switched."""
LINGER_S = 0.05
"""How long a message that is not full waits for more while another is under way."""
RENEWAL_SPREAD_S = 300.0
"""Within so long after a budget began anew a fleet that waited for it sends, not all at midnight."""
RETRY_DISK_S = 5.0
STUCK_S = 120.0
"""A turn that takes so long hangs: reading a slow disk, or waiting for another process, takes seconds."""
TOO_LARGE = "Packet too large"
"""How the broker's reason begins (MQTT 5, reason code 0x95)."""
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
        config: TelemetryConfig | None = None,
        mode: Callable[[], Mode] = lambda: "full",
        on_mode: Callable[[], None] = lambda: None,
        farewell: Callable[[], Message | None] = lambda: None,
    ) -> None:
        """Attach to `link`, which must not be started yet.

        Args:
            outbox: what to send.
            device: whose telemetry this is.
            link: how; in mode `offline` it is paused.
            confirm: whose word frees a record; `broker` is for those who run no collector of ferryman's.
            limits: how much at once.
            config: what may be spent.
            mode: how much the link may be used, asked every now and then.
            on_mode: called when it has changed.
            farewell: what is said in place of the last will before the link is paused.

        Raises:
            CallerError: nothing can be sent within `config`.
        """
        self.refused = 0
        """How often the broker refused a message."""
        self._outbox = outbox
        self._device = device
        self._topic = topics.telemetry(device)
        self._link = link
        self._confirm = confirm
        self._limits = limits or Limits()
        self._spending = Spending(outbox, config or TelemetryConfig())
        self._ask_mode, self._on_mode, self._farewell = mode, on_mode, farewell
        self._window = Window(self._limits)
        self._size = Size(batching.BYTES_MAX)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._confirmed: list[tuple[str, int, int]] = []
        self._boot = outbox.boot
        self._cursor = dict.fromkeys(Priority, 0)
        """Up to where the records of each priority were sent on this connection."""
        self._sent = dict.fromkeys(Priority, 0)
        """Up to where the records of each priority were ever handed to the link, since the start."""
        self._said_unsent = False
        self._floors = dict.fromkeys(Priority, 0)
        """What of each priority waited while it could not be sent is history."""
        self._held = set(Priority)
        """Priorities that cannot be sent now."""
        self._mode: Mode = "full"
        self._metered_at = 0.0
        """When a metered link may be used next."""
        self._now = 0.0
        self._hold_until = 0.0
        self._look_at = 0.0
        self._linger_until: float | None = None
        self._up = False
        self._was_up = False
        self._carried = False
        """Whether the broker acknowledged anything on this connection."""
        self._silent_rounds = 0
        self._said: str | None = None
        self._said_spent = False
        """Whether the log knows that today's budget is used up."""
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        link.subscribe(topics.receipt(device), self._on_receipt)
        link.on_ready(lambda: self._post(partial(self._set_up, up=True)))
        link.on_down(lambda: self._post(partial(self._set_up, up=False)))
        self._follow_mode()

    def start(self) -> None:
        """Begin sending whenever the link is up."""
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, and stop; what is not confirmed stays in the outbox."""
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
        with watched("the publisher", STUCK_S):
            self._send_until_stopped()

    def _send_until_stopped(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            beat()
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
        self._linger_until = 0.0
        with contextlib.suppress(LinkError, DeviceError):  # it stays in the outbox
            self._turn(time.monotonic())

    def _turn(self, now: float) -> float:
        """Do what there is to do; returns after how many seconds to look again."""
        self._now = now
        while not self._events.empty():
            self._events.get()()
        self._forget()
        if self._outbox.boot != self._boot:  # the file was replaced: another run of numbers
            self._boot = self._outbox.boot
            self._floors = dict.fromkeys(Priority, 0)
            self._sent = dict.fromkeys(Priority, 0)
            self._reset()
        if now >= self._look_at:
            self._look(now)
            self._look_at = now + POLL_S
        if not self._up:
            return POLL_S
        if overdue := self._window.overdue(now):
            log.info("%d records sent and not confirmed; sending them again", overdue)
            self._silent_rounds += 1
            self._size.lost()  # a broker of MQTT 3.1.1 acknowledges what it throws away for its size
        return self._send_all(now)

    def _look(self, now: float) -> None:
        """See whether the mode was switched or another day has begun, and which priorities can be sent."""
        self._follow_mode()
        if self._spending.roll():
            self._said_spent = False
            if self._held:
                self._hold_until = max(self._hold_until, now + random.uniform(0, RENEWAL_SPREAD_S))  # noqa: S311
        if any(share.left_bytes is not None and share.left_bytes <= 0 for share in self._spending.shares()):
            self._say_spent()
        open_now = {level for share in self._shares() for level in share.levels} if self._up else set()
        for level in open_now & self._held:
            self._floors[level] = self._outbox.newest()
        self._held = set(Priority) - open_now

    def _follow_mode(self) -> None:
        mode = self._ask_mode()
        if mode == "offline":
            self._link.pause(self._farewell())
        elif self._link.paused:
            self._link.resume()
        if mode != self._mode:
            log.info("telemetry: mode %s", mode)
            self._mode, self._metered_at = mode, 0.0
            self._on_mode()

    def _shares(self) -> list[Share]:
        """What may be sent as to mode and budget, the larger share last."""
        shares = []
        for share in self._spending.shares():
            levels = tuple(level for level in share.levels if level in LEVELS[self._mode])
            if levels and (share.left_bytes is None or share.left_bytes > 0):
                shares.append(share._replace(levels=levels))
        return shares

    def _send_all(self, now: float) -> float:
        """Send what may go; returns after how many seconds to look again."""
        if self._mode == "metered" and now < self._metered_at:
            return POLL_S
        sent = False
        packet_max = self._link.packet_max_bytes
        most = self._spending.message_max_bytes(self._size.bytes)
        if packet_max is not None:
            most = max(1, min(most, packet_max - batching.HEAD_BYTES))
        while room := min(self._window.room(), most):
            if (wait_s := max(self._hold_until - now, self._spending.wait_s(now))) > 0:
                return min(wait_s, POLL_S)
            found = next(filter(None, (self._next(share, room) for share in self._shares())), None)
            if found is None:
                break
            entries, old, whole = found
            if not (whole or old) and (left_s := self._linger(now)) > 0:
                return left_s
            self._send(entries, now, historical=old)
            sent = True
        else:
            return POLL_S  # the window is full; an answer wakes
        if self._mode == "metered" and sent and not self._window.again:
            self._metered_at = now + METERED_EVERY_S
        return POLL_S

    def _next(self, share: Share, room: int) -> tuple[list[Entry], bool, bool] | None:
        """What of a share goes next, whether that is history, and whether it is a whole message."""
        bound = room if share.left_bytes is None else min(room, share.left_bytes)
        again = next((one for one in self._window.again if one[0] in share.levels), None)
        if again is not None:
            wanted = set(again[1])
            waiting = [e for e in self._outbox.between(again[1][0], again[1][-1]) if e.sequence in wanted]
            taken = batching.take(waiting, bound, self._floors)
            if taken and not self._fits(taken, share):
                return None
            rest = [entry.sequence for entry in waiting[len(taken) :]]
            self._window.again.remove(again)
            if rest:
                self._window.again.appendleft((again[0], rest))
            return (taken, True, True) if taken else self._next(share, room)
        waiting = batching.in_order(
            self._outbox.waiting(level, self._cursor[level], batching.RECORDS_MAX, bound) for level in share.levels
        )
        taken = batching.take(waiting, bound, self._floors)
        if not taken or not self._fits(taken, share):
            return None
        whole = len(taken) < len(waiting) or len(taken) == batching.RECORDS_MAX
        return taken, batching.is_old(taken[0], self._floors), whole

    def _fits(self, entries: Sequence[Entry], share: Share) -> bool:
        """Whether a budget has room; a record that is more than a whole day's goes on a day of which all is left."""
        if share.left_bytes is None or share.whole_bytes is None:
            return True
        size = batching.plain_bytes(entries)
        fits = size <= share.left_bytes or (size > share.whole_bytes == share.left_bytes)
        if not fits:
            self._say_spent()
            self._held.update(level for level in share.levels if level < Priority.VITAL or len(share.levels) == 1)
        return fits

    def _say_spent(self) -> None:
        if not self._said_spent:
            log.warning(
                "telemetry: the day's budget is used up: records wait until it begins anew, at midnight UTC; a tenth "
                "of it is for vital ones alone, which go on as long as that lasts"
            )
        self._said_spent = True

    def _linger(self, now: float) -> float:
        """For how long a message that is not full waits for more: not at all where nothing is under way."""
        if not self._window.in_flight:
            return 0.0
        if self._linger_until is None:
            self._linger_until = now + LINGER_S
        return self._linger_until - now

    def _send(self, entries: Sequence[Entry], now: float, *, historical: bool) -> None:
        payload = batching.pack(self._device, entries, historical=historical)
        wait_s = backoff_s(self._silent_rounds, self._limits.again_first_s, self._limits.again_cap_s)
        carried: dict[Priority, list[int]] = {}
        for entry in entries:
            carried.setdefault(entry.priority, []).append(entry.sequence)
        self._spending.spend(len(payload) + len(self._topic) + batching.PACKET_BYTES, now)
        plain = batching.plain_bytes(entries)
        number = self._window.sent(carried, plain, self._size.bytes, now + wait_s)
        for level, sequences in carried.items():
            self._cursor[level] = max(self._cursor[level], sequences[-1])
            self._sent[level] = max(self._sent[level], sequences[-1])
        self._linger_until = None
        self._link.publish(
            Message(topic=self._topic, payload=payload, alias=True),
            lambda problem: self._post(partial(self._answered, entries[0].boot, number, problem)),
        )

    def _answered(self, boot: str, number: int, problem: str | None) -> None:
        sent = self._window.answered(number)
        if problem is None:
            self._carried = True
            if sent is not None and self._confirm == "broker":
                self._confirmed.extend(
                    (boot, *span) for sequences in sent.carried.values() for span in _ranges(sequences)
                )
            return
        self.refused += 1
        if sent is not None and problem.startswith(TOO_LARGE) and sum(map(len, sent.carried.values())) > 1:
            log.warning("broker %s: %s; sending smaller messages", self._link.broker.address, problem)
            self._size.refused(sent.bound)
            self._window.take_back(number)
            return
        self._say(f"broker refuses {self._topic}: {problem}; kept, check the broker's access rules and limits")

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
        """Forget what is confirmed; on a full disk it stays in the list for the next turn.

        Nobody can vouch for what was not sent. What an earlier start sent is sent again, and confirmed then.
        """
        if not self._confirmed:
            return
        newest = max(self._sent.values())
        if not self._said_unsent and (unsent := max(last for _, _, last in self._confirmed)) > newest:
            self._said_unsent = True
            log.warning(
                "receipt for records up to %d, of which this start sent %d: the others are kept", unsent, newest
            )
        for boot in {boot for boot, _, _ in self._confirmed}:
            spans = [(first, last) for b, first, last in self._confirmed if b == boot]
            self._outbox.forget(boot, spans, self._sent)
        for _, first, last in self._confirmed:
            self._window.confirmed(first, last)
        self._confirmed.clear()
        self._size.arrived()
        self._silent_rounds = 0
        self._said = None

    def _set_up(self, *, up: bool) -> None:
        if not up and not self._carried and self._window.messages and self._mode != "offline":
            self._size.lost()
        self._up, self._carried = up, False
        if up and self._was_up:
            self._hold_until = self._now + random.uniform(0, self._limits.spread_s)  # noqa: S311
        self._was_up |= up
        self._held = set(Priority)
        self._look_at = 0.0
        self._reset()

    def _reset(self) -> None:
        self._window.reset()
        self._cursor = dict.fromkeys(Priority, 0)
        self._linger_until = None

    def _say(self, problem: str) -> None:
        """Log a problem once, not once per record."""
        if problem != self._said:
            log.error("%s", problem)
        self._said = problem


def _ranges(sequences: Sequence[int]) -> list[tuple[int, int]]:
    """The same as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for sequence in sequences:
        if found and found[-1][1] == sequence - 1:
            found[-1] = (found[-1][0], sequence)
        else:
            found.append((sequence, sequence))
    return found
