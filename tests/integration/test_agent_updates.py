"""A device takes updates over the air: real broker, real repository over HTTP, the agent of the device environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig, parse_broker
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.envelope import Item
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired, Reported
from ferryman.runtime.contracts.slot import HealthRules
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from tests.support.agent import AgentProcess
from tests.support.broker import running_broker
from tests.support.mosquitto import free_port
from tests.support.packages import write_tiny_package
from tests.support.repository import flip, make_repository
from tests.support.telemetry import read

RULES = HealthRules(window_s=1.0)


class Host:
    """Says what a device should run, and hears what it does."""

    def __init__(self, broker: BrokerConfig, device: str = "pi") -> None:
        self.heard: list[Reported] = []
        self.recorded: list[Item] = []
        self._device = device
        self._version = 0
        self._link = Link(broker, "host")
        self._link.subscribe(topics.reported(device), self._on_reported)
        self._link.subscribe(topics.telemetry(device), lambda got: self.recorded.extend(read(got.payload).items))
        self._link.start()
        self._link.wait_ready(60)

    def want(self, release: str, package_sha256: str, **more) -> int:
        self._version += 1
        desired = Desired(
            version=self._version,
            rollout="r",
            release=release,
            package_sha256=package_sha256,
            **{"health": RULES, **more},
        )
        self._link.publish(Message(topic=topics.desired(self._device), payload=encode(desired), retain=True))
        return self._version

    def wait(self, condition: Callable[[Reported], bool], timeout_s: float = 60.0) -> Reported:
        deadline = time.monotonic() + timeout_s
        while True:
            for one in list(self.heard):
                if condition(one):
                    return one
            assert time.monotonic() < deadline, [(one.desired_version, one.state, one.error) for one in self.heard]
            time.sleep(0.05)

    def end_of(self, version: int) -> Reported:
        final = {"confirmed", "rolled-back", "refused", "failed"}
        return self.wait(lambda one: one.desired_version == version and one.state in final)

    def forget(self, device: str) -> None:
        """Clear what the broker keeps of the wish."""
        self._link.publish(Message(topic=topics.desired(device), payload=b"", retain=True))

    def stop(self) -> None:
        self._link.stop()

    def _on_reported(self, delivery: Delivery) -> None:
        self.heard.append(decode(delivery.payload, Reported))


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path) as running:
        yield parse_broker(running.url)


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path)


@pytest.fixture
def host(broker):
    host = Host(broker)
    yield host
    host.stop()


@pytest.fixture
def agent(tmp_path, broker, repository, host):
    """With package add-1 pushed, and a repository that is served."""
    root = tmp_path / "root"
    (root / "trust").mkdir(parents=True)
    (root / "trust" / "root.json").write_bytes(repository.root)
    install(write_tiny_package(tmp_path / "add-1.ferry", added=1), root)
    with repository.serve() as url, AgentProcess(broker, root, options=("--repository", url)) as agent:
        host.wait(lambda one: one.desired_version == 0)
        yield agent


def answer(broker: BrokerConfig) -> float:
    with AgentClient(broker, "pi") as client:
        return float(client.infer([np.zeros((1, 4), np.float32)]).outputs[0].to_array()[0, 0])


def test_an_update_is_fetched_proven_watched_and_confirmed(broker, repository, host, agent):
    release = repository.publish_tiny(2, "2")
    assert answer(broker) == 1
    version = host.want("digits/2", release.package_sha256)
    end = host.end_of(version)
    assert (end.state, end.release, end.package_sha256) == ("confirmed", "digits/2", release.package_sha256)
    assert end.wire_bytes > 0
    assert end.measured
    assert end.health is not None
    assert end.health.seconds >= RULES.window_s
    assert end.health.errors == 0
    assert end.model
    assert answer(broker) == 2
    states = [one.state for one in host.heard if one.desired_version == version]
    assert [state for state, _ in groupby(states)] == ["downloading", "installing", "trial", "confirmed"]
    deadline = time.monotonic() + 60
    while not any(one.kind == "update" for one in host.recorded):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    host.heard.clear()
    agent.kill()
    agent.start()
    again = host.wait(lambda one: one.desired_version == version)
    assert again == end, "a restart says the same, and is no news"
    time.sleep(1.0)
    assert len({one.sequence for one in host.recorded if one.kind == "update"}) == 1


def test_what_was_pushed_is_known_by_its_release(broker, repository, host, agent):
    release = repository.publish_tiny(1, "1")
    end = host.end_of(host.want("digits/1", release.package_sha256))
    assert (end.state, end.release, end.wire_bytes) == ("confirmed", "digits/1", 0)
    with AgentClient(broker, "pi") as client:
        assert client.status().release == "digits/1"
    assert answer(broker) == 1


def test_what_computes_something_else_never_serves(tmp_path, broker, repository, host, agent):
    package = write_tiny_package(tmp_path / "wrong.ferry", added=2, promised=3)
    release = repository.publish(package, "2")
    end = host.end_of(host.want("digits/2", release.package_sha256))
    assert (end.state, end.error.party) == ("failed", "artifact")
    assert answer(broker) == 1


def test_a_forged_piece_is_told_to_the_host_and_the_old_package_serves(broker, repository, host, agent):
    release = repository.publish_tiny(2, "2")
    pack, offset, _ = repository.piece_file(release)
    flip(pack, offset + 10)
    end = host.end_of(host.want("digits/2", release.package_sha256))
    assert (end.state, end.error.party) == ("failed", "trust")
    assert answer(broker) == 1


def test_a_package_that_brings_the_agent_down_is_rolled_back(tmp_path, broker, repository, host, agent):
    release = repository.publish_tiny(2, "2")
    rules = HealthRules(window_s=3600.0, starts_max=3)
    version = host.want("digits/2", release.package_sha256, health=rules)
    host.wait(lambda one: one.desired_version == version and one.state == "trial")
    store = SlotStore(tmp_path / "root")
    kills = 0
    while (before := store.read_state().trial) is not None:
        agent.kill()
        host.heard.clear()
        agent.start()
        kills += 1
        deadline = time.monotonic() + 60
        while (trial := store.read_state().trial) is not None and trial.starts <= before.starts:
            assert time.monotonic() < deadline, trial
            time.sleep(0.05)
    assert kills == rules.starts_max
    end = host.end_of(version)
    assert end.state == "rolled-back"
    assert "crash loop" in end.error.message
    assert answer(broker) == 1
    again = host.end_of(host.want("digits/2", release.package_sha256))
    assert again.state == "refused"


def test_the_way_back_is_taken_at_once(broker, repository, host, agent):
    before = repository.publish_tiny(1, "1")
    release = repository.publish_tiny(2, "2")
    host.end_of(host.want("digits/2", release.package_sha256))
    end = host.end_of(host.want("digits/1", before.package_sha256, previous=True))
    assert end.state == "confirmed"
    assert answer(broker) == 1


def end_session(broker, client_id):
    """Have the broker forget what it keeps for a client that is away."""
    link = Link(broker, client_id)
    link.start()
    link.wait_ready(60)
    link.stop()


@pytest.mark.slow
def test_a_wish_that_waits_for_the_link_survives_a_restart(tmp_path, broker, repository, host):
    release = repository.publish_tiny(2, "2")
    root = tmp_path / "root"
    (root / "trust").mkdir(parents=True)
    (root / "trust" / "root.json").write_bytes(repository.root)
    with AgentProcess(broker, root, options=("--repository", f"http://127.0.0.1:{free_port()}")):
        version = host.want("digits/2", release.package_sha256)
        waiting = host.wait(lambda one: one.desired_version == version and one.error is not None, 300)
        assert (waiting.state, waiting.error.party) == ("downloading", "link")
    end_session(broker, "ferryman-agent-pi")  # in which the wish would be taken back
    host.forget("pi")
    with repository.serve() as url, AgentProcess(broker, root, options=("--repository", url)):
        assert host.end_of(version).state == "confirmed"


def test_the_data_budget_holds(broker, repository, host, agent):
    release = repository.publish_tiny(2, "2", padding=bytes(range(256)) * 100)
    end = host.end_of(host.want("digits/2", release.package_sha256, update_max_bytes=100))
    assert (end.state, end.error.party) == ("refused", "budget")
    assert "100" in end.error.message
    assert answer(broker) == 1
