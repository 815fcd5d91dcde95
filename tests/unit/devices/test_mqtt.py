from __future__ import annotations

import queue
import re
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Link, Message, backoff_s
from ferryman.devices.mqtt_connection import Client
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.telemetry import kept_out, until


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as running:
        yield running


@contextmanager
def listening(broker, *topics, **options):
    """Yields a link and the queue of what it hears."""
    heard: queue.Queue = queue.Queue()
    link = Link(broker, options.pop("client_id", "listener"), **options)
    for topic in topics:
        link.subscribe(topic, heard.put)
    link.start()
    link.wait_ready(60)
    try:
        yield link, heard
    finally:
        link.stop()


def say(link, *messages):
    """Publish, and wait for what the broker says of each."""
    said: queue.Queue = queue.Queue()
    for message in messages:
        link.publish(message, said.put)
    return [said.get(timeout=60) for _ in messages]


def break_connection(link):
    """As a cable that is pulled, for both ends at once."""
    link._connection._client.socket().shutdown(socket.SHUT_RDWR)


def test_backoff_doubles_up_to_its_cap_with_jitter():
    for attempt, whole in ((0, 1.0), (1, 2.0), (3, 8.0), (10, 30.0), (10_000, 30.0)):
        waits = {backoff_s(attempt, 1.0, 30.0) for _ in range(50)}
        assert len(waits) > 1
        assert all(whole / 2 <= wait <= whole for wait in waits)


def test_a_loss_that_was_told_is_followed_by_its_end(broker, caplog):
    link = Link(broker.config, "x")
    link.start()
    link.wait_ready(60)
    assert caplog.text == ""
    break_connection(link)
    until(lambda: "connected again after " in caplog.text)
    assert [one.levelname for one in caplog.records] == ["WARNING"] * 2
    assert "connection lost" in caplog.records[0].message
    caplog.clear()
    link.pause()
    link.resume()
    link.wait_ready(60)
    link.stop()
    assert caplog.text == ""


def test_a_link_that_had_to_wait_for_its_broker_says_when_it_is_there(tmp_path, caplog):
    port = free_port()
    link = Link(BrokerConfig(host="127.0.0.1", port=port), "x")
    link.start()
    until(lambda: "retrying" in caplog.text)
    with Mosquitto(tmp_path, port=port):
        until(lambda: "connected after " in caplog.text)
        link.stop()


def test_two_clients_of_one_name_do_not_throw_each_other_out_without_end(broker, caplog):
    """MQTT 5, 3.1.4: the newcomer takes over the session. A loss right after connecting must not reset the backoff."""
    links = [Link(broker.config, "twin") for _ in range(2)]
    ready = []
    for link in links:
        link.on_ready(lambda: ready.append(1))
        link.start()
    time.sleep(4)
    until(lambda: "does another client call itself twin?" in caplog.text)
    for link in links:
        link.stop()
    assert 2 <= len(ready) <= 12


def test_a_broker_that_takes_connections_and_says_nothing_is_called_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(BrokerConfig(host="127.0.0.1", port=silent.getsockname()[1]), "x")
        link.start()
        said = kept_out(link, "no answer within 5 s")
        assert re.search(r"not connected after [0-9.]+ s: no answer within 5 s", said)
        link.stop()


