"""Who gets in at a real mosquitto, and what each may do there; whatever is refused, a good device goes on sending."""

from __future__ import annotations

import datetime as dt
import logging
import re
import shutil
import socket
import ssl
import threading
import time
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from msgspec.structs import replace

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.certificates import new_key, utc_now
from ferryman.devices.fleet.authority.broker_files import refresh
from ferryman.devices.identity import of_file
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import IdentityError
from tests.support.authority import Realm, realm_folder
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import until

# paho leaves a socket to the garbage collector when the handshake fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def realm():
    hosts = {"good-collector": ("collector",), "op": ("operator",)}
    with realm_folder() as folder, Realm(folder, hosts=hosts) as one:
        yield one


@pytest.fixture
def own():
    """A realm for one test, which reloads or restarts its broker."""
    with realm_folder() as folder, Realm(folder, hosts={"op": ("operator",)}) as one:
        yield one


@pytest.fixture(scope="module")
def plant():
    """A realm with all that may be asked for."""
    hosts = {name: (role,) for name, role in HOSTS.items()}
    options = {"home_assistant": "homeassistant", "sparkplug_group": "plant"}
    with realm_folder() as folder, Realm(folder, hosts=hosts, **options) as one:
        yield one


@pytest.fixture(scope="module")
def other():
    """Another authority and its broker."""
    with realm_folder() as folder, Realm(folder) as one:
        yield one


@contextmanager
def connected(broker, *filters, name="test", **options):
    heard = []
    link = Link(broker, name, **options)
    for one in filters:
        link.subscribe(one, lambda delivery: heard.append((delivery.topic, delivery.payload)))
    link.start()
    try:
        link.wait_ready(60)
        yield link, heard
    finally:
        link.stop()


def say(link, topic, payload=b"x", **options):
    """The broker's refusal; None: it took it."""
    done = threading.Event()
    said = []
    link.publish(Message(topic=topic, payload=payload, **options), lambda problem: (said.append(problem), done.set()))
    assert done.wait(60)
    return said[0]


@pytest.fixture(autouse=True)
def good_device(realm):
    """Sends all through each test; nothing of it is lost, and its connection holds."""
    sent, downs = [0], []
    stop = threading.Event()
    with (
        connected(realm.host("good-collector", "collector"), "ferryman/v1/good/telemetry", name="good-c") as (_, heard),
        connected(realm.enrolled("good"), name="good") as (link, _),
    ):
        link.on_down(lambda: downs.append(link.problem))

        def send():
            while not stop.is_set():
                link.publish(Message(topic="ferryman/v1/good/telemetry", payload=str(sent[0]).encode()))
                sent[0] += 1
                time.sleep(0.01)

        thread = threading.Thread(target=send)
        thread.start()
        yield
        stop.set()
        thread.join()
        until(lambda: len(heard) >= sent[0])
        assert [int(payload) for _, payload in heard] == list(range(sent[0]))
        assert not downs


def refused(broker: BrokerConfig, match: str) -> None:
    link = Link(broker, "test")
    link.start()
    try:
        until(lambda: re.search(match, link.problem) is not None)
    finally:
        link.stop()


def test_an_enrolled_device_and_a_host_get_in(realm):
    with connected(realm.enrolled("pi"), name="pi"), connected(realm.host("op", "operator")):
        pass


def test_another_authoritys_certificate_is_refused(realm, other):
    stranger = other.enrolled("pi")
    refused(replace(stranger, port=realm.ports[0]), "did not sign the broker's certificate")  # it would not trust ours
    mixed = replace(stranger, port=realm.ports[0], tls_ca=realm.at(0).tls_ca)
    refused(
        mixed,
        r"refuses our certificate \(pi, serial \w+, expires .*a device is enrolled anew \(`ferryman enroll`\)",
    )


def test_an_expired_certificate_is_refused_and_says_to_enroll(realm):
    old = realm.forged("old", utc_now() - 200 * DAY)
    refused(old, r"\(old, serial \w+, expired 20.*a device is enrolled anew \(`ferryman enroll`\)")


