"""Rollouts over a real mosquitto; the devices are fake, see `tests/support/rollouts.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ferryman.devices import topics
from ferryman.devices.fleet.rollout import link as link_module
from ferryman.devices.fleet.rollout.drive import drive
from ferryman.devices.fleet.rollout.records import Thresholds, standing
from ferryman.devices.fleet.rollout.start import begin, cut, known_devices, make_plan, select
from ferryman.devices.fleet.rollout.store import RolloutStore
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import CallerError, LinkError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.rollouts import NEW, OLD, FakeDevice, FakeFleet

QUICK = {"soak_s": 0.1, "ring_timeout_s": 30.0, "rings": "1,50%,100%"}
DIES = """
import os, signal, sys, threading
from pathlib import Path
from ferryman.devices.broker import parse_broker
from ferryman.devices.fleet.rollout import drive, link, store

when, after = int(sys.argv[3]), sys.argv[4] == "after"
class Dies(store.RolloutStore):
    commits = 0
    def commit(self, *arguments):
        self.commits += 1
        if self.commits == when and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit(*arguments)
        if self.commits == when:
            os.kill(os.getpid(), signal.SIGKILL)

link.QUIET_S = 0.15
plan, progress = drive.drive(Dies(Path(sys.argv[1])), None, parse_broker(sys.argv[2]))
print(progress.phase)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setenv("FERRYMAN_DEVICES", os.devnull)
    monkeypatch.setattr("ferryman.devices.fleet.rollout.link.QUIET_S", 0.15)


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def store(tmp_path):
    opened = RolloutStore(tmp_path / "rollouts.sqlite")
    yield opened
    opened.close()


def started(store, broker, query="all", **options):
    plan = make_plan("net/2", NEW, query, **QUICK | options)
    begin(store, plan, cut(plan, select(known_devices(broker.config), query)))
    return plan


def stands(store, plan):
    found = [standing(row, plan, time.time_ns()) for row in store.rows(plan.id)]
    return {kind: found.count(kind) for kind in set(found)}


def fleet(broker, count=6, **options):
    return FakeFleet(broker.config, [FakeDevice(f"d{number}", **options) for number in range(count)])


def test_a_rollout_reaches_all_devices_the_query_means(broker, store):
    labels = {"d0": {"site": "lab"}, "d1": {"site": "lab"}}
    devices = [FakeDevice(f"d{number}") for number in range(4)]
    with FakeFleet(broker.config, devices, labels):
        plan = started(store, broker, "site=lab")
        _, progress = drive(store, None, broker.config)
    assert progress.phase == "done"
    assert [one.serves for one in devices] == [NEW, NEW, OLD, OLD]
    assert stands(store, plan) == {"confirmed": 2}
    assert [entry.what for entry in store.log(plan.id)][-1] == "done"


def test_a_bad_release_ends_at_the_canary(broker, store):
    with fleet(broker, ends=lambda _: "rolled-back") as devices:
        plan = started(store, broker)
        _, progress = drive(store, plan.id, broker.config)
    assert progress.phase == "halted"
    assert {one.serves for one in devices.devices.values()} == {OLD}
    assert sum(bool(one.seen) for one in devices.devices.values()) == 1


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("commits", [(1, 3), pytest.param(range(1, 40), marks=pytest.mark.slow)])
def test_the_host_may_be_killed_at_any_commit(tmp_path, bad, commits):
    """Before the commit and after it, when nothing of it was sent; the next one goes on to the same end."""
    ends = set()
    for when, side in ((when, side) for when in commits for side in ("before", "after")):
        place = tmp_path / f"{when}-{side}"
        place.mkdir()
        with Mosquitto(place) as broker, fleet(broker, 3) as devices:
            for one in devices.devices.values():
                one.ends = lambda _: "rolled-back" if bad else "confirmed"
            store = RolloutStore(place / "r.sqlite")
            plan = started(store, broker, rings="1,100%", soak_s=0.0)
            url = f"mqtt://127.0.0.1:{broker.port}"
            ended = subprocess.run(
                [sys.executable, "-c", DIES, store.path, url, str(when), side], capture_output=True, check=False
            )
            assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr
            _, progress = drive(store, plan.id, broker.config)
            serves = {one.serves for one in devices.devices.values()}
            told = tuple(sorted(len(one.seen) for one in devices.devices.values()))
            ends.add((progress.phase, *serves, told))
            store.close()
        assert ends == {("halted", OLD, (0, 0, 2)) if bad else ("done", NEW, (1, 1, 1))}
        if ended.returncode == 0:
            assert when > 3
            return
    assert len(commits) == 2


def test_the_broker_may_go_and_forget(tmp_path, store):
    with Mosquitto(tmp_path) as broker, fleet(broker) as devices:
        plan = started(store, broker, soak_s=0.5)
        ended = []
        driver = threading.Thread(target=lambda: ended.append(drive(store, plan.id, broker.config)))
        driver.start()
        time.sleep(0.6)
        broker.kill()
        time.sleep(0.3)
        broker.start()  # it keeps nothing: all that it should keep comes again
        driver.join(60)
        assert ended[0][1].phase == "done"
        assert {one.serves for one in devices.devices.values()} == {NEW}


