from __future__ import annotations

import math
import socket
import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.certificates import utc_now
from ferryman.devices.fleet.authority.authority import HOST_LIFE, Authority, init
from ferryman.devices.fleet.collector import collector as collector_module
from ferryman.devices.fleet.collector.collector import Collector, Commit
from ferryman.devices.fleet.collector.inbox import Delivery
from ferryman.devices.fleet.collector.metrics import Address, Metrics, parse_address
from ferryman.devices.fleet.store.quarantine import Bad
from ferryman.devices.fleet.store.store import Batch, Inserted, Store, open_store
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from tests.support.mosquitto import free_port
from tests.unit.devices.fleet.collector.test_collector import Client


@pytest.fixture
def store(tmp_path):
    database = open_store(tmp_path / "store.db")
    yield database
    database.close()


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families if family.name.startswith("ferryman"))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),  # noqa: S104
        ("[::1]:9464", ("::1", 9464)),
        ("metrics.example:80", ("metrics.example", 80)),
    ],
)
def test_an_address_without_a_host_is_this_machine(text, address):
    assert parse_address(text) == Address(*address)


@pytest.mark.parametrize("text", ["", "x", ":1", "host:", "::1", "::1:5", "99999", "-1", "1:2:3", "http://x:1", "١٢"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(CallerError, match=r"expected \[HOST:\]PORT"):
        parse_address(text)


def test_an_address_that_is_taken_is_refused(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(CallerError, match="cannot listen on"),
            Metrics(store).served(Address("127.0.0.1", taken.getsockname()[1])),
        ):
            pass


def test_a_scrape_tells_what_was_committed_and_what_is_in_the_store(store):
    metrics, port = Metrics(store), free_port()
    collector = Collector(BrokerConfig(host="127.0.0.1", port=1), store, "x")
    metrics.watch(collector)
    collector.inbox.put(None, [(b"t", b"", b"x" * 744)])
    bad = (Bad("t", b"", "schema 9"), Bad("t", b"", "item 3: body"), Bad("t", b"", "item 4: body"))
    metrics.on_commit(Commit(7, Inserted(20, 3, 2), bad, 1, 0.004, 0))
    metrics.on_commit(Commit(1, Inserted(1, 0, 0), (), 0, 0.2, 1))
    statuses = [Status(device=f"d{n}", online=n < 2, birth=1) for n in range(3)]
    store.insert(Batch(statuses=statuses), 1)
    with metrics.served(Address("127.0.0.1", port)):
        metrics.count()
        found = scrape(port)
    expected = {
        "ferryman_collector_messages_total": 8,
        "ferryman_collector_records_total": 21,
        "ferryman_collector_duplicate_records_total": 3,
        "ferryman_collector_commit_seconds_count": 2,
        "ferryman_collector_commit_seconds_sum": pytest.approx(0.204),
        "ferryman_collector_inbox_bytes": 1000,
        "ferryman_collector_connected": 0,
        "ferryman_devices": 3,
        "ferryman_devices_online": 2,
        "ferryman_alerts_open": 0,
    }
    assert {name: found[name, ()] for name in expected} == expected
    quarantined = {
        dict(labels)["reason"]: v for (name, labels), v in found.items() if name.endswith("quarantined_total")
    }
    assert quarantined == {"schema": 1, "record": 2, "conflict": 2}
    assert found["ferryman_collector_lag_seconds", ()] > 1e9
    assert found["ferryman_collector_commit_seconds_bucket", (("le", "0.005"),)] == 1
    assert any(name == "ferryman_build_info" and dict(labels)["store"] == "sqlite" for name, labels in found)


class Flaky:
    """A store that fails for some time."""

    dialect, name, id = "sqlite", "x", "0"

    def __init__(self, store: Store) -> None:
        self.fails: str | None = None
        self._store = store

    def insert(self, batch, now_ns):
        if self.fails is not None:
            self.fails, said = None, self.fails
            raise StoreError(said)
        return self._store.insert(batch, now_ns)

    def read(self, query):
        if self.fails is not None:
            raise StoreError(self.fails)
        return self._store.read(query)


def test_a_store_that_fails_is_down_until_it_answers_and_takes_commits_again(store, monkeypatch):
    monkeypatch.setattr(collector_module, "RETRY_DISK_S", 0.0)
    flaky, port = Flaky(store), free_port()
    metrics = Metrics(flaky)
    seen: list[list[float]] = []
    names = ("collector_store_up", "collector_failed_commits_total", "collector_last_commit_timestamp_seconds")

    def look() -> list[float]:
        found = scrape(port)
        return [found[f"ferryman_{name}", ()] for name in names]

    def refused() -> None:
        metrics.on_failure()
        metrics.count()  # it answers, and takes nothing
        seen.append(look())

    one = Collector(BrokerConfig(host="127.0.0.1", port=1), flaky, "x", metrics.on_commit, refused)
    deliveries = [Delivery(Client(), b"ferryman/v1/pi/status", b"\0\1", encode(Status(device="pi", online=True)))]
    with metrics.served(Address("127.0.0.1", port)):
        assert look() == [1, 0, 0]
        flaky.fails = "the server is gone"
        with pytest.raises(StoreError):
            metrics.count()
        assert look()[0] == 0
        flaky.fails = None
        metrics.count()
        assert look()[0] == 1
        flaky.fails = "disk full"
        one._take(deliveries, threading.Event())
        assert seen == [[0, 1, 0]]
        up, failed, at_s = look()
    assert (up, failed) == (1, 1)
    assert at_s > 1e9


def test_a_server_that_ended_leaves_its_port(store):
    metrics, port = Metrics(store), free_port()
    for _ in range(2):
        with metrics.served(Address("127.0.0.1", port)):
            scrape(port)


@pytest.mark.parametrize("host", ["x" * 300, "a..b", ".a"])
def test_a_host_that_no_name_server_could_have_is_refused(store, host):
    with pytest.raises(CallerError, match="cannot listen"), Metrics(store).served(parse_address(f"{host}:9464")):
        pass


def test_the_end_of_the_collectors_own_certificate_is_told(store, tmp_path):
    init(tmp_path / "ca", utc_now())
    pem, now = tmp_path / "c.pem", utc_now()
    with Authority(tmp_path / "ca") as authority:
        pem.write_bytes(authority.make_host("c", ["collector"], now))
    metrics, port = Metrics(store), free_port()
    broker = BrokerConfig(host="127.0.0.1", port=1, tls=True, tls_ca=str(pem), tls_cert=str(pem))
    metrics.watch(Collector(broker, store, "x"))
    name = "ferryman_collector_certificate_expires_seconds"
    with metrics.served(Address("127.0.0.1", port)):
        assert scrape(port)[name, ()] == int((now + HOST_LIFE).timestamp())
        pem.unlink()
        assert math.isnan(scrape(port)[name, ()])
