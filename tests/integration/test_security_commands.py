"""Commands to an agent that trusts an operator's key, over a real broker: only what was signed for it, here and now."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager

import pytest

from ferryman.devices import enrolment, topics
from ferryman.devices.agent.agent import Agent, AgentConfig
from ferryman.devices.agent.commands import NONCES_MAX
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.rollout import link as link_module
from ferryman.devices.fleet.rollout.link import FleetLink
from ferryman.devices.fleet.signer import KEY_VARIABLE
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.devices.sealed import take_apart
from ferryman.devices.signing import operator_key, write_operator_key
from ferryman.runtime.contracts.errors import IdentityError, LinkError
from ferryman.runtime.contracts.messages import Failure, Request, Response, Status, StatusRequest
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired
from ferryman.runtime.contracts.tensor import pack, unpack
from tests.support.authority import Realm, realm_folder
from tests.support.telemetry import Note, collecting, until

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DEVICE = "pi"
HOSTS = {"alice": ("operator", "rollout"), "collector": ("collector",)}
MINUTE_NS = 60 * 10**9


@pytest.fixture(scope="module")
def realm():
    with realm_folder() as folder, Realm(folder, hosts=HOSTS) as one:
        one.enrolled(DEVICE)
        yield one


@pytest.fixture
def key(realm, tmp_path, monkeypatch):
    public = write_operator_key(tmp_path, "alice")
    enrolment.trust(realm.root(DEVICE), public.read_bytes(), "alice")
    monkeypatch.setenv(KEY_VARIABLE, str(public.with_suffix(".key")))
    return operator_key()


@contextmanager
def running(realm):
    """The agent with its own identity, by a URL that names no certificate."""
    config = AgentConfig(device=DEVICE, root=realm.root(DEVICE), broker=realm.at(realm.ports[0]), drift_s=0)
    stop = threading.Event()
    agent = Agent(config)
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    try:
        agent._link.wait_ready(60)
        yield agent
    finally:
        stop.set()
        thread.join()


class Wire:
    """Somebody who may write to the device's topics, and reads what comes of it."""

    def __init__(self, realm):
        self.answers: list[Response] = []
        self.status: Status | None = None
        self.link = Link(realm.host("alice", "operator", "rollout"), "wire")
        self.link.subscribe(topics.response(DEVICE, "alice"), self._on_answer)
        self.link.subscribe(topics.status(DEVICE), self._on_status)

    def _on_answer(self, delivery):
        self.answers.append(unpack(delivery.payload, Response))

    def _on_status(self, delivery):
        self.status = decode(delivery.payload, Status)

    def ask(self, payload):
        """What the agent answers."""
        before = len(self.answers)
        self.link.publish(Message(topic=topics.request(DEVICE), payload=payload))
        until(lambda: len(self.answers) > before)
        return self.answers[-1].body

    def __enter__(self):
        self.link.start()
        self.link.wait_ready(60)
        until(lambda: self.status is not None and self.status.online)
        return self

    def __exit__(self, *_):
        self.link.stop()


def request() -> bytes:
    return pack(Request(id="1", reply_to=topics.response(DEVICE, "alice"), timeout_s=5, body=StatusRequest()))


def signed(key, payload=None, **changes):
    options = {"device": DEVICE, "kind": "request", "now_ns": time.time_ns(), "life_ns": MINUTE_NS}
    return key.sign(payload or request(), **{**options, **changes})


def refused(answer, match):
    assert isinstance(answer, Failure)
    assert answer.error.party == IdentityError.party
    assert match in answer.error.message


def test_without_operators_keys_it_is_as_ever(realm):
    with running(realm), AgentClient(realm.host("alice", "operator", "rollout"), DEVICE) as client:
        assert client.status().device == DEVICE
        assert client.status().challenge == ""