@contextmanager
def scripted(*answers):
    """A broker that answers each connection's packets, one after another, with so many bytes each."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            held = []
            for answer in answers:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                held.append(peer)
                for part in answer if isinstance(answer, tuple) else (answer,):
                    peer.recv(4096)
                    peer.sendall(part)
            stop.wait(60)
            for peer in held:
                peer.close()

        stop = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield BrokerConfig(host="127.0.0.1", port=server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            stop.set()
            thread.join()


CONNACK = bytes([0x20, 3, 0, 0, 0])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (CONNACK + bytes([0xE0, 2, 0x8E, 0]), "Session taken over: another client calls itself the same"),
        (CONNACK + bytes([0xE0, 2, 0x97, 0]), "Quota exceeded: the broker's quota is used up"),
        (CONNACK + bytes([0xE0, 2, 0x95, 0]), "Packet too large: raise the broker's limit"),
        (CONNACK + bytes([0xE0, 2, 0x8B, 0]), "Server shutting down"),
        (CONNACK + bytes([0xE0, 10, 0x9D, 8, 0x1C, 0, 5, *b"other"]), "Server moved (the other server is other): name"),
        (CONNACK + bytes([0xE0, 8, 0x98, 6, 0x1F, 0, 3, *b"why"]), "Administrative action (why)"),
        (bytes([0x20, 3, 0, 0x86, 0]), "Bad user name or password: see user and password"),
        (bytes([0x20, 3, 0, 0x8A, 0]), "Banned: the broker bans this client"),
        (bytes([0x20, 5, 0, 0, 2, 0x24, 0]), "QoS 1 is not supported: the broker takes QoS 0 only"),
    ],
)
def test_the_brokers_reason_is_told_with_what_to_do(answer, said, caplog):
    with scripted(answer) as config:
        link = Link(config, "x")
        link.start()
        deadline = time.monotonic() + 60
        while said not in caplog.text:
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.02)
        link.stop()


REFUSING = (CONNACK, bytes([0x90, 5, 0, 1, 0, 1, 0x87]))
"""Two subscriptions; the second is not allowed."""


@pytest.mark.parametrize("needed", [True, False])
def test_a_subscription_that_is_refused_ends_the_connection_where_it_is_needed(needed, caplog):
    with scripted(REFUSING) as config:
        link = Link(config, "x")
        link.subscribe("granted", print)
        link.subscribe("refused", print, needed=needed)
        link.start()
        if needed:
            kept_out(link, "subscription to refused refused: Not authorized")
        else:
            link.wait_ready(60)
            assert "subscription to refused refused: Not authorized" in caplog.text
            assert "going on without" in caplog.text
        link.stop()


def test_what_nobody_reads_is_dropped_and_said(broker, caplog):
    """A persistent session may hold what an earlier version subscribed to."""
    kept = {"session_expiry_s": 60, "client_id": "changed"}
    with listening(broker.config, "old", **kept):
        pass
    with listening(broker.config) as (link, _), listening(broker.config, "new", **kept) as (_, heard):
        say(link, Message(topic="old", payload=b"1"), Message(topic="new", payload=b"2"))
        assert heard.get(timeout=60).payload == b"2"
    assert "message on old, which nobody reads, dropped" in caplog.text


def test_a_connection_the_broker_ended_is_no_good_one_however_long_it_held():
    link = Link(BrokerConfig(host="127.0.0.1", port=1), "x")
    assert link._judge(3, held_s=100) == 0
    link._connection = SimpleNamespace(reason=0x8E, problem="taken over")
    assert link._judge(3, held_s=100) == 3


def test_what_expired_is_not_delivered_and_what_did_not_tells_what_is_left(broker):
    away = {"session_expiry_s": 60, "client_id": "away"}
    with listening(broker.config, "t/#", **away):
        pass
    with listening(broker.config) as (link, _):
        short = Message(topic="t/short", payload=b"1", expiry_s=1)
        long = Message(topic="t/long", payload=b"2", expiry_s=60, properties={"who": "me", "ä": "ö"})
        assert say(link, short, long, Message(topic="t/ever", payload=b"3")) == [None] * 3
        time.sleep(2.1)
    with listening(broker.config, "t/#", **away) as (_, heard):
        got = [heard.get(timeout=60) for _ in range(2)]
        assert [one.topic for one in got] == ["t/long", "t/ever"]
        assert 50 <= got[0].expiry_s <= 59
        assert got[0].properties == {"who": "me", "ä": "ö"}
        assert got[1].expiry_s is None
        assert got[1].properties == {}


def test_a_3_1_1_broker_gets_the_message_without_what_it_does_not_know(broker):
    config = msgspec.structs.replace(broker.config, only_3_1_1=True)
    with listening(config, "t") as (link, heard):
        message = Message(topic="t", payload=b"x", expiry_s=5, properties={"a": "b"}, alias=True)
        assert say(link, message, message) == [None, None]
        got = [heard.get(timeout=60) for _ in range(2)]
        assert [(one.topic, one.payload, one.expiry_s, one.properties) for one in got] == [("t", b"x", None, {})] * 2
        assert link.packet_max_bytes is None


@pytest.mark.parametrize(("version", "kept"), [("5", True), ("3.1.1", False)])
def test_a_short_session_is_kept_where_it_also_ends(broker, version, kept):
    """A 3.1.1 broker would keep it, and all that comes, for ever."""
    config = msgspec.structs.replace(broker.config, only_3_1_1=version == "3.1.1")
    options = {"session_expiry_s": 300, "client_id": "flapping"}
    with listening(config, "t", **options):
        pass
    with listening(broker.config) as (link, _):
        say(link, Message(topic="t", payload=b"while away"))
        with listening(config, "t", **options) as (_, heard):
            say(link, Message(topic="t", payload=b"back"))
            got = [heard.get(timeout=60).payload for _ in range(2 if kept else 1)]
    assert got == ([b"while away", b"back"] if kept else [b"back"])


def test_what_was_not_acknowledged_comes_again_and_says_so(broker):
    with listening(broker.config, "t", session_expiry_s=60, manual_ack=True) as (link, heard):
        say(link, Message(topic="t", payload=b"x"))
        first = heard.get(timeout=60)
        break_connection(link)
        second = heard.get(timeout=60)
        assert (first.again, second.again, second.payload) == (False, True, b"x")
        second.acknowledge()


def sent_topics(monkeypatch):
    """The topic of every PUBLISH that goes out, as it stands in the packet."""
    topics = []
    real = Client._send_publish

    def note(self, mid, topic, *args, **kwargs):
        topics.append(topic.decode())
        return real(self, mid, topic, *args, **kwargs)

    monkeypatch.setattr(Client, "_send_publish", note)
    return topics


def test_a_topic_goes_by_a_number_once_the_broker_knows_it_and_only_on_that_connection(broker, monkeypatch):
    sent = sent_topics(monkeypatch)
    message = Message(topic="a/long/topic", payload=b"x", alias=True)
    with listening(broker.config, "a/#") as (link, heard):
        assert say(link, message, message) == [None, None]
        assert say(link, message) == [None]
        assert sent[-1] == ""
        again = threading.Event()
        link.on_ready(again.set)
        break_connection(link)
        assert again.wait(60)
        sent.clear()
        assert say(link, message) == [None]
        assert sent[0] == "a/long/topic"
        assert {heard.get(timeout=60).topic for _ in range(4)} == {"a/long/topic"}


@pytest.mark.parametrize("most", [0, 2])
def test_no_more_topics_go_by_number_than_the_broker_allows(tmp_path, monkeypatch, most):
    with Mosquitto(tmp_path, f"max_topic_alias {most}") as broker:
        sent = sent_topics(monkeypatch)
        messages = [Message(topic=f"t/{n}", payload=b"x", alias=True) for n in range(4)]
        with listening(broker.config, "t/#") as (link, heard):
            assert say(link, *messages) == [None] * 4
            assert say(link, *messages) == [None] * 4
            got = [heard.get(timeout=60).topic for _ in range(8)]
        assert got == [message.topic for message in messages] * 2
        assert sent[4:8] == [""] * most + [f"t/{n}" for n in range(most, 4)]


def test_what_is_sent_without_an_answer_never_goes_by_number(broker, monkeypatch):
    sent = sent_topics(monkeypatch)
    with listening(broker.config, "t") as (link, heard):
        message = Message(topic="t", payload=b"x", alias=True, qos=0)
        assert say(link, message, message) == [None, None]
        assert [heard.get(timeout=60).payload for _ in range(2)] == [b"x", b"x"]
    assert sent == ["t", "t"]


def test_a_packet_over_the_brokers_limit_is_refused_before_it_is_sent(tmp_path):
    with Mosquitto(tmp_path, "max_packet_size 2000") as broker, listening(broker.config, "t") as (link, heard):
        assert link.packet_max_bytes == 2000
        large, small = (Message(topic="t", payload=bytes(size)) for size in (2000, 1900))
        problems = say(link, large, small)
        assert "Packet too large" in problems[0]
        assert "takes 2,000" in problems[0]
        assert problems[1] is None
        assert len(heard.get(timeout=60).payload) == 1900
        assert link.problem == ""


def test_each_connection_has_a_will_of_its_own_and_stopping_says_it_too(broker):
    numbers = iter(range(1, 100))
    with listening(broker.config, "gone") as (_, heard):
        link = Link(broker.config, "mortal", will=lambda: Message(topic="gone", payload=b"%d" % next(numbers)))
        for end in (break_connection, Link.stop):
            ready = threading.Event()
            link.on_ready(ready.set)
            if end is break_connection:
                link.start()
            assert ready.wait(60)
            end(link)
        assert [heard.get(timeout=60).payload for _ in range(2)] == [b"1", b"2"]


def test_no_will_is_made_for_a_broker_that_is_not_there():
    made = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = Link(BrokerConfig(host="127.0.0.1", port=port), "x", will=lambda: made.append(1))
    link.start()
    kept_out(link, "refused")
    link.stop()
    assert not made


def test_a_will_that_cannot_be_made_is_what_is_in_the_way(broker):
    def no_will():
        raise DeviceError("the disk is full")

    link = Link(broker.config, "x", will=no_will)
    link.start()
    kept_out(link, "the disk is full")
    link.stop()


def test_a_paused_link_says_its_will_stays_away_and_comes_back_at_once(broker):
    with listening(broker.config, "gone") as (_, heard):
        link = Link(broker.config, "shy", will=Message(topic="gone", payload=b"away"))
        down = threading.Event()
        link.on_down(down.set)
        link.start()
        link.wait_ready(60)
        link.pause()
        link.pause()
        assert heard.get(timeout=60).payload == b"away"
        assert down.wait(60)
        with pytest.raises(LinkError, match="paused"):
            link.wait_ready(1.0)
        with pytest.raises(LinkError, match="not connected: paused"):
            link.publish(Message(topic="t", payload=b""))
        link.resume()
        link.wait_ready(60)
        link.stop()


@pytest.mark.parametrize(("end", "why"), [("pause", "paused"), ("stop", "stopped")])
def test_nothing_is_published_behind_the_last_words(broker, monkeypatch, end, why):
    with listening(broker.config, "status") as (_, heard):
        link = Link(broker.config, "shy", will=Message(topic="status", payload=b"away", retain=True))
        link.start()
        link.wait_ready(60)
        publish = link._connection.publish

        def publish_while_others_go_on(message, done):
            publish(message, done)
            with pytest.raises(LinkError, match=f"not connected: {why}"):
                link.publish(Message(topic="status", payload=b"there", retain=True))

        monkeypatch.setattr(link._connection, "publish", publish_while_others_go_on)
        getattr(link, end)()
        assert heard.get(timeout=60).payload == b"away"
        assert heard.empty()
        link.stop()


def test_last_words_come_behind_what_others_are_about_to_publish(broker, monkeypatch):
    with listening(broker.config, "status") as (_, heard):
        link = Link(broker.config, "shy", will=Message(topic="status", payload=b"away", retain=True))
        link.start()
        link.wait_ready(60)
        publish, handing_over = link._connection.publish, threading.Event()

        def publish_late(message, done):
            if message.payload == b"there":
                handing_over.set()
                assert link._paused.wait(10)
            publish(message, done)

        monkeypatch.setattr(link._connection, "publish", publish_late)
        other = threading.Thread(target=link.publish, args=(Message(topic="status", payload=b"there", retain=True),))
        other.start()
        assert handing_over.wait(10)
        link.pause()
        other.join()
        assert [heard.get(timeout=10).payload for _ in range(2)] == [b"there", b"away"]
        link.stop()


def test_a_link_may_be_paused_from_the_start_and_stopped_then(broker):
    link = Link(broker.config, "shy")
    link.pause()
    link.start()
    kept_out(link, "paused")
    link.stop()
    assert not link._thread.is_alive()
