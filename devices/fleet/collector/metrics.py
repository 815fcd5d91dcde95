"""What Prometheus scrapes from a collector (names: prometheus.io/docs/practices/naming)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from sqlalchemy import func, select

from ferryman import __version__
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.expiry import shown_to
from ferryman.devices.fleet.collector.collector import Collector, Commit
from ferryman.devices.fleet.collector.parse import reason_class
from ferryman.devices.fleet.store.store import Store
from ferryman.devices.fleet.store.tables import alerts, devices
from ferryman.runtime.contracts.errors import CallerError, StoreError

_ADDRESS = re.compile(r"(?:(?P<host>[^:\[\]]+|\[[0-9a-fA-F:]+\]):)?(?P<port>\d{1,5})", re.ASCII)
_PORT_MAX = 65535
_COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


CERTIFICATE_EXPIRES = "ferryman_collector_certificate_expires_seconds"
"""Only where a certificate is shown to the broker."""


class Address(NamedTuple):
    """Where the metrics are served."""

    host: str
    port: int


def parse_address(text: str) -> Address:
    """Read [HOST:]PORT; without a host only this machine can ask.

    Raises:
        CallerError: it is something else.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > _PORT_MAX:
        raise CallerError(f"metrics: expected [HOST:]PORT such as 9464 or 0.0.0.0:9464, found {text!r}")
    return Address((found["host"] or "127.0.0.1").strip("[]"), int(found["port"]))


class Metrics:
    """Counts commits, and shows the rest as it is when asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"ferryman_collector_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"ferryman_{name}", what, registry=registry)

        Info("ferryman_build", "The ferryman that collects.", registry=registry).info(
            {"version": __version__, "store": store.dialect}
        )
        self._messages = counter("messages", "Messages committed, of telemetry and status.")
        self._records = counter("records", "Records stored.")
        self._duplicates = counter("duplicate_records", "Records that came again and were stored already.")
        self._quarantined = counter("quarantined", "Messages and records put into quarantine.", ("reason",))
        self._commit = Histogram(
            "ferryman_collector_commit_seconds",
            "From the begin of a commit to its end on disk.",
            buckets=_COMMIT_S,
            registry=registry,
        )
        self._failed = counter("failed_commits", "Commits that the store refused; each is tried again.")
        self._up = gauge("collector_store_up", "1 while the store answers and takes commits; 0 from a failure on.")
        self._commits = self._answers = True
        self._up.set_function(lambda: self._commits and self._answers)
        self._committed = gauge("collector_last_commit_timestamp_seconds", "When something was last committed.")
        self._inbox = gauge("collector_inbox_bytes", "Taken from the broker and not committed yet.")
        self._connected = gauge("collector_connected", "1 while connected to the broker and subscribed.")
        self._lag = gauge(
            "collector_lag_seconds", "Age of the newest record of the last commit, by its device's clock."
        )
        self._online = gauge("devices_online", "Devices whose last status says that they are connected.")
        self._devices = gauge("devices", "Devices that ever told a status.")
        self._alerts = gauge("alerts_open", "Alerts that hold now.")

    def on_commit(self, commit: Commit) -> None:
        """Count a commit."""
        self._commits = True
        self._committed.set_to_current_time()
        self._messages.inc(commit.messages)
        self._records.inc(commit.inserted.new)
        self._duplicates.inc(commit.inserted.duplicates)
        for bad in commit.bad:
            self._quarantined.labels(reason_class(bad.reason)).inc()
        if commit.inserted.conflicts:
            self._quarantined.labels("conflict").inc(commit.inserted.conflicts)
        self._commit.observe(commit.seconds)
        if commit.newest_ns:
            self._lag.set(time.time() - commit.newest_ns / 1e9)

    def on_failure(self) -> None:
        """Count a commit that the store refused."""
        self._failed.inc()
        self._commits = False

    def watch(self, collector: Collector) -> None:
        """Show its state."""
        if shown_to(collector.link.broker) is not None:
            expires = Gauge(
                CERTIFICATE_EXPIRES,
                "When the certificate that is shown to the broker ends, in seconds of the Unix epoch.",
                registry=self.registry,
            )
            expires.set_function(lambda: _expires_s(collector.link.broker))
        self._inbox.set_function(lambda: collector.inbox.bytes)
        self._connected.set_function(lambda: not collector.link.problem)

    def count(self) -> None:
        """Look into the store.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            total = self._store.read(select(func.count()).select_from(devices))[0][0]
            connected = self._store.read(select(func.count()).where(devices.c.online))[0][0]
            still = self._store.read(select(func.count()).where(alerts.c.until_ns.is_(None)))[0][0]
        except StoreError:
            self._answers = False
            raise
        self._answers = True
        self._devices.set(total)
        self._online.set(connected)
        self._alerts.set(still)

    @contextmanager
    def served(self, address: Address) -> Iterator[None]:
        """Answer scrapes of http://HOST:PORT/metrics meanwhile.

        Raises:
            CallerError: the address cannot be had.
        """
        try:
            server, thread = start_http_server(address.port, address.host, self.registry)
        except (OSError, UnicodeError) as error:  # the latter: no name that DNS could have
            why = getattr(error, "strerror", None) or error
            raise CallerError(
                f"metrics: cannot listen on {address.host[:80]}:{address.port}: {why}; name another"
            ) from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _expires_s(broker: BrokerConfig) -> float:
    """NaN: the file cannot be read now."""
    found = shown_to(broker)
    return math.nan if found is None else found.not_after.timestamp()