def test_a_certificate_of_tomorrow_is_refused(realm):
    refused(realm.forged("early", utc_now() + 10 * DAY), r"refuses our certificate \(early")


def test_a_revoked_certificate_is_refused_and_a_new_enrolment_gets_in(own):
    broker = own.enrolled("lost")
    with connected(broker, name="lost"):
        pass
    own.revoke("lost")
    refused(broker, r"refuses our certificate \(lost")
    with connected(own.enrolled("lost"), name="lost") as (link, _):
        assert say(link, "ferryman/v1/lost/telemetry") == "Not authorized"
        own.refresh()
        assert say(link, "ferryman/v1/lost/telemetry") is None


def test_a_session_that_is_open_loses_its_rights_when_it_is_revoked(own):
    operator = own.host("op", "operator")
    with (
        connected(own.enrolled("open"), "ferryman/v1/open/request", name="open") as (link, heard),
        connected(operator) as (asking, _),
    ):
        assert say(link, "ferryman/v1/open/telemetry") is None
        assert say(asking, "ferryman/v1/open/request", b"before") is None
        until(lambda: heard)
        own.revoke("open")
        assert say(asking, "ferryman/v1/open/request", b"after") is None
        assert "Not authorized" in say(link, "ferryman/v1/open/telemetry")
        assert [payload for _, payload in heard] == [b"before"]


def test_a_restart_takes_up_the_rules_and_keeps_what_waits(own):
    revoked = own.enrolled("lost")
    with connected(own.enrolled("away"), "ferryman/v1/away/request", name="away", session_expiry_s=60):
        pass
    with connected(own.host("op", "operator")) as (asking, _):
        assert say(asking, "ferryman/v1/away/request", b"before") is None
    own.authority.revoke("lost", utc_now())
    refresh(own.authority, own.broker_folder, utc_now())
    own.stop()
    own.start()
    with connected(own.device("away"), "ferryman/v1/away/request", name="away", session_expiry_s=60) as (_, heard):
        until(lambda: [payload for _, payload in heard] == [b"before"])
    refused(revoked, r"refuses our certificate \(lost")


def test_without_a_certificate_nobody_gets_in(realm):
    for port in realm.ports:
        refused(realm.at(port), "if it expects a certificate, run `ferryman enroll`")


def test_devices_and_hosts_have_doors_of_their_own(realm):
    device, host = realm.enrolled("pi"), realm.host("op", "operator")
    refused(replace(device, port=realm.ports[1]), "refuses our certificate")
    refused(replace(host, port=realm.ports[0]), "refuses our certificate")


def test_a_rogue_broker_is_not_trusted(realm, other):
    refused(replace(realm.enrolled("pi"), port=other.ports[0]), "CERTIFICATE_VERIFY_FAILED.*did not sign the broker's")


def test_a_broker_under_another_name_is_not_trusted():
    with realm_folder() as folder, Realm(folder, names=["hub.lan"]) as elsewhere:
        refused(elsewhere.enrolled("pi"), "IP address mismatch.*lacks this name: `ferryman ca server`")


def test_a_devices_certificate_makes_no_broker(realm):
    """Whoever stole one device cannot play the broker to the others."""
    device = realm.enrolled("pi")
    thief = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    thief.load_cert_chain(realm.enrolled("stolen").tls_cert)
    with _tls_server(thief) as port:
        refused(replace(device, port=port), "CERTIFICATE_VERIFY_FAILED")


@contextmanager
def _tls_server(context):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()
        listener.settimeout(0.1)

        def serve():
            while not stop.is_set():
                try:
                    with context.wrap_socket(listener.accept()[0], server_side=True) as one:
                        one.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        stop.set()
        thread.join()


def test_plain_mqtt_at_a_tls_port_and_tls_at_a_plain_one(realm, tmp_path):
    refused(BrokerConfig(host="127.0.0.1", port=realm.ports[0]), "if it expects TLS, write mqtts://")
    with Mosquitto(tmp_path) as plain:
        refused(replace(realm.enrolled("pi"), port=plain.port), "perhaps there is no TLS at this port")