def test_requests_reach_whoever_drives(broker, store):
    with fleet(broker) as devices:
        plan = started(store, broker, manual=True)
        ended = []
        driver = threading.Thread(target=lambda: ended.append(drive(store, plan.id, broker.config)))
        driver.start()

        def wait_for(phase):
            deadline = time.monotonic() + 30
            while store.find(plan.id)[1].phase != phase:
                assert time.monotonic() < deadline, store.find(plan.id)
                time.sleep(0.05)

        wait_for("approval")
        other = RolloutStore(store.path)
        with pytest.raises(CallerError, match="driven by another process"):
            drive(other, plan.id, broker.config)
        other.ask(plan.id, "resume", "somebody")  # refused, and put on record
        other.ask(plan.id, "abort", "somebody", "changed my mind")
        wait_for("aborted")
        driver.join(20)
        other.close()
        assert sum(one.serves == NEW for one in devices.devices.values()) == 1
    log = {(entry.who, entry.what) for entry in store.log(plan.id)}
    assert {("somebody", "resume was refused"), ("somebody", "abort")} <= log
    assert store.requests(plan.id) == []


def test_a_later_rollout_takes_over(broker, store):
    with fleet(broker) as devices:
        first = started(store, broker, manual=True)
        ended = []
        driver = threading.Thread(target=lambda: ended.append(drive(store, first.id, broker.config)))
        driver.start()
        while store.find(first.id)[1].phase != "approval":
            time.sleep(0.05)
        time.sleep(1.1)  # ids are of a second
        second = make_plan("net/3", "3" * 64, "all", **QUICK)
        begin(store, second, cut(second, known_devices(broker.config)))
        assert drive(store, second.id, broker.config)[1].phase == "done"
        assert {one.serves for one in devices.devices.values()} == {"3" * 64}
        driver.join(30)
        assert ended[0][1].phase == "aborted"
        assert {one.serves for one in devices.devices.values()} == {"3" * 64}
    assert stands(store, first) == {"superseded": 6}


def test_a_broker_that_refuses_is_told_of(tmp_path, store):
    acl = tmp_path / "acl"
    acl.write_text("topic read ferryman/v1/#\ntopic write ferryman/v1/+/status\ntopic write ferryman/v1/+/reported\n")
    with Mosquitto(tmp_path, f"acl_file {acl}\n") as broker, fleet(broker):
        plan = started(store, broker)
        with pytest.raises(LinkError, match=r"refuses to keep .*desired.* Not authorized; give this user the right"):
            drive(store, plan.id, broker.config)


def test_a_broker_that_is_not_there(store, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.rollout.start.CONNECT_S", 0.3)
    with pytest.raises(LinkError, match="not connected after"):
        known_devices(parse(free_port()))


def parse(port):
    from ferryman.devices.broker import parse_broker

    return parse_broker(f"mqtt://127.0.0.1:{port}")


def test_a_report_that_the_broker_dropped_is_heard_later(broker, store, monkeypatch):
    dropped = []
    parse_all = link_module._parse

    def parse_most(device, delivery):
        heard = parse_all(device, delivery)
        if not delivery.retained and getattr(heard.body, "state", "") == "confirmed":
            dropped.append(device)
            raise ValueError("dropped")
        return heard

    monkeypatch.setattr(link_module, "_parse", parse_most)
    monkeypatch.setattr(link_module, "REFRESH_S", 1.0)
    with fleet(broker, 3):
        started(store, broker, rings="100%")
        assert drive(store, None, broker.config)[1].phase == "done"
    assert sorted(dropped) == ["d0", "d1", "d2"]


def test_a_fleet_larger_than_a_broker_s_queue_is_known_whole(broker, store):
    with fleet(broker, 2500) as devices:
        names = {one.target.name for one in known_devices(broker.config) if one.online and one.package_sha256 == OLD}
    assert names == set(devices.devices)


def test_nonsense_on_the_broker_is_ignored(broker, store):
    link = Link(broker.config, "vandal")
    link.start()
    link.wait_ready(10)
    sent = threading.Semaphore(0)
    for topic in (topics.reported("d0"), topics.desired("d0"), topics.status("d9"), topics.reported("d9")):
        for payload in (b"nonsense", json.dumps({"device": "other"}).encode(), b"[" * 1000, b"x" * 300_000):
            link.publish(Message(topic=topic, payload=payload, retain=True), lambda _: sent.release())
    for _ in range(16):
        assert sent.acquire(timeout=10)
    with fleet(broker, 2):
        started(store, broker)
        assert drive(store, None, broker.config)[1].phase == "done"
    link.stop()


def test_devices_of_the_file_are_known_too(broker, tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text(
        '[d0]\nhost = "h"\nuser = "u"\nlabels = {stage = "canary"}\n'
        '[elsewhere]\nhost = "h"\nuser = "u"\nbroker = "mqtt://other.lan"\n'
        '[new]\nhost = "h"\nuser = "u"\n'
    )
    with fleet(broker, 2):
        known = {one.target.name: one for one in known_devices(broker.config, file)}
    assert sorted(known) == ["d0", "d1", "new"]
    assert known["d0"].target.labels == {"stage": "canary"}
    assert known["d0"].online
    assert not known["new"].online
    assert (known["d1"].package_sha256, known["d1"].release, known["d1"].target.model) == (OLD, "net/1", "pi4")


def test_what_is_kept_on_the_broker_says_all(broker, store):
    """An agent that was away reads it whenever it comes."""
    with fleet(broker, 1):
        plan = started(store, broker, pick="fastest", update_max_bytes=5, thresholds=Thresholds(slower_max=2.0))
        drive(store, None, broker.config)
    kept = []
    link = Link(broker.config, "reader")
    link.subscribe(topics.ALL_DESIRED, kept.append)
    link.start()
    link.wait_ready(10)
    deadline = time.monotonic() + 30
    while not kept and time.monotonic() < deadline:
        time.sleep(0.02)
    link.stop()
    desired = decode(kept[0].payload, Desired)
    assert kept[0].retained
    assert (desired.rollout, desired.release, desired.package_sha256) == (plan.id, "net/2", NEW)
    assert (desired.pick, desired.update_max_bytes, desired.version) == ("fastest", 5, 1)
    assert encode(desired) == kept[0].payload
