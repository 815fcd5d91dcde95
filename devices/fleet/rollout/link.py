"""A rollout's side of the broker: what devices say comes in batches, what they should run goes out and stays there."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector.status import parse_status
from ferryman.devices.fleet.rollout.words import shorten
from ferryman.devices.fleet.signer import DESIRED_LIFE_NS, Signer
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.devices.sealed import inner, take_apart
from ferryman.runtime.contracts.errors import IdentityError, LinkError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.rollout import Desired, Reported

log = logging.getLogger(__name__)

QUIET_S = 0.5
"""The broker has sent what it kept once nothing came for so long,"""
QUIET_MAX_S = 20.0
"""or after so long, in a fleet where something always comes."""
REFRESH_S = 120.0
"""Every so often all that is retained is heard again: a message the broker dropped is late, and not lost."""
MESSAGE_MAX_BYTES = 256 << 10
_BATCH_MAX = 2000
_INBOX_MAX = 20_000
_TURN_S = 0.2
_WHY_CHARS = 200


class Nonsense(NamedTuple):
    """A report that cannot be one."""

    why: str


class Heard(NamedTuple):
    """A `Desired` and whom it is for, or what a device said."""

    device: str
    body: Status | Reported | Desired | Nonsense


class FleetLink:
    """Listens to the whole fleet, and tells devices what one rollout wants of them."""

    def __init__(self, broker: BrokerConfig, rollout: str = "") -> None:
        """Describe the connection; `start` opens it."""
        self._rollout = rollout
        self._link = Link(
            broker,
            f"ferryman-rollout-{secrets.token_hex(4)}",
            packet_max_bytes=MESSAGE_MAX_BYTES + 1024,
        )
        self._signer = Signer.of_environment()
        self._sealed_for: set[str] = set()
        """Devices that obey signed commands only, as their status says."""
        self._inbox: queue.Queue[tuple[int, Delivery | None]] = queue.Queue(_INBOX_MAX)
        """On which connection what came; None: it is ready, of which we hear before or after what the broker kept."""
        self._connection = 0
        self._read_of = 0
        for topic in (topics.ALL_STATUS, topics.ALL_REPORTED, topics.ALL_DESIRED):
            self._link.subscribe(topic, self._hear, qos=0)
        self._link.on_ready(self._begin)
        self._link.on_down(self._end)
        self.connected_at_ns = 0
        """Wall clock; 0: not yet."""
        self._connected_s = 0.0
        self._heard_s = 0.0
        self._refreshed_s = 0.0
        self._kept: dict[str, bytes] = {}
        """Device -> the `Desired` that the broker keeps for it, as it was heard on this connection."""
        self._online: dict[str, Status] = {}
        """Device -> what it said last when it was online."""
        self._unsettled = True
        self._warned: set[str] = set()
        """Topics of which a message was ignored, and a warning said so."""
        self._waiting = 0
        self._problem: str | None = None
        self._changed = threading.Condition()

    def start(self, timeout_s: float) -> None:
        """Connect.

        Raises:
            LinkError: the broker cannot be reached in that time, or refuses us.
        """
        self._link.start()
        try:
            self._link.wait_ready(timeout_s)
        except LinkError:
            self.stop()
            raise

    def stop(self) -> None:
        """Disconnect."""
        self._link.stop()

    def take(self) -> list[Heard]:
        """What came, after a moment at most.

        Raises:
            LinkError: the broker refuses what is sent.
        """
        if self._problem is not None:
            raise LinkError(self._problem)
        if self.connected_at_ns and time.monotonic() - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = time.monotonic()
            self._link.refresh()
        found: list[Heard] = []
        deadline = time.monotonic() + _TURN_S
        for _ in range(_BATCH_MAX):
            try:
                connection, delivery = self._inbox.get(
                    timeout=max(0.0, deadline - time.monotonic()) if not found else 0
                )
            except queue.Empty:
                break
            if connection != self._read_of:
                self._read_of, self._unsettled, self._kept = connection, True, {}
            if delivery is None:
                self.connected_at_ns, self._connected_s = time.time_ns(), time.monotonic()
                self._heard_s = self._refreshed_s = self._connected_s
                continue
            self._heard_s = time.monotonic()
            if (heard := self._read(delivery)) is not None:
                found.append(heard)
        return found

    def settled(self) -> bool:
        """Whether what the broker had kept has come, on this connection."""
        if not self.connected_at_ns:
            return False
        now_s = time.monotonic()
        quiet = now_s - self._heard_s >= QUIET_S and self._inbox.empty()  # this process may have been held up, not they
        return not self._unsettled or quiet or now_s - self._connected_s >= QUIET_MAX_S

    def resync(self, wanted: Mapping[str, bytes]) -> None:
        """Once a connection, when it is settled, send what the broker should keep and does not."""
        if self._unsettled and self.settled():
            self._unsettled = False
            for device, payload in wanted.items():
                self.tell(device, payload)

    def tell(self, device: str, payload: bytes) -> None:
        """Have the broker keep `payload` for a device; empty: nothing of this rollout any more.

        What cannot be sent now is sent by `resync`.
        """
        kept = self._kept.get(device, b"")
        if self._unsettled or self._stands(device, kept, payload) or (not payload and not self._is_ours(kept)):
            return
        if payload and device in self._sealed_for:
            try:
                payload = self._signer.desired(payload, device)
            except IdentityError as error:
                self._problem = str(error)
                return
        self._kept[device] = payload
        with self._changed:
            self._waiting += 1
        try:
            self._link.publish(
                Message(topic=topics.desired(device), payload=payload, retain=True),
                lambda problem: self._sent(device, problem),
            )
        except LinkError:
            self._sent(device, None)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has all that was sent; false: it has not, in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting <= 0, timeout_s)

    def _sent(self, device: str, problem: str | None) -> None:
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()
        if problem is not None:
            self._problem = (
                f"broker {self._link.broker.address} refuses to keep {topics.desired(device)}: {problem}; give this "
                "user the right to publish there"
            )

    def _stands(self, device: str, kept: bytes, payload: bytes) -> bool:
        """Whether the broker keeps `payload` already, in the form that the device obeys."""
        if kept == payload:
            return not (payload and device in self._sealed_for)
        with contextlib.suppress(ValueError):
            found = take_apart(kept)
            if found is not None and device in self._sealed_for:
                left_ns = found.header.expires_ns - time.time_ns()
                return found.payload == payload and left_ns > DESIRED_LIFE_NS // 2
        return False

    def _is_ours(self, payload: bytes) -> bool:
        try:
            return decode(inner(payload), Desired).rollout == self._rollout
        except ValueError:
            return False

    def _note_seal(self, device: str, status: Status) -> None:
        """Sign what the broker keeps for a device that has come to want it so."""
        if not status.challenge:
            self._sealed_for.discard(device)
        elif device not in self._sealed_for:
            self._sealed_for.add(device)
            kept = self._kept.get(device, b"")
            if self._is_ours(kept):
                self.tell(device, inner(kept))

    def _begin(self) -> None:
        with self._changed:
            self._waiting = 0  # what was under way on the last connection is not answered any more
        self._inbox.put((self._connection, None))

    def _end(self) -> None:
        self._connection += 1

    def _hear(self, delivery: Delivery) -> None:
        self._inbox.put((self._connection, delivery))

    def _read(self, delivery: Delivery) -> Heard | None:
        device = ""
        try:
            device = topics.device_of(delivery.topic)
            if delivery.topic.endswith("/desired"):
                self._kept[device] = delivery.payload
            heard = _parse(device, delivery) if delivery.payload else None  # empty: somebody cleared it
        except ValueError as error:
            why = shorten(str(error), _WHY_CHARS)
            if delivery.topic not in self._warned:
                self._warned.add(delivery.topic)
                log.warning("message on %s ignored: %s", delivery.topic, why)
            return Heard(device, Nonsense(why)) if device and delivery.topic.endswith("/reported") else None
        if heard is not None and isinstance(heard.body, Status):
            if heard.body.outdated_by(self._online.get(device)):
                return None
            self._note_seal(device, heard.body)
            if heard.body.online:
                self._online[device] = heard.body
        return heard


def _parse(device: str, delivery: Delivery) -> Heard:
    """Read what came on one of our topics.

    Raises:
        ValueError: it is nothing that belongs there.
    """
    topic, payload = delivery.topic, delivery.payload
    if len(payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"{len(payload)} bytes, at most {MESSAGE_MAX_BYTES} are taken")
    if topic.endswith("/desired"):
        return Heard(device, decode(inner(payload), Desired))
    if topic.endswith("/status"):
        return Heard(device, parse_status(topic, payload))
    report = decode(payload, Reported)
    if report.device != device:
        raise ValueError(f"the topic says device {device!r}, the message {report.device!r}")
    return Heard(device, report)
