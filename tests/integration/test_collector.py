"""The collector with a real mosquitto: bulk reading, back-pressure, presence, metrics."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig, parse_broker
from ferryman.devices.fleet.collector import collector as collector_module
from ferryman.devices.fleet.collector import inbox
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from tests.integration.test_mqtt_tls import Authority
from tests.support import mqtt_load
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.mqtt_load import envelope
from tests.support.telemetry import collecting, until

ROOT = Path(__file__).parents[2]
OPEN = "max_inflight_messages 0\nmax_queued_messages 0\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    database = open_store(tmp_path / "store.db")
    yield database
    database.close()


def linked(broker: BrokerConfig, name: str = "device") -> Link:
    link = Link(broker, name)
    link.start()
    link.wait_ready(60)
    return link


@pytest.mark.parametrize("version", ["", "?version=3.1.1"], ids=["5", "3.1.1"])
def test_a_flood_arrives_whole_in_both_versions(tmp_path, store, version):
    count = mqtt_load.write(tmp_path / "load", mqtt_load.messages(20, 100, 1))
    with Mosquitto(tmp_path, OPEN) as broker:
        config = parse_broker(f"mqtt://127.0.0.1:{broker.port}{version}")
        with collecting(config, store), mqtt_load.sender(broker.port, tmp_path / "load", count) as sender:
            sender.go()
            until(lambda: store.totals().records == count, 60)
    assert store.totals().quarantined == 0


def test_a_long_message_among_short_ones_is_read(tmp_path, store):
    long = b'{"device": "x", "online": true, "unknown": "' + b"x" * 900_000 + b'"}'  # of a later agent
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        device = linked(broker.config)
        for sequence in range(1, 6):
            device.publish(Message(topic=topics.telemetry("pi"), payload=envelope("pi", sequence, 1)))
            device.publish(Message(topic=topics.status("x"), payload=long))
        device.publish(Message(topic=topics.telemetry("pi"), payload=b"x" * (3 << 20)))
        until(lambda: store.totals() == (5, 1, 1))
        device.stop()


def test_it_reads_over_tls(tmp_path, store):
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    count = mqtt_load.write(tmp_path / "load", mqtt_load.messages(5, 100, 5))
    plain = free_port()
    config = f"cafile {authority.file}\ncertfile {certificate}\nkeyfile {key}\n{OPEN}listener {plain} 127.0.0.1\n"
    with Mosquitto(tmp_path, config) as broker:
        secure = parse_broker(f"mqtts://127.0.0.1:{broker.port}?ca={authority.file}")
        with collecting(secure, store), mqtt_load.sender(plain, tmp_path / "load", count) as sender:
            sender.go()
            until(lambda: store.totals().records == 5 * count, 60)


def test_what_it_publishes_itself_is_acknowledged_to_it(tmp_path, store):
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store) as one:
        answers: list[str | None] = []
        for number in range(50):
            one.link.publish(Message(topic=f"ferryman/alerts/pi/r{number}", payload=b"{}", retain=True), answers.append)
        until(lambda: len(answers) == 50)
        assert set(answers) == {None}


def test_more_devices_than_a_broker_queues_are_all_known_on_connecting(tmp_path, store):
    count = 3000
    with Mosquitto(tmp_path) as broker:
        device = linked(broker.config)
        done = threading.Semaphore(0)
        for number in range(count):
            status = encode(Status(device=f"d{number}", online=True))
            message = Message(topic=topics.status(f"d{number}"), payload=status, retain=True)
            device.publish(message, lambda _: done.release())
        for _ in range(count):
            assert done.acquire(timeout=60)
        device.stop()
        with collecting(broker.config, store):
            until(lambda: store.totals().devices == count, 60)


def test_while_the_store_fails_memory_is_bounded_nothing_is_acknowledged_and_then_all_is_there(
    tmp_path, store, monkeypatch, caplog
):
    monkeypatch.setattr(inbox, "INBOX_MAX_BYTES", 200_000)
    monkeypatch.setattr(collector_module, "RETRY_DISK_S", 0.05)
    failing = threading.Event()
    failing.set()
    insert = Store.insert

    def fails(self: Store, batch, now_ns):
        if failing.is_set():
            raise StoreError("store: the server is gone")
        return insert(self, batch, now_ns)

    monkeypatch.setattr(Store, "insert", fails)
    count = mqtt_load.write(tmp_path / "load", mqtt_load.messages(20, 200, 1))
    with (
        Mosquitto(tmp_path, OPEN) as broker,
        collecting(broker.config, store) as one,
        mqtt_load.sender(broker.port, tmp_path / "load", count) as sender,
    ):
        sender.go()
        until(lambda: one.inbox.bytes >= 200_000)
        held = [one.inbox.bytes for _ in range(20) if not threading.Event().wait(0.05)]
        assert max(held) < 200_000 + 2 * 256 * 1024, "what one read brings is all there is beyond the bound"
        assert store.totals().records == 0
        failing.clear()
        until(lambda: store.totals().records == count, 60)
    assert caplog.text.count("nothing is acknowledged") == 1


def test_what_was_not_committed_at_a_stop_comes_again(tmp_path, store, monkeypatch):
    monkeypatch.setattr(collector_module, "RETRY_DISK_S", 0.05)
    insert = Store.insert

    def fails(*_: object) -> None:
        raise StoreError("store: disk full")

    count = mqtt_load.write(tmp_path / "load", mqtt_load.messages(4, 50, 2))
    with Mosquitto(tmp_path, OPEN) as broker:
        with collecting(broker.config, store) as one, mqtt_load.sender(broker.port, tmp_path / "load", count) as sender:
            monkeypatch.setattr(Store, "insert", fails)
            sender.go()
            until(lambda: one._commit_problem is not None)
            sender.wait()
        monkeypatch.setattr(Store, "insert", insert)
        assert store.totals().records == 0
        with collecting(broker.config, store):
            until(lambda: store.totals().records == 2 * count, 60)


def test_the_command_answers_a_scrape_and_ends_cleanly(tmp_path):
    port = free_port()
    with Mosquitto(tmp_path) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        command = [sys.executable, "-m", "ferryman.cli", "collect", "--broker", url, "--metrics", str(port)]
        with subprocess.Popen(
            [*command, "--database", str(tmp_path / "d")], stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert "collecting from" in process.stderr.readline()
            device = linked(broker.config)
            device.publish(Message(topic=topics.telemetry("pi"), payload=envelope("pi", 1, 20)))
            device.publish(Message(topic=topics.telemetry("pi"), payload=b"garbage"))

            def scraped() -> dict[str, float]:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                    families = list(text_string_to_metric_families(answer.read().decode()))
                return {sample.name: sample.value for family in families for sample in family.samples}

            until(lambda: scraped()["ferryman_collector_messages_total"] == 2)
            found = scraped()
            assert found["ferryman_collector_records_total"] == 20
            assert found["ferryman_collector_connected"] == 1
            assert 0 <= found["ferryman_collector_lag_seconds"] < 3600
            device.stop()
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        assert process.returncode == 0
    assert len(re.findall("quarantined a message", rest)) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--broker", "http://x"], "expected mqtt://"),
        (["--broker", "mqtt://x", "--metrics", "x"], r"expected \[HOST:\]PORT"),
        (["--broker", "mqtt://x", "--database", "postgresql://"], "postgresql://"),
        (["--broker", "mqtt://x", "--database", "/nowhere/x.db"], "/nowhere/x.db"),
        (["--broker", "mqtt://x", "--alerts", "/nowhere/alerts.toml"], "/nowhere/alerts.toml"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_connected(tmp_path, options, said):
    command = [sys.executable, "-m", "ferryman.cli", "collect", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr
