"""What a host finds of its own rights at a real broker, and Home Assistant through the rules that are generated."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
from msgspec.structs import replace

from ferryman.devices.agent.homeassistant import HomeAssistant
from ferryman.devices.certificates import utc_now
from ferryman.devices.expiry import shown_to, warn_of_expiry, watching
from ferryman.devices.fleet.authority.service import RenewalService
from ferryman.devices.fleet.collector.collector import Collector
from ferryman.devices.fleet.rights import check_right
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.identity import of_file
from ferryman.devices.mqtt import Link, Message
from tests.support.authority import Realm, realm_folder
from tests.support.telemetry import until

HOSTS = {"good": ["collector"], "wrong": ["viewer"], "hass": ["viewer"], "renewals": ["ca"]}
REFUSED = "the broker does not let"


@pytest.fixture(scope="module")
def realm():
    with realm_folder() as folder, Realm(folder, hosts=HOSTS, home_assistant="homeassistant") as one:
        yield one


def asked(broker, role, leaf):
    """Connect, and return once the broker has answered what was asked."""
    link, answered = Link(broker, broker.tls_cert), threading.Event()
    check_right(link, role, leaf)
    link.on_ready(lambda: link.publish(Message(topic="x", payload=b""), lambda _: answered.set()))
    link.start()
    try:
        assert answered.wait(60)
    finally:
        link.stop()


@pytest.mark.parametrize(
    ("host", "role", "leaf", "refused"),
    [
        ("good", "collector", "receipt", False),
        ("wrong", "collector", "receipt", True),
        ("renewals", "ca", "certificate", False),
        ("good", "ca", "certificate", True),
    ],
)
def test_what_the_broker_does_not_allow_is_an_error_in_the_log(realm, caplog, host, role, leaf, refused):
    asked(realm.host(host, *HOSTS[host]), role, leaf)
    found = [one.getMessage() for one in caplog.records if one.getMessage().startswith(REFUSED)]
    assert bool(found) == refused
    if refused:
        assert f"{REFUSED} {host} write a device's {leaf}" in found[0]
        assert f"role {role}" in found[0]


def test_collector_and_renewals_ask(realm, tmp_path, caplog):
    wrong = realm.host("wrong", "viewer")
    store = open_store(tmp_path / "fleet.sqlite")
    stop = threading.Event()
    threads = [
        threading.Thread(target=Collector(wrong, store, "collector").run, args=(stop,)),
        threading.Thread(target=RenewalService(realm.authority, wrong).run, args=(stop,)),
    ]
    for one in threads:
        one.start()
    try:
        until(lambda: all(f"wrong write a device's {leaf}" in caplog.text for leaf in ("receipt", "certificate")))
    finally:
        stop.set()
        for one in threads:
            one.join()
        store.close()


def test_home_assistant_learns_of_a_device_through_the_generated_rules(realm, tmp_path, caplog):
    heard: dict[str, bytes] = {}
    viewer = Link(realm.host("hass", "viewer"), "hass")
    viewer.subscribe("homeassistant/#", lambda one: heard.update({one.topic: one.payload}))
    device = Link(realm.enrolled("lamp"), "lamp")
    HomeAssistant(device, "lamp", "Pi", 60.0, tmp_path, "homeassistant")
    for link in (viewer, device):
        link.start()
        link.wait_ready(60)
    try:
        until(lambda: b"ferryman_lamp_latency_ms" in heard.get("homeassistant/device/lamp/config", b""))
    finally:
        device.stop()
        viewer.stop()
    assert "does not learn" not in caplog.text


def test_a_host_at_the_devices_door_is_told_of_its_own(realm):
    link = Link(replace(realm.host("good", "collector"), port=realm.ports[0]), "good")
    link.start()
    try:
        until(lambda: "hosts have their own port" in link.problem, 60)
    finally:
        link.stop()


def test_a_certificate_that_ends_is_warned_of(realm, caplog):
    life = dt.timedelta(days=90)
    for name, begun, said in (
        ("fresh", life * 0, ""),
        ("old", life * 3 / 4, "expires"),
        ("over", life * 5 / 4, "expired"),
    ):
        caplog.clear()
        path = realm.folder / f"{name}.pem"
        path.write_bytes(realm.authority.make_host(name, ["collector"], utc_now() - begun, life))
        path.chmod(0o600)
        broker = of_file(realm.at(realm.ports[1]), path)
        found = shown_to(broker)
        assert found is not None
        assert found.name == name
        warn_of_expiry(broker)
        assert (f"the certificate of {name} in {path} {said}" in caplog.text) == bool(said)
        assert bool(caplog.text) == bool(said)
    caplog.clear()
    with watching(broker):
        until(lambda: "expired" in caplog.text)
    assert shown_to(realm.at(1)) is None