def test_old_tls_is_refused(realm):
    context = ssl.create_default_context(cafile=realm.at(0).tls_ca)
    context.load_cert_chain(realm.enrolled("pi").tls_cert)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", realm.ports[0])) as plain, pytest.raises(ssl.SSLError, match="ALERT"):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_two_with_one_identity_throw_each_other_out_which_is_seen(realm, tmp_path, caplog):
    broker = realm.enrolled("twin")
    copy = tmp_path / "copy.pem"
    shutil.copy(broker.tls_cert, copy)  # permissions too
    with connected(broker, name="any-name"), caplog.at_level(logging.WARNING, logger="ferryman"):
        thief = Link(of_file(broker, copy), "another-name")  # the broker goes by the certificate's
        thief.start()
        try:
            until(lambda: "does another client call itself" in caplog.text or "taken over" in caplog.text, 60)
        finally:
            thief.stop()


def test_a_device_throws_out_nobody_by_a_client_id(realm):
    downs = []
    with connected(realm.enrolled("calm"), name="calm") as (link, _):
        link.on_down(lambda: downs.append(1))
        with connected(realm.enrolled("rude"), name="calm"):
            assert say(link, "ferryman/v1/calm/telemetry") is None
        assert not downs


def test_an_oversize_packet_is_refused_and_the_next_one_goes(realm):
    with connected(realm.enrolled("big"), name="big") as (link, _):
        assert "limit" in say(link, "ferryman/v1/big/telemetry", bytes(65 << 20))
        assert say(link, "ferryman/v1/big/telemetry") is None


def test_a_last_will_on_anothers_topic_is_not_published(realm):
    will = Message(topic="ferryman/v1/victim/status", payload=b"forged", retain=True)
    with connected(realm.host("op", "operator"), "ferryman/v1/victim/status") as (_, heard):
        link = Link(realm.enrolled("liar"), "liar", will=will)
        link.start()
        until(lambda: link.connected_by or link.problem != "not started")
        if link.connected_by:
            link._connection._client._sock_close()  # the broker sees it die
            until(lambda: not link.connected_by)
        link.stop()
    assert not heard
    with connected(realm.host("op", "operator"), "ferryman/v1/victim/status", name="later") as (_, heard):
        assert not heard


@pytest.mark.parametrize("name", ["a/b", "+", "#", "ä", "a b", "pi\n", "", "x" * 65, "$SYS", "a\0b"])
def test_no_name_that_could_reach_another_topic_is_certified(realm, name):
    if not name or len(name) > 64:
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x")]
    else:
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    csr = x509.CertificateSigningRequestBuilder(x509.Name(attributes)).sign(new_key(), hashes.SHA256())
    with pytest.raises(IdentityError, match="expected a subject of one common name"):
        realm.authority.sign_device(csr.public_bytes(Encoding.PEM), utc_now())


