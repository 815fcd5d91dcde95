"""A store that simulated devices talk to, with a clock of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from datasketches import kll_floats_sketch

from ferryman.devices import topics
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Arrived, Bad, Batch, Row, Store
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.telemetry import Sample

SECOND = 10**9
NOON_NS = 1_800_000_000 * SECOND
BOOT = "outbox.kernel"


class Note(NamedTuple):
    """A record that a device is about to send."""

    kind: str
    body: Record | dict
    age_s: float = 0.0
    sure: bool = True


class Scene:
    """Devices that send to a store, as a collector would put it down."""

    def __init__(self, store: Store, now_ns: int = NOON_NS) -> None:
        self.store = store
        self.now_ns = now_ns
        self._next: dict[tuple[str, str], int] = {}

    def wait(self, seconds: float) -> int:
        self.now_ns += int(seconds * SECOND)
        return self.now_ns

    def status(self, *devices: str, online: bool = True, site: str = "", model: str = "Pi 4", **more: str) -> None:
        labels = {"site": site} if site else {}
        statuses = [Status(device=name, online=online, model=model, labels=labels, **more) for name in devices]
        self.store.insert(Batch(statuses=statuses), self.now_ns)

    def retained(self, *devices: str) -> None:
        """The broker tells again what it kept: what `status` told."""
        kept = [Status(device=name, online=True, model="Pi 4") for name in devices]
        self.store.insert(Batch(retained=kept), self.now_ns)

    def send(self, device: str, *notes: Note, boot: str = BOOT) -> None:
        self.send_all({device: notes}, boot=boot)

    def send_all(self, notes: dict[str, Sequence[Note]], boot: str = BOOT) -> None:
        arrived = []
        for device, some in notes.items():
            rows = []
            for note in some:
                number = self._next[device, boot] = self._next.get((device, boot), 0) + 1
                at_ns = self.now_ns - int(note.age_s * SECOND)
                body = encode(note.body) if isinstance(note.body, Record) else _json(note.body)
                uptime_ns = at_ns - NOON_NS + 10**15
                rows.append(Row(number, note.kind, at_ns if note.sure else 1000, uptime_ns, note.sure, body))
            arrived.append(Arrived(device, boot, rows, topics.telemetry(device), b""))
        self.store.insert(Batch(arrived=arrived), self.now_ns)

    def garble(self, device: str, count: int) -> None:
        bad = [Bad(topics.telemetry(device), f"{self.now_ns} {n}".encode(), "no envelope") for n in range(count)]
        self.store.insert(Batch(bad=bad), self.now_ns)

    def roll(self, device: str, metric: str, package: str, hours_ago: float, values: Sequence[float]) -> None:
        """Put an hour of the past in."""
        sketch = kll_floats_sketch(200)
        sketch.update(np.asarray(values, np.float32))
        row = {
            "device": device,
            "metric": metric,
            "package": package,
            "span_s": 3600,
            "start_s": int(self.now_ns / SECOND - hours_ago * 3600) // 3600 * 3600,
            "count": len(values),
            "total": float(sum(values)),
            "least": min(values),
            "most": max(values),
            "sketch": sketch.serialize(),
            "sealed": 0,
        }
        self.store.write(lambda connection: connection.execute(tables.rollups.insert(), row) and None)


def sample(
    *,
    latency_ms: float | None = None,
    package: str | None = "aaaa",
    age_s: float = 0,
    sure: bool = True,
    **values: float,
) -> Note:
    found = dict(values)
    if latency_ms is not None:
        found = {"latency_ms": latency_ms, "inferences": 20.0, **found}
    return Note("sample", Sample(period_s=10, values=found, package_sha256=package), age_s, sure)


def _json(body: dict) -> bytes:
    return json.dumps(body).encode()
