"""Devices that speak `Desired` and `Reported` and do nothing in between: for whoever tests the host's side.

What runs on them is a table: package -> how it turns out. `tests/support/simulated.py` has devices that do the work.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import LinkError, WireError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired, Health, Measured, Reported, State

_ECHO = "fake-fleet/echo"
OLD, NEW = "0" * 64, "1" * 64
MS = 1_000_000
S = 1_000_000_000


def health(latency_ms: float = 2.0, before_ms: float | None = 2.0, **more) -> Health:
    return Health(
        seconds=60.0,
        starts=1,
        requests=10,
        errors=0,
        latency_ns=round(latency_ms * MS),
        before_latency_ns=None if before_ms is None else round(before_ms * MS),
        **more,
    )


def measured(variant: str, latency_ms: float, share: float | None = None, size_bytes: int = 1000) -> Measured:
    return Measured(
        variant=variant,
        interpreter="litert",
        latency_ns=round(latency_ms * MS),
        memory_bytes=10**7,
        sqnr_db=100.0,
        size_bytes=size_bytes,
        share=share,
    )


@dataclass
class FakeDevice:
    """Takes what it is told, in as many steps as it is asked for."""

    name: str
    model: str = "pi4"
    serves: str | None = OLD
    release: str | None = "net/1"
    previous: tuple[str | None, str | None] = (None, None)
    ends: Callable[[Desired], State] = lambda _: "confirmed"
    health: Health | None = field(default_factory=health)
    measures: Callable[[Desired], tuple[Measured, ...]] = lambda _: ()
    party: str = "runtime"
    version: int = 0
    desired: Desired | None = None
    seen: list[Desired] = field(default_factory=list)

    def told(self, desired: Desired) -> None:
        """An older version is ignored, and so is the same one."""
        if desired.version > self.version:
            self.version, self.desired = desired.version, desired
            self.seen.append(desired)

    def work(self) -> Iterator[Reported]:
        """What it says while it does what it was told last."""
        desired, self.desired = self.desired, None
        if desired is None:
            return
        if desired.previous:
            if self.serves != desired.package_sha256:
                assert self.previous[1] == desired.package_sha256 or desired.release
                self.previous = self.release, self.serves
                self.release, self.serves = desired.release or None, desired.package_sha256
            yield self.report(desired, "confirmed")
            return
        yield self.report(desired, "downloading")
        end = self.ends(desired)
        if end in {"refused", "failed"}:
            yield self.report(desired, end, error=WireError(party=self.party, message="it does not go"))
            return
        yield self.report(desired, "installing")
        before = self.release, self.serves
        if desired.package_sha256 != self.serves:
            self.previous = before
            self.release, self.serves = desired.release, desired.package_sha256
        yield self.report(desired, "trial", measured=self.measures(desired))
        if end == "trial":
            return
        if end == "rolled-back":
            self.release, self.serves = before
        error = WireError(party=self.party, message="it does not go") if end == "rolled-back" else None
        yield self.report(desired, end, measured=self.measures(desired), health=self.health, error=error)

    def report(self, desired: Desired, state: State, **more) -> Reported:
        return Reported(
            device=self.name,
            at_ns=1,
            desired_version=desired.version,
            rollout=desired.rollout,
            state=state,
            release=self.release,
            package_sha256=self.serves,
            model=self.model,
            **more,
        )

    def first(self) -> Reported:
        """What it says before anybody asks."""
        return self.report(Desired(version=self.version, rollout="", release="", package_sha256=""), "confirmed")


class FakeFleet:
    """Fake devices at a real broker, over one connection for all of them: a device is its topics."""

    def __init__(self, broker: BrokerConfig, devices: list[FakeDevice], labels=None) -> None:
        self.devices = {one.name: one for one in devices}
        self._labels = labels or {}
        self._todo: queue.Queue[str | None] = queue.Queue()
        self._link = Link(broker, "fake-fleet", receive_max=2000)
        self._link.subscribe(topics.ALL_DESIRED, self._on_desired)
        self._link.subscribe(_ECHO, lambda _delivery: self._heard.set())
        self._heard = threading.Event()
        self._link.on_ready(lambda: self._todo.put("*"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.announced = threading.Event()

    def __enter__(self):
        self._link.start()
        self._link.wait_ready(10)
        self._thread.start()
        assert self.announced.wait(30)
        return self

    def settle(self) -> None:
        """Wait until the broker has all that was said: it takes what one client says in order."""
        self._heard.clear()
        self._link.publish(Message(topic=_ECHO, payload=b""))
        assert self._heard.wait(30)

    def __exit__(self, *_):
        self._todo.put(None)
        self._thread.join(10)
        self._link.stop()

    def _on_desired(self, delivery) -> None:
        device = self.devices.get(topics.device_of(delivery.topic))
        if device is not None and delivery.payload:
            device.told(decode(delivery.payload, Desired))
            self._todo.put(device.name)

    def _run(self) -> None:
        while (name := self._todo.get()) is not None:
            if name == "*":
                for device in self.devices.values():
                    self._announce(device)
                self.announced.set()
                continue
            for report in self.devices[name].work():
                self._say(topics.reported(name), encode(report))

    def _announce(self, device: FakeDevice) -> None:
        labels = self._labels.get(device.name, {})
        status = Status(
            device=device.name, online=True, package_sha256=device.serves, labels=labels, model=device.model
        )
        self._say(topics.status(device.name), encode(status))
        self._say(topics.reported(device.name), encode(device.first()))

    def _say(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(LinkError):  # said again on the next connection
            self._link.publish(Message(topic=topic, payload=payload, retain=True))