DEVICE = "ferryman/v1/pi"
HOSTS = {
    "collector": "collector",
    "operator": "operator",
    "second": "operator",
    "rollout": "rollout",
    "viewer": "viewer",
    "ca": "ca",
}
EVERYBODY = {"pi", "other", *HOSTS}
MATRIX = {
    # topic: (who may write, who may read)
    f"{DEVICE}/status": ({"pi"}, {"collector", "operator", "second", "rollout", "viewer"}),
    f"{DEVICE}/telemetry": ({"pi"}, {"collector"}),
    f"{DEVICE}/receipt": ({"collector"}, {"pi"}),
    f"{DEVICE}/desired": ({"rollout"}, {"pi", "rollout"}),
    f"{DEVICE}/reported": ({"pi"}, {"rollout", "collector"}),
    f"{DEVICE}/request": ({"operator", "second"}, {"pi"}),
    f"{DEVICE}/response/operator": ({"pi"}, {"operator"}),
    f"{DEVICE}/response/second": ({"pi"}, {"second"}),
    f"{DEVICE}/response/nobody": ({"pi"}, set()),
    f"{DEVICE}/csr": ({"pi"}, {"ca"}),
    f"{DEVICE}/certificate": ({"ca"}, {"pi"}),
    f"{DEVICE}/live": ({"pi"}, {"viewer"}),
    f"{DEVICE}/anything": (set(), set()),
    f"{DEVICE}/response/operator/deeper": (set(), set()),
    f"{DEVICE}": (set(), set()),
    "ferryman/v1/nobody/telemetry": (set(), {"collector"}),
    "ferryman/alerts/pi/offline": ({"collector"}, {"collector", "viewer"}),
    "homeassistant/device/pi/config": ({"pi"}, {"viewer"}),
    "homeassistant/device/nobody/config": (set(), {"viewer"}),
    "homeassistant/sensor/pi/latency/config": (set(), {"viewer"}),
    "homeassistant/status": ({"viewer"}, EVERYBODY),
    "spBv1.0/plant/NBIRTH/pi": ({"pi"}, {"viewer"}),
    "spBv1.0/plant/DDATA/pi/model": ({"pi"}, {"viewer"}),
    "spBv1.0/plant/NCMD/pi": (set(), {"viewer"}),
    "spBv1.0/plant/NBIRTH/nobody": (set(), {"viewer"}),
    "spBv1.0/elsewhere/NBIRTH/pi": (set(), {"viewer"}),
    "anything": (set(), set()),
}


def test_everybody_reaches_what_is_theirs_and_nothing_else(plant):
    """Each of eight identities writes to each topic while all listen to everything."""
    brokers = {name: plant.enrolled(name) for name in ("pi", "other")}
    brokers |= {name: plant.host(name, role) for name, role in HOSTS.items()}
    stack, links, heard = [], {}, {}
    try:
        for name, broker in brokers.items():
            context = connected(broker, "#", "$SYS/#", name=name)
            stack.append(context)
            links[name], heard[name] = context.__enter__()
        wrote = {topic: set() for topic in MATRIX}
        for name, link in links.items():
            for topic in MATRIX:
                problem = say(link, topic, f"{name} to {topic}".encode())
                if problem is None:
                    wrote[topic].add(name)
                else:
                    assert "Not authorized" in problem
        assert wrote == {topic: writers for topic, (writers, _) in MATRIX.items()}
        expected = {
            (reader, topic, f"{writer} to {topic}".encode())
            for topic, (writers, readers) in MATRIX.items()
            for writer in writers
            for reader in readers
        }

        def ours():
            found = ((name, *one) for name, got in heard.items() for one in list(got))
            return {one for one in found if not one[1].startswith("ferryman/v1/good/")}

        until(lambda: expected <= ours())
        time.sleep(0.3)  # for what should not come
        assert ours() == expected
    finally:
        for context in reversed(stack):
            context.__exit__(None, None, None)


def test_a_device_of_sparkplug_holds_two_connections(plant):
    broker, downs = plant.enrolled("pi"), []
    with connected(broker, name="one") as (one, _), connected(broker, name="two") as (two, _):
        one.on_down(lambda: downs.append(1))
        assert say(two, "spBv1.0/plant/NDATA/pi") is None
        assert say(one, "ferryman/v1/pi/telemetry") is None
        assert not downs


def test_a_shared_subscription_is_no_way_around(realm):
    with (
        connected(realm.enrolled("spy"), "$share/x/ferryman/v1/pi/request", name="spy") as (spy, spied),
        connected(realm.enrolled("pi"), "ferryman/v1/pi/request", name="pi") as (_, got),
        connected(realm.host("op", "operator")) as (asking, _),
    ):
        spy._connection._client.message_callback_add("#", lambda *_: spied.append(1))
        for _ in range(4):  # or it might have been another member's turn
            assert say(asking, "ferryman/v1/pi/request", b"secret") is None
        until(lambda: len(got) == 4)
        assert not spied
