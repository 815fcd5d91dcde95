"""Alerts with a real broker, a real webhook, and a collector's process that is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from ferryman.devices import topics
from ferryman.devices.fleet.alerts import kept, looks, senders, silences
from ferryman.devices.fleet.alerts.alerting import Alerting
from ferryman.devices.fleet.alerts.book import sink_name
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.alert import Alert
from ferryman.runtime.contracts.record import decode, encode
from tests.support.alerts import SECOND, Scene, sample
from tests.support.mosquitto import Mosquitto
from tests.support.servers import web_hook
from tests.support.telemetry import until

RULES = """
[group]
wait_s = 0
every_s = 0

[[rule]]
when = "disk"
for_s = 0
clear_s = 0
"""
LAMP = topics.alert("pi", "disk")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in (("LOOK_S", 0.02), ("RETRY_FIRST_S", 0.05), ("RETRY_CAP_S", 0.1)):
        monkeypatch.setattr(senders, name, value)
    monkeypatch.setattr(looks, "LISTEN_S", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()


@pytest.fixture
def scene(store: Store) -> Scene:
    made = Scene(store, time.time_ns() - 3600 * SECOND)
    made.status("pi", site="lab")
    return made


def rules(folder: Path, *urls: str, more: str = "") -> Path:
    path = folder / "alerts.toml"
    path.write_text(RULES + "".join(f'[[tell]]\nurl = "{url}"\n' for url in urls) + more)
    return path


def full(scene: Scene, alerting: Alerting, *, free_mb: float) -> None:
    scene.send("pi", sample(disk_free_mb=free_mb))
    for _ in range(2):
        scene.wait(5)
        alerting.tick(scene.now_ns)


def spin(scene: Scene, alerting: Alerting, condition) -> None:
    def tick() -> bool:
        alerting.tick(scene.wait(0.1))
        return condition()

    until(tick)


def untold(store: Store) -> list[int]:
    return [row.id for row in kept.read(store) if not row.told]


class Lamp:
    """Somebody who watches the topic of one alert."""

    def __init__(self, broker: Mosquitto) -> None:
        self.seen: list[bytes] = []
        self.link = Link(broker.config, "lamp")
        self.link.subscribe(f"{topics.ALERTS}/#", lambda delivery: self.seen.append(delivery.payload))
        self.link.start()


def test_what_holds_stands_on_mqtt_until_it_is_over_and_a_broker_that_forgot_is_told_again(tmp_path, scene, store):
    with Mosquitto(tmp_path) as broker:
        link = Link(broker.config, "collector")
        alerting = Alerting(store, link, rules(tmp_path))
        link.start()
        link.wait_ready(60)
        alerting.tick(scene.now_ns)
        full(scene, alerting, free_mb=3.0)
        spin(scene, alerting, lambda: not untold(store))
        lamp = Lamp(broker)
        until(lambda: len(lamp.seen) == 1)
        assert decode(lamp.seen[0], Alert).text == "3 MB are free on its disk"
        lamp.link.stop()

        broker.kill()  # it kept nothing
        broker.start()
        until(lambda: link.problem == "", 60)
        lamp = Lamp(broker)
        spin(scene, alerting, lambda: len(lamp.seen) == 1)

        full(scene, alerting, free_mb=9000.0)
        spin(scene, alerting, lambda: lamp.seen[1:] == [b""] and not untold(store))
        assert alerting.counts[:3] == (0, 1, 1)
        lamp.link.stop()
        alerting.close()
        link.stop()


def test_a_broker_that_went_back_to_an_alert_that_is_over_is_told_so(tmp_path, scene, store):
    with Mosquitto(tmp_path) as broker:
        link = Link(broker.config, "collector")
        alerting = Alerting(store, link, rules(tmp_path))
        link.start()
        link.wait_ready(60)
        alerting.tick(scene.now_ns)
        full(scene, alerting, free_mb=3.0)
        spin(scene, alerting, lambda: not untold(store))
        (ours,) = (row.alert for row in kept.read(store))
        full(scene, alerting, free_mb=9000.0)
        spin(scene, alerting, lambda: not untold(store))
        foreign = msgspec.structs.replace(ours, rule="theirs")
        for alert in (ours, foreign):  # as it stood on the broker's disk
            link.publish(Message(topic=topics.alert(alert.device, alert.rule), payload=encode(alert), retain=True))
        lamp = Lamp(broker)
        until(lambda: len(lamp.seen) == 2)
        link.reconnect(link.broker)
        spin(scene, alerting, lambda: b"" in lamp.seen)
        lamp.link.stop()
        late = Lamp(broker)
        until(lambda: late.seen)
        assert [decode(one, Alert).rule for one in late.seen] == ["theirs"]
        late.link.stop()
        alerting.close()
        link.stop()


KILLED = """
import sys, time
from pathlib import Path
from ferryman.devices.fleet.alerts import senders
from ferryman.devices.fleet.alerts.alerting import Alerting
from ferryman.devices.fleet.store.store import open_store