def test_a_client_with_the_key_is_obeyed_and_one_without_is_told(realm, key, monkeypatch):
    broker = realm.host("alice", "operator", "rollout")
    with running(realm):
        with AgentClient(broker, DEVICE) as client:
            assert client.status().challenge
        monkeypatch.delenv(KEY_VARIABLE)
        with AgentClient(broker, DEVICE) as client, pytest.raises(IdentityError, match="FERRYMAN_OPERATOR_KEY"):
            client.status()


def is_of(status, agent):
    return status is not None and status.online and status.challenge == agent._guard.challenge


def test_a_client_goes_on_over_the_agents_restart(realm, key):
    with AgentClient(realm.host("alice", "operator", "rollout"), DEVICE) as client:
        for _ in range(2):
            with running(realm) as agent:
                until(lambda agent=agent: is_of(client._last_status, agent))
                assert client.status(timeout_s=60).device == DEVICE


def test_what_was_not_signed_for_this_device_here_and_now_is_refused(realm, key, tmp_path, caplog):
    write_operator_key(tmp_path, "mallory")
    stranger = _key(tmp_path / "mallory.key")
    sure = True
    with running(realm) as agent, Wire(realm) as wire:
        agent._guard._clock_ns = lambda: time.time_ns() if sure else None
        challenge = wire.status.challenge
        good = signed(key, challenge=challenge)
        refused(wire.ask(request()), "is not signed")
        refused(wire.ask(signed(stranger, challenge=challenge)), "trusts only")
        refused(wire.ask(good[:-1] + bytes([good[-1] ^ 1])), "altered on the way")
        refused(wire.ask(signed(key, challenge=challenge, device="other")), "a request for other came to pi")
        refused(wire.ask(signed(key, challenge=challenge, kind="desired")), "a desired for pi came to pi as a request")
        refused(wire.ask(signed(key)), "another challenge")
        late = time.time_ns() - 2 * MINUTE_NS
        answer = wire.ask(signed(key, challenge=challenge, now_ns=late))
        refused(answer, "expired 6")
        refused(answer, " s ago by the clock of pi")
        early = time.time_ns() + 10 * MINUTE_NS
        refused(wire.ask(signed(key, challenge=challenge, now_ns=early)), "in the future")
        assert isinstance(wire.ask(good), Status)
        refused(wire.ask(good), "a replay")
        sure = False  # a device without a clock: the challenge alone stands
        assert isinstance(wire.ask(signed(key, challenge=challenge, now_ns=0)), Status)
        refused(wire.ask(good), "a replay")
    assert "is not obeyed" in caplog.text


def test_a_request_of_before_a_restart_is_refused_after_it(realm, key):
    with running(realm), Wire(realm) as wire:
        kept = signed(key, challenge=wire.status.challenge)
        unused = signed(key, challenge=wire.status.challenge)
        assert isinstance(wire.ask(kept), Status)
    with running(realm) as agent, Wire(realm) as wire:
        until(lambda: wire.status.challenge == agent._guard.challenge)
        for old in (kept, unused):
            refused(wire.ask(old), "another challenge")
        assert isinstance(wire.ask(signed(key, challenge=wire.status.challenge)), Status)


def test_a_used_up_challenge_is_followed_by_another(realm, key):
    with running(realm) as agent, Wire(realm) as wire:
        first = wire.status.challenge
        agent._guard._nonces |= {str(n) for n in range(NONCES_MAX - 1)}
        assert isinstance(wire.ask(signed(key, challenge=first)), Status)
        until(lambda: wire.status.challenge != first)
        assert isinstance(wire.ask(signed(key, challenge=wire.status.challenge)), Status)
        refused(wire.ask(signed(key, challenge=first)), "another challenge")


