from __future__ import annotations

import threading
import time

import msgspec
import pytest

from ferryman.describe import describe_status
from ferryman.devices import topics
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.presence import AGAIN_S, Presence
from ferryman.devices.agent.recorder import Recorder
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.rollout.link import FleetLink
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from tests.support.agent import StatusWatch
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import until


def status(birth, boot="a.1", *, online):
    return Status(device="pi", online=online, birth=birth, boot=boot)


@pytest.mark.parametrize(
    ("seen", "came", "outdated"),
    [
        (status(5, online=True), status(4, online=False), True),
        (status(5, "a.1", online=True), status(4, "a.0", online=False), True),
        (status(5, online=True), status(5, online=False), False),
        (status(5, online=True), status(6, online=False), False),
        (status(5, "a.1", online=True), status(4, "b.1", online=False), False),
        (status(5, online=True), status(0, online=False), False),
        (status(5, online=True), status(4, online=True), False),
        (status(5, online=False), status(4, online=False), False),
        (None, status(4, online=False), False),
    ],
)
def test_a_death_is_late_if_its_connection_is_an_earlier_one_of_the_same_outbox(seen, came, outdated):
    assert came.outdated_by(seen) is outdated


@pytest.fixture
def presence(tmp_path):
    outbox = Outbox(tmp_path / "outbox.sqlite")
    yield Presence("pi", {"site": "lab"}, "board", outbox, Recorder(outbox))
    outbox.close()


def test_each_death_has_the_number_of_its_birth(presence):
    for _ in range(2):
        dead = decode(presence.death().payload, Status)
        born = presence.status(None, None)
        assert (born.online, dead.online) == (True, False)
        assert dead.birth == born.birth > 0
        assert (dead.labels, dead.model, dead.boot) == ({"site": "lab"}, "board", born.boot)


def test_a_status_tells_the_mode_and_a_will_cannot_know_it(presence):
    will = decode(presence.death().payload, Status)
    assert presence.status(None, None).mode == "full"
    assert will.mode == ""
    assert decode(presence.farewell().payload, Status) == msgspec.structs.replace(will, mode="offline")


def test_a_status_tells_why_the_disk_takes_nothing(presence):
    assert presence.status(None, None).storage == ""
    presence.storage = "read-only"
    assert presence.status(None, None).storage == "read-only"
    assert "storage       read-only" in describe_status(presence.status(None, None))


def test_what_a_link_says_when_it_is_paused_takes_the_place_of_its_will(tmp_path, presence):
    with Mosquitto(tmp_path) as broker, StatusWatch(broker.config) as watch:
        link = Link(broker.config, "agent", will=presence.death)
        link.start()
        for mode in ("offline", ""):
            link.wait_ready(60)
            link.pause(presence.farewell() if mode else None)
            watch.wait_for(lambda seen, mode=mode: seen.mode == mode and seen.birth == presence._birth)
            link.resume()
        link.stop()


def test_a_status_that_a_broker_lost_is_there_again_after_a_while(tmp_path, presence):
    with Mosquitto(tmp_path) as broker, StatusWatch(broker.config) as watch:
        link = Link(broker.config, "agent", will=presence.death)
        link.start()
        link.wait_ready(60)
        began = time.monotonic()
        assert presence.is_due(began)
        presence.announce(link, None, None)
        watch.wait_for(lambda seen: seen.online)
        assert not presence.is_due(began + 0.7 * AGAIN_S)
        assert presence.is_due(time.monotonic() + AGAIN_S)
        link.stop()


def test_statuses_go_out_in_the_order_in_which_they_were_true(presence, monkeypatch):
    """One thread's older status behind another's newer one would be what stays."""
    said = []
    slow, publishing = threading.Event(), threading.Event()

    class Slow:
        def publish(self, message):
            if not publishing.is_set():
                publishing.set()
                slow.wait(10)
            said.append(decode(message.payload, Status).storage)

    first = threading.Thread(target=presence.announce, args=(Slow(), None, None))
    first.start()
    assert publishing.wait(10)
    presence.storage = "read-only"
    second = threading.Thread(target=presence.announce, args=(Slow(), None, None))
    second.start()
    second.join(0.2)  # without an order it would be through
    slow.set()
    first.join()
    second.join()
    assert said == ["", "read-only"]


def test_a_full_disk_keeps_no_device_from_connecting(presence, monkeypatch):
    first = decode(presence.death().payload, Status)

    def full():
        raise DeviceError("no space left")

    monkeypatch.setattr(presence._outbox, "next_birth", full)
    assert decode(presence.death().payload, Status).birth == first.birth + 1


def test_readers_ignore_a_late_death(tmp_path):
    with Mosquitto(tmp_path) as broker:
        agent = Link(broker.config, "agent")
        agent.start()
        agent.wait_ready(60)

        def say(one):
            said = threading.Event()
            agent.publish(Message(topic=topics.status("pi"), payload=encode(one), retain=True), lambda _: said.set())
            assert said.wait(60)

        say(status(7, online=True))
        fleet = FleetLink(broker.config)
        fleet.start(60)
        with AgentClient(broker.config, "pi") as client:
            heard = []
            while not heard:
                heard += [one.body for one in fleet.take()]
            say(status(6, online=False))
            say(status(7, online=True))
            while len(heard) < 2:
                heard += [one.body for one in fleet.take()]
            assert [(one.birth, one.online) for one in heard] == [(7, True)] * 2
            client._check_online(1)
            say(status(7, online=False))
            while len(heard) < 3:
                heard += [one.body for one in fleet.take()]
            assert not heard[2].online
            until(lambda: client._last_status == heard[2])
            with pytest.raises(LinkError, match="offline"):
                client._check_online(1)
        fleet.stop()
        agent.stop()
