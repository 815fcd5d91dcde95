"""Outbox, publisher, a real broker, collector and store."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.collector.run import run_collector
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import StoreError
from tests.support.broker import running_amqtt
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import agent, collecting, fill, kept_out, numbers, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    database = open_store(tmp_path / "store.db")
    yield database
    database.close()


def test_records_reach_the_store_and_leave_the_outbox(tmp_path, outbox, store):
    fill(outbox, 2000)
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store), agent(broker.config, outbox):
        until(lambda: outbox.counts().records == 0)
        until(lambda: [d.status.online for d in store.devices()] == [True])
    assert numbers(store) == list(range(2000))


def test_a_clean_stop_is_reported_as_offline(tmp_path, outbox, store):
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        with agent(broker.config, outbox):
            until(lambda: [d.status.online for d in store.devices()] == [True])
        until(lambda: [d.status.online for d in store.devices()] == [False])


def test_without_a_collector_records_stay_in_the_outbox(tmp_path, outbox, store):
    fill(outbox, 50)
    with Mosquitto(tmp_path) as broker, agent(broker.config, outbox) as publisher:
        until(lambda: publisher._window.messages and not publisher._window.in_flight)
        assert outbox.counts().records == 50
        with collecting(broker.config, store):
            until(lambda: outbox.counts().records == 0)
    assert numbers(store) == list(range(50))


def test_the_broker_alone_frees_the_outbox_when_asked(tmp_path, outbox):
    fill(outbox, 50)
    with Mosquitto(tmp_path) as broker, agent(broker.config, outbox, confirm="broker"):
        until(lambda: outbox.counts().records == 0)


def test_a_broker_that_comes_late_is_found(tmp_path, outbox, store):
    fill(outbox, 5)
    broker = Mosquitto(tmp_path)
    with collecting(broker.config, store, wait_s=0), agent(broker.config, outbox):
        time.sleep(0.5)
        with broker:
            until(lambda: outbox.counts().records == 0)
    assert numbers(store) == list(range(5))


def test_a_broker_that_takes_few_messages_at_once_is_given_few(tmp_path, outbox, store):
    fill(outbox, 100)
    with (
        Mosquitto(tmp_path, "max_inflight_messages 3") as broker,
        collecting(broker.config, store),
        agent(broker.config, outbox) as publisher,
    ):
        until(lambda: outbox.counts().records == 0)
        assert publisher._link._connection._client.max_inflight_messages == 3
    assert numbers(store) == list(range(100))


def test_a_record_the_broker_refuses_stays_and_goes_when_it_is_let_through(tmp_path, outbox, store, caplog):
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite ferryman/v1/+/status\ntopic readwrite ferryman/v1/+/receipt\n")
    fill(outbox, 3)
    with (
        Mosquitto(tmp_path, f"acl_file {rules}") as broker,
        agent(broker.config, outbox, confirm="broker") as publisher,
    ):
        until(lambda: publisher.refused >= 6)
        assert outbox.counts().records == 3
        assert caplog.text.count("broker refuses ferryman/v1/pi/telemetry: Not authorized") == 1
        rules.write_text("topic readwrite #\n")
        broker.reload()
        with collecting(broker.config, store):
            until(lambda: outbox.counts().records == 0)


def test_bad_messages_are_quarantined_and_the_good_ones_around_them_stored(tmp_path, outbox, store):
    fill(outbox, 20)
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        intruder = Link(broker.config, "intruder")
        intruder.start()
        intruder.wait_ready(60)
        for payload in (b"", b"garbage", b"[" * 5000, b"\xff" * 100):
            intruder.publish(Message(topic=topics.telemetry("pi"), payload=payload))
        intruder.publish(Message(topic="ferryman/v1/a b/telemetry", payload=b"{}"))
        intruder.publish(Message(topic=topics.status("pi"), payload=b"{}", retain=True))
        with agent(broker.config, outbox):
            until(lambda: outbox.counts().records == 0)
        until(lambda: store.totals().quarantined == 6)
        intruder.stop()
    assert numbers(store) == list(range(20))


def test_what_is_sent_while_the_collector_is_away_waits_in_its_session(tmp_path, outbox, store):
    with Mosquitto(tmp_path) as broker:
        with collecting(broker.config, store):
            pass
        fill(outbox, 30)
        with agent(broker.config, outbox) as publisher:
            until(lambda: publisher._window.messages and not publisher._window.in_flight)
        with collecting(broker.config, store):
            until(lambda: store.totals().records == 30)
    assert outbox.counts().records == 30, "the agent is gone: nobody took the receipt"


def test_wrong_credentials_are_a_clear_error_and_do_not_show_the_password(tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    with Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}") as broker:
        link = Link(
            BrokerConfig(host="127.0.0.1", port=broker.port, username="me", password="secret"),  # noqa: S106
            "x",
        )
        link.start()
        said = kept_out(link, "Not authorized")
        link.stop()
    assert re.match(r"broker mqtt://127.0.0.1:\d+: not connected .*Not authorized", said)
    assert "secret" not in said


def test_a_broker_that_speaks_only_3_1_1_will_do(tmp_path, outbox, store):
    pytest.importorskip("amqtt", reason="amqtt is not installed")
    with running_amqtt(tmp_path) as port:
        silent_on_v5 = BrokerConfig(host="127.0.0.1", port=port)
        told_so = BrokerConfig(host="127.0.0.1", port=port, only_3_1_1=True)
        fill(outbox, 100)
        with collecting(silent_on_v5, store), agent(told_so, outbox):
            until(lambda: outbox.counts().records == 0, 60)
        assert numbers(store) == list(range(100))


@contextmanager
def collector_process(broker: Mosquitto, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.support.telemetry_processes", "collector"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"mqtt://127.0.0.1:{broker.port}", str(folder), "0"],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_collector_on_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_space(tmp_path, outbox, store):
    with Mosquitto(tmp_path) as broker, collector_process(broker, tmp_path) as process:
        fill(outbox, 1)
        with agent(broker.config, outbox):
            until(lambda: outbox.counts().records == 0)
            limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            size = (tmp_path / "store.db-wal").stat().st_size
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, limits[1]))
            fill(outbox, 200)
            until(lambda: "nothing is acknowledged" in (tmp_path / "collector.log").read_text())
            assert outbox.counts().records == 200
            assert store.totals().records == 1
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
            until(lambda: outbox.counts().records == 0)
    assert store.totals() == (201, 0, 1)


def test_a_second_collector_on_the_same_store_is_refused(tmp_path, outbox, store):
    with Mosquitto(tmp_path) as broker, collector_process(broker, tmp_path):
        fill(outbox, 1)
        with agent(broker.config, outbox):
            until(lambda: outbox.counts().records == 0)
        with pytest.raises(StoreError, match="another collector writes to it"):
            run_collector(broker.config, store.path, stop=threading.Event())


def test_a_collector_ends_cleanly_on_sigterm(tmp_path, outbox):
    with Mosquitto(tmp_path) as broker, collector_process(broker, tmp_path) as process:
        fill(outbox, 1)
        with agent(broker.config, outbox):
            until(lambda: outbox.counts().records == 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
