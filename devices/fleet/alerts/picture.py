"""What is known of each device at this moment, kept up to date from the store."""

from __future__ import annotations

import logging
from collections import deque
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from ferryman.devices import topics
from ferryman.devices.fleet.alerts.drifting import DriftWatch
from ferryman.devices.fleet.alerts.reading import SETTLE_NS, News, Reader
from ferryman.devices.fleet.alerts.windows import Windows
from ferryman.devices.fleet.alerts.words import TEXT_MAX_CHARS, cut
from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode
from ferryman.runtime.contracts.telemetry import Sample

log = logging.getLogger(__name__)

LATE_NS = 900 * 10**9
"""What took longer to arrive is of the past: it raises nothing."""
SPOKE_NS = 30 * 10**9
"""Who was seen so lately may have sent something since: the store does not put down every time."""
EVENTS_MAX = 256
"""Of a kind and device."""
SAID_MAX = 1000
"""So many devices' records that cannot be taken in are logged."""
UNKNOWN = "_unknown"
"""In the place of a device, where a message names none."""


class _Dropped(Record):
    records: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Vector:
    """One number a device; NaN: not known."""

    def __init__(self) -> None:
        self._all = np.full(0, np.nan)
        self._used = 0

    def add_row(self) -> None:
        """For one more device."""
        self._used += 1
        if self._used > len(self._all):
            self._all = np.concatenate([self._all, np.full(max(64, len(self._all)), np.nan)])

    @property
    def values(self) -> NDArray[np.float64]:
        """To be read and written."""
        return self._all[: self._used]


class Picture:
    """Rows of devices; times in seconds since the Unix epoch, collector's clock."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: dict[str, int] = {}
        self.targets: list[Target] = []
        self.version = 0
        """Grows whenever a target changed."""
        self.packages: list[str | None] = []
        """What each device served at its last sample."""
        self.windows = Windows()
        self.drift = DriftWatch()
        self.dropped: dict[int, deque[tuple[float, int]]] = {}
        """When and how many."""
        self.garbled: dict[int, deque[tuple[float, int]]] = {}
        self.storage: dict[int, str] = {}
        """Why the disk takes nothing, of those where it does not."""
        self.online, self.changed_s, self.seen_s = Vector(), Vector(), Vector()
        self.free_mb, self.unsure_s = Vector(), Vector()
        """Since when the clock is unsure; infinite: it is sure."""
        self.away = Vector()
        """1: it said that it goes offline on purpose."""
        self._vectors = (self.online, self.changed_s, self.seen_s, self.free_mb, self.unsure_s, self.away)
        self._reader = Reader()
        self._statuses: list[str] = []
        self._quarantine_ns: int | None = None
        self._said: set[tuple[str, str]] = set()

    def refresh(self, store: Store, now_ns: int) -> None:
        """Take in what changed.

        Raises:
            StoreError: the store cannot be read; what was taken in stays.
        """
        spoke = self._read_devices(store, now_ns)
        for news in self._reader.read(store, spoke, now_ns):
            try:
                self._take(store, news)
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001  # one device's, which is to blind nobody to the others
                self._say(news, error)
        self._read_quarantine(store, now_ns)

    def _say(self, news: News, error: Exception) -> None:
        """Log what cannot be taken in, once for each device and kind."""
        if (news.device, news.kind) in self._said or len(self._said) == SAID_MAX:
            return
        self._said.add((news.device, news.kind))
        log.warning(
            "alerts: a %s of %s cannot be read, which is said once: %s",
            news.kind,
            news.device,
            cut(f"{type(error).__name__}: {error}", TEXT_MAX_CHARS),
        )

    def _row(self, device: str) -> int:
        row = self.rows.get(device)
        if row is None:
            row = self.rows[device] = len(self.names)
            self.names.append(device)
            self.targets.append(Target(name=device))
            self.packages.append(None)
            self._statuses.append("")
            self.windows.add_row()
            for vector in self._vectors:
                vector.add_row()
            self.version += 1
        return row

    def _read_devices(self, store: Store, now_ns: int) -> list[str]:
        """Take in statuses; the devices that may have spoken since."""
        spoke = []
        devices = tables.devices.c
        query = select(devices.device, devices.status, devices.online, devices.changed_ns, devices.seen_ns)
        for device, status, online, changed_ns, seen_ns in map(tuple, store.read(query)):
            row = self._row(device)
            seen_s = seen_ns / 1e9
            if now_ns - seen_ns < SPOKE_NS:
                spoke.append(device)
            if seen_s != self.seen_s.values[row]:
                self.seen_s.values[row] = seen_s
                self.online.values[row] = online
                self.changed_s.values[row] = changed_ns / 1e9
            if status != self._statuses[row]:
                self._statuses[row] = status
                self._retarget(row, status)
        return spoke

    def _retarget(self, row: int, status: str) -> None:
        try:
            found = decode(status.encode(), Status)
        except ValueError:  # nobody has said anything of itself
            return
        self.away.values[row] = not found.online and found.mode == "offline"
        self.storage.pop(row, None)
        if found.storage:
            self.storage[row] = found.storage
        target = Target(name=self.names[row], model=found.model, labels=found.labels)
        if target != self.targets[row]:
            self.targets[row] = target
            self.version += 1

    def _take(self, store: Store, news: News) -> None:
        row = self._row(news.device)
        received_s = news.received_ns / 1e9
        if news.kind == "dropped":  # news whenever it is told: nobody could know before
            self.dropped.setdefault(row, deque(maxlen=EVENTS_MAX)).append(
                (received_s, decode(news.body.encode(), _Dropped).records)
            )
            return
        if news.age_ns > LATE_NS:
            return
        if news.clock == tables.SURE:
            self.unsure_s.values[row] = np.inf
        elif not np.isfinite(self.unsure_s.values[row]):
            self.unsure_s.values[row] = received_s
        if news.kind == "drift":
            self.drift.take(store, row, news)
            return
        sample = decode(news.body.encode(), Sample)
        if sample.package_sha256 != self.packages[row]:
            self.packages[row] = sample.package_sha256
            self.windows.clear(row)
        self.windows.put(row, received_s, sample)
        if (free := sample.values.get("disk_free_mb")) is not None:
            self.free_mb.values[row] = free

    def _read_quarantine(self, store: Store, now_ns: int) -> None:
        if self._quarantine_ns is None:
            self._quarantine_ns = now_ns - SETTLE_NS
        kept = tables.quarantine.c
        query = select(kept.topic, kept.received_ns).where(
            kept.received_ns > self._quarantine_ns, kept.received_ns <= now_ns - SETTLE_NS, kept.topic != ""
        )
        for topic, received_ns in map(tuple, store.read(query.order_by(kept.received_ns).limit(10_000))):
            self._quarantine_ns = received_ns
            try:
                device = topics.device_of(topic)
            except ValueError:
                device = UNKNOWN
            events = self.garbled.setdefault(self._row(device), deque(maxlen=EVENTS_MAX))
            events.append((received_ns / 1e9, 1))
