"""Devices, a real broker, a real collector, a mailbox and a webhook: who goes away is told of, and who comes back."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.alerts import looks, reading, senders
from ferryman.devices.fleet.collector import housekeeping, run
from ferryman.devices.mqtt import Link, Message
from ferryman.profiler.drift import DriftMonitor, Served
from ferryman.runtime.contracts.alert import Alert
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from tests.support.mosquitto import Mosquitto
from tests.support.servers import mail_server, web_hook
from tests.support.telemetry import agent, until

RULES = """
[group]
wait_s = 1
every_s = 0

[reference]
inferences = 200
over_s = 0

[[rule]]
when = "offline"
for_s = 0
clear_s = 0
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds become tenths."""
    monkeypatch.setattr(senders, "LOOK_S", 0.05)
    monkeypatch.setattr(looks, "LISTEN_S", 0.0)
    monkeypatch.setattr(reading, "SETTLE_NS", 0)
    monkeypatch.setattr(housekeeping, "TICK_S", 0.1)
    monkeypatch.setattr(run, "TICK_S", 0.1)


@contextmanager
def collecting(broker: BrokerConfig, folder: Path, *urls: str) -> Iterator[None]:
    rules = folder / "alerts.toml"
    rules.write_text(RULES + "".join(f'[[tell]]\nurl = "{url}"\n' for url in urls))
    stop, connected = threading.Event(), threading.Event()
    work = functools.partial(
        run.run_collector,
        broker,
        folder / "store.db",
        stop=stop,
        alerts=rules,
        on_connected=lambda _: connected.set(),
    )
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert connected.wait(60)
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def devices(broker: BrokerConfig, *names: str) -> Iterator[None]:
    """Who come and go at once, over one connection: one that is slow must not make two notices of it."""

    def said(name: str, *, online: bool) -> Message:
        status = Status(device=name, online=online, labels={"site": "lab"})
        return Message(topic=topics.status(name), payload=encode(status), retain=True)

    def say(*, online: bool) -> None:
        for name in names:
            link.publish(said(name, online=online))

    link = Link(broker, names[0], will=said(names[0], online=False))
    link.start()
    link.wait_ready(60)
    say(online=True)
    try:
        yield
    finally:
        say(online=False)
        link.stop()


class Board:
    """What a dashboard sees: topic -> alert."""

    def __init__(self, broker: BrokerConfig) -> None:
        self.shows: dict[str, Alert] = {}
        self.link = Link(broker, "dashboard")
        self.link.subscribe(f"{topics.ALERTS}/#", lambda delivery: self._take(delivery.topic, delivery.payload))
        self.link.start()

    def _take(self, topic: str, payload: bytes) -> None:
        if payload:
            self.shows[topic] = decode(payload, Alert)
        else:
            self.shows.pop(topic, None)


def test_who_goes_away_is_told_by_mail_webhook_and_mqtt_and_who_comes_back_is_too(tmp_path):
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(tmp_path)).config
        mail_url, box = stack.enter_context(mail_server())
        hook_url, hook = stack.enter_context(web_hook())
        stack.enter_context(collecting(broker, tmp_path, mail_url, hook_url))
        board = Board(broker)
        stack.callback(board.link.stop)
        names = [f"lab-{n}" for n in range(8)]
        with devices(broker, "lab-well"):
            with devices(broker, *names):
                pass
            until(lambda: len(board.shows) == 8, 60)
            until(lambda: len(box.mails) == len(hook.bodies) == 1, 60)
            assert board.shows[topics.alert("lab-3", "offline")].text == "is offline"
            assert box.mails[0]["Subject"] == "critical: offline: 8 devices at site=lab"
            assert sorted(alert["device"] for alert in hook.bodies[0]["alerts"]) == sorted(names)
            stack.enter_context(devices(broker, *names))
            until(lambda: not board.shows, 60)
            until(lambda: len(box.mails) == len(hook.bodies) == 2, 60)
            assert box.mails[1]["Subject"] == "resolved: offline: 8 devices at site=lab"
            assert all(alert["until_ns"] for alert in hook.bodies[1]["alerts"])


def test_shifted_input_raises_an_alert_at_the_collector(tmp_path):
    """Distribution shift: drift statistics travel with telemetry, and the collector tells."""
    random = np.random.default_rng(1)

    def served(mean: float) -> list[tuple[str, object]]:
        monitor = DriftMonitor(period_s=600)
        for n in range(250):
            image = random.normal(mean, 1, (1, 3, 16, 16)).astype(np.float32)
            logits = image.mean(axis=(2, 3))
            one = Served("net", "aaaa", "fp32", "fake", ("image",), ("logits",), (image,), (logits,))
            monitor.observe(one, 10**18 + n)
        return [("drift", record) for record in monitor.flush()]

    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(tmp_path)).config
        hook_url, hook = stack.enter_context(web_hook())
        stack.enter_context(collecting(broker, tmp_path, hook_url))
        outbox = Outbox(tmp_path / "outbox.db")
        stack.callback(outbox.close)
        stack.enter_context(agent(broker, outbox))

        def send(mean: float) -> None:
            outbox.append_all(served(mean))
            until(lambda: outbox.counts().records == 0, 60)

        send(0.0)
        send(0.02)
        send(1.0)
        until(lambda: bool(hook.bodies), 60)
        (notice,) = hook.bodies
        assert notice["title"] == "warning: drift: pi"
        assert notice["alerts"][0]["subject"] in {"image", "logits"}
        assert notice["alerts"][0]["value"] > 0.3