senders.LOOK_S = 0.02
alerting = Alerting(open_store(sys.argv[1]), None, Path(sys.argv[2]))
while True:
    alerting.tick(int(sys.argv[3]))
    time.sleep(0.02)
"""


def test_a_collector_that_is_killed_while_it_tells_tells_again(tmp_path, scene, store):
    with web_hook() as (url, hook):
        path = rules(tmp_path, url)
        looking = Alerting(store, None, rules(tmp_path))  # raises it, and has nobody to tell but marks nothing
        looking.tick(scene.now_ns)
        scene.send("pi", sample(disk_free_mb=3.0))
        looking._watch.check(store, scene.wait(10), None)
        assert len(untold(store)) == 1
        rules(tmp_path, url)
        hook.hangs = True
        arguments = [sys.executable, "-c", KILLED, str(store.path), str(path), str(scene.now_ns)]
        for asked in (1, 2):
            with subprocess.Popen(arguments) as collector:
                until(lambda asked=asked: hook.asked == asked, 60)
                collector.kill()
        assert len(untold(store)) == 1
        hook.hangs = False
        hook.hang.set()
        with subprocess.Popen(arguments) as collector:
            until(lambda: not untold(store), 60)
            collector.kill()
    assert hook.bodies[-1]["alerts"][0]["device"] == "pi"


def test_a_silence_is_taken_from_the_file_while_the_collector_runs(tmp_path, scene, store):
    with web_hook() as (url, hook):
        silence = "[[silence]]\nuntil = 2999-01-01T00:00:00Z\ndevices = 'site=lab'\n"
        alerting = Alerting(store, None, rules(tmp_path, url, more=silence))
        alerting.tick(scene.now_ns)
        full(scene, alerting, free_mb=3.0)
        time.sleep(0.2)
        assert hook.asked == 0
        rules(tmp_path, url, more="[[silence]]\nuntil = soon\n")  # is wrong, and changes nothing
        alerting.tick(scene.wait(5))
        rules(tmp_path, url)
        spin(scene, alerting, lambda: not untold(store))
        assert [body["title"] for body in hook.bodies] == ["warning: disk: pi at site=lab"]
        alerting.close()


def test_a_silence_of_the_store_holds_back_until_somebody_ends_it(tmp_path, scene, store, caplog):
    with web_hook() as (url, hook):
        alerting = Alerting(store, None, rules(tmp_path, url))
        alerting.tick(scene.now_ns)
        asked = {"for_s": 7 * 86_400, "by": "eve", "why": "a new disk", "now_ns": scene.now_ns}
        silence = silences.add(store, "site=lab", (), **asked)
        full(scene, alerting, free_mb=3.0)
        sink = sink_name(0)
        assert alerting._book.due(sink, time.monotonic(), time.time()) == []
        store.write(lambda connection: connection.execute(update(tables.silences).values(devices="site==")))
        alerting.tick(scene.wait(5))  # is read once: what somebody wrote over it counts no more
        assert "cannot be read" not in caplog.text
        silences.end(store, silence.id, "eve", scene.now_ns)
        bad = silences.add(store, "site=lab", (), **asked)
        store.write(lambda connection: connection.execute(update(tables.silences).values(devices="site==")))
        spin(scene, alerting, lambda: not untold(store))
        assert [body["title"] for body in hook.bodies] == ["warning: disk: pi at site=lab"]
        assert caplog.text.count(f"silence {bad.id} cannot be read, and silences nobody: query, character 6") == 1
        alerting.close()


def test_the_log_has_a_line_for_each_alert_that_begins_or_is_over(tmp_path, scene, store, caplog, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.alerts.alerting.LOGGED_MAX", 1)
    alerting = Alerting(store, None, rules(tmp_path))
    alerting.tick(scene.now_ns)
    scene.status("other")
    scene.send("other", sample(disk_free_mb=4.0))
    full(scene, alerting, free_mb=3.0)
    full(scene, alerting, free_mb=9000.0)
    alerting.close()
    lines = [record.getMessage() for record in caplog.records if "alert " in record.getMessage()]
    begin, others, end = (line.split(", since ") for line in lines)
    assert begin[0] in {
        f"alert begins: disk, {device}, warning: {free} MB are free on its disk ({free}, bound 500)"
        for device, free in (("pi", 3), ("other", 4))
    }
    assert others == ["alert begins: 1 others; `ferryman fleet alerts --past` has all"]
    assert end[0] == "alert is over: disk, pi, warning: 3 MB are free on its disk (3, bound 500)"
    assert " UTC, until " in end[1]


def test_who_has_lost_the_lock_tells_nobody(tmp_path, scene, store):
    before = threading.active_count()  # other tests' threads may end late
    with web_hook() as (url, hook):
        hook.answers = [500] * 3
        alerting = Alerting(store, None, rules(tmp_path, url))
        alerting.tick(scene.now_ns)
        full(scene, alerting, free_mb=3.0)
        until(lambda: hook.asked > 0)
        alerting.idle()
        asked = hook.asked
        time.sleep(0.5)
        assert hook.asked <= asked + 1  # one may have been under way
        assert len(untold(store)) == 1
        alerting.close()
    assert threading.active_count() < before + 10
