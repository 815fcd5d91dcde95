"""Devices that say of themselves that they are there: at a broker, which keeps it, or once to a collector.

Whoever may publish at the broker may say anything: what is kept of it is bounded, and nothing is written here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

import msgspec

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector.status import parse_status
from ferryman.devices.fleet.inventory import LOCAL, Device, some
from ferryman.devices.fleet.rollout.query import Query, Target
from ferryman.devices.labels import LABELS_MAX
from ferryman.devices.mqtt import Delivery, Link
from ferryman.runtime.contracts.errors import CallerError, LinkError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record

CONNECT_S = 10.0
DEVICES_MAX = 100_000
"""Those that come later are counted and not looked at."""
KEPT_MAX_BYTES = 512 << 20
"""Of all messages that something is kept of, as they came."""
MESSAGE_MAX_BYTES = 64 << 10
"""Of one status; an agent's are of about one kilobyte."""
LISTEN_MAX_S = 600.0
TEXT_MAX_CHARS = 128
_TAKEN = frozenset({"all", LOCAL})
"""Names that mean something else in commands, which no stranger may have meant."""


class Announced(Record, kw_only=True):
    """A device, as it says itself."""

    device: str
    online: bool
    model: str = ""
    """Board and processor, as queries see them; empty: it says none."""
    soc: str = ""
    """Empty: it says none, as one that is offline."""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    listed: str = ""
    """The address that the devices file has for that name; empty: the file does not know it."""

    @property
    def target(self) -> Target:
        """As queries see it."""
        return Target(name=self.device, model=self.model, labels=self.labels)


class Announcements(Record):
    """What came, by name."""

    devices: tuple[Announced, ...]
    left_out: int
    """Messages that are no status of a device, of a name that none can have, too long, or too many."""
    ended: bool
    """False: new devices still came after LISTEN_MAX_S."""


class _Ears:
    """Keeps what a link's thread hears."""

    def __init__(self) -> None:
        self.heard: dict[str, Announced] = {}
        self.left_out = 0
        self.new_s = time.monotonic()
        """When the last device came that had not been heard before."""
        self._kept_bytes = 0

    def __call__(self, delivery: Delivery) -> None:
        """Take a status message; empty: somebody cleared it."""
        if not delivery.payload:
            return
        try:
            said = _read(delivery)
            if said.device not in self.heard:
                self._make_room(len(delivery.payload))
                self.new_s = time.monotonic()
        except ValueError:
            self.left_out += 1
        else:
            self.heard[said.device] = said

    def _make_room(self, size: int) -> None:
        if len(self.heard) >= DEVICES_MAX or self._kept_bytes + size > KEPT_MAX_BYTES:
            raise ValueError("there are too many")
        self._kept_bytes += size


def listen(broker: BrokerConfig, quiet_s: float) -> Announcements:
    """Hear what a broker keeps of devices, until no new one came for so long.

    Raises:
        LinkError: the broker cannot be reached, or does not let this user read statuses.
    """
    link = Link(broker, f"ferryman-discover-{secrets.token_hex(4)}", packet_max_bytes=MESSAGE_MAX_BYTES + 1024)
    ears = _Ears()
    link.subscribe(topics.ALL_STATUS, ears, qos=0)
    link.start()
    try:
        link.wait_ready(CONNECT_S)
        ears.new_s = began = time.monotonic()
        while (now := time.monotonic()) < ears.new_s + quiet_s and now < began + LISTEN_MAX_S:
            time.sleep(min(ears.new_s + quiet_s, began + LISTEN_MAX_S) - now)
        if problem := link.problem:
            raise LinkError(f"broker {broker.address}: the connection broke while it told of devices: {problem}")
    finally:
        link.stop()
    ended = now < began + LISTEN_MAX_S
    return Announcements(devices=in_order(ears.heard.values()), left_out=ears.left_out, ended=ended)


def _read(delivery: Delivery) -> Announced:
    if len(delivery.payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"{len(delivery.payload)} bytes, at most {MESSAGE_MAX_BYTES} are taken")
    return of_status(parse_status(delivery.topic, delivery.payload))


def of_status(status: Status) -> Announced:
    """What is shown of a status, cut.

    Raises:
        ValueError: it is of a name that no device may be called by.
    """
    name = status.device
    if not topics.is_name(name) or name in _TAKEN:
        raise ValueError(f"{name[:TEXT_MAX_CHARS]!r} cannot be a device's name in the devices file")
    return Announced(
        device=name,
        online=status.online,
        model=status.model[:TEXT_MAX_CHARS],
        soc=status.standing.get("soc", "")[:TEXT_MAX_CHARS],
        labels=dict(list(status.labels.items())[:LABELS_MAX]),
    )


def join(heard: Announcements, statuses: Iterable[Status]) -> Announcements:
    """Those that were heard, and of other devices what a store has of them."""
    found = {one.device: one for one in heard.devices}
    left_out = heard.left_out
    for status in statuses:
        try:
            found.setdefault(status.device, of_status(status))
        except ValueError:
            left_out += 1
    return Announcements(devices=in_order(found.values()), left_out=left_out, ended=heard.ended)


def in_order(devices: Iterable[Announced]) -> tuple[Announced, ...]:
    """By name."""
    return tuple(sorted(devices, key=lambda one: one.device))


def marked(devices: Iterable[Announced], listed: Mapping[str, Device]) -> tuple[Announced, ...]:
    """The same, with what the devices file has for each name."""
    return tuple(
        msgspec.structs.replace(one, listed=listed[one.device].address) if one.device in listed else one
        for one in devices
    )


def meant(devices: Iterable[Announced], queries: Iterable[Query]) -> list[Announced]:
    """Those that any of the queries means.

    Raises:
        CallerError: a query means none of them.
    """
    devices = list(devices)
    found: dict[str, Announced] = {}
    for query in queries:
        its = {one.device: one for one in devices if query.matches(one.target)}
        if not its:
            raise CallerError(f"{query.text!r} means none of the devices found: {some(one.device for one in devices)}")
        found |= its
    return list(found.values())