def test_a_wish_is_obeyed_if_it_is_signed(realm, key, caplog):
    wishes = []
    wish = encode(Desired(version=7, rollout="r", release="m/1", package_sha256="0" * 64))
    options = {"device": DEVICE, "kind": "desired", "now_ns": time.time_ns(), "life_ns": MINUTE_NS}
    with running(realm) as agent, Wire(realm) as wire, caplog.at_level(logging.WARNING):

        class Updating:
            desire = staticmethod(wishes.append)
            wake = staticmethod(lambda: None)

        agent._updating = Updating()
        agent._link.subscribe(topics.desired(DEVICE), agent._on_desired)
        agent._link.reconnect(agent._link.broker)
        until(lambda: agent._link.connected_by)
        for payload in (wish, key.sign(wish, **{**options, "device": "other"}), key.sign(wish, **options)):
            wire.link.publish(Message(topic=topics.desired(DEVICE), payload=payload))
        until(lambda: wishes)
        assert [one.version for one in wishes] == [7]
    assert "the desired is not signed" in caplog.text
    assert "a desired for other came to pi" in caplog.text


class TestRollout:
    """What a rollout leaves at the broker for devices."""

    WISH = encode(Desired(version=7, rollout="r", release="m/1", package_sha256="0" * 64))

    @contextmanager
    def fleet(self, realm, device, challenge):
        """A device that told its status and went, and a rollout's link."""
        kept = []
        with connected(realm.enrolled(device), device) as there:
            status = Status(device=device, online=False, challenge=challenge)
            said = []
            there.publish(Message(topic=topics.status(device), payload=encode(status), retain=True), said.append)
            until(lambda: said == [None])
        link = FleetLink(realm.host("alice", "operator", "rollout"), "r")
        watch = Link(realm.device(device), device)
        watch.subscribe(topics.desired(device), lambda delivery: kept.append(delivery.payload))
        watch.start()
        link.start(60)
        try:
            until(lambda: link.take() is not None and link.settled())
            link.resync({})
            yield link, kept
        finally:
            link.stop()
            watch.stop()

    def test_signs_for_those_that_want_it_and_does_so_once(self, realm, key, monkeypatch):
        monkeypatch.setattr(link_module, "QUIET_S", 2.0)  # what is kept may be late on a busy machine
        with self.fleet(realm, "sealed", "c") as (link, kept):
            for _ in range(2):
                link.tell("sealed", self.WISH)
                assert link.flush(60)
            until(lambda: kept)
            found = take_apart(kept[-1])
            assert found is not None
            assert found.payload == self.WISH
            assert (found.header.device, found.header.kind, found.header.key) == ("sealed", "desired", key.id)
        with self.fleet(realm, "sealed", "c") as (link, kept):  # another time: it is there already
            link.tell("sealed", self.WISH)
            assert link.flush(60)
            link.tell("sealed", b"")
            assert link.flush(60)
            until(lambda: b"" in kept)
        assert len(kept) == 2

    def test_leaves_it_plain_for_those_that_do_not(self, realm, key):
        with self.fleet(realm, "plain", "") as (link, kept):
            link.tell("plain", self.WISH)
            until(lambda: kept)
        assert kept == [self.WISH]

    def test_says_that_it_lacks_the_key(self, realm):
        with self.fleet(realm, "keyless", "c") as (link, _):
            link.tell("keyless", self.WISH)
            with pytest.raises(LinkError, match="keyless obeys only signed commands; name an operator's key in"):
                link.take()


@contextmanager
def connected(broker, name):
    link = Link(broker, name)
    link.start()
    try:
        link.wait_ready(60)
        yield link
    finally:
        link.stop()


def test_telemetry_goes_through_the_closed_broker_and_is_freed(realm, tmp_path):
    store = open_store(tmp_path / "store.sqlite")
    with collecting(realm.host("collector", "collector"), store), running(realm) as agent:
        agent._record([("note", Note(number=n)) for n in range(50)])
        agent._publisher.wake()
        until(lambda: agent._outbox.counts().records == 0, 60)
    store.close()


def _key(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(path))
        return operator_key()
