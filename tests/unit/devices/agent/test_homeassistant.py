"""What Home Assistant demands of a discovery message (its documentation: integrations mqtt, sensor, binary_sensor)."""

from __future__ import annotations

import json
import queue
import time

import jinja2
import pytest

from ferryman.devices import topics
from ferryman.devices.agent import homeassistant
from ferryman.devices.agent.homeassistant import FILE, HomeAssistant, config_topic, discovery
from ferryman.devices.agent.sampler import SENSORS, missing_sensors
from ferryman.devices.mqtt import Link, Message
from ferryman.devices.mqtt_connection import Connection
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import METRICS, Sample
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import until

UNITS = {
    "battery": {"%"},
    "data_size": {"B", "kB", "MB", "GB"},
    "duration": {"d", "h", "min", "s", "ms"},
    "frequency": {"Hz", "kHz", "MHz", "GHz"},
    "power": {"W", "kW"},
    "temperature": {"°C", "°F", "K"},
}
"""Of the sensor device classes used here; each allows the state class `measurement`."""
BINARY_CLASSES = {"connectivity", "problem"}
COMMON = {
    *("platform", "unique_id", "name", "state_topic", "value_template", "availability", "expire_after"),
    *("device_class", "entity_category"),
}
KEYS = {"sensor": COMMON | {"unit_of_measurement", "state_class"}, "binary_sensor": COMMON}
SAMPLE = Sample(
    period_s=60,
    values={"inferences": 12, "latency_ms": 3.25, "temperature_c": 61.5, "throttled": 1},
    unavailable={"power_w": "no meter is named"},
)


def message():
    return json.loads(json.dumps(discovery("pi-7", "Raspberry Pi 5", 60, {})))


def render(template, payload):
    """As Home Assistant renders a value template; "None" is its word for a state that is not known."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  # no page
    return environment.from_string(template).render(value=payload.decode(), value_json=json.loads(payload))


def test_the_message_has_what_is_required_and_nothing_unknown():
    found = message()
    assert set(found) == {"device", "origin", "components"}
    assert found["device"]["identifiers"] == ["ferryman_pi-7"]
    assert set(found["device"]) <= {"identifiers", "name", "manufacturer", "model", "sw_version"}
    assert found["origin"]["name"]
    for component in found["components"].values():
        assert {"platform", "unique_id", "state_topic", "value_template"} <= set(component)
        assert set(component) <= KEYS[component["platform"]]


def test_every_metric_is_an_entity_with_an_id_of_its_own():
    components = message()["components"]
    assert set(components) == {*METRICS, "online", "package", "release"}
    ids = [component["unique_id"] for component in components.values()]
    assert len(set(ids)) == len(ids)
    other = discovery("pi-8", "x", 60, {})["components"]
    assert not {component["unique_id"] for component in other.values()} & set(ids)


def test_units_fit_their_device_classes():
    for component in message()["components"].values():
        kind, unit = component.get("device_class"), component.get("unit_of_measurement")
        if component["platform"] == "binary_sensor":
            assert kind in BINARY_CLASSES
            assert unit is None
        elif kind is not None:
            assert unit in UNITS[kind]


def test_states_come_from_a_real_sample_and_what_is_missing_is_not_known():
    payload = encode(SAMPLE)
    for metric, component in message()["components"].items():
        if metric in {"online", "package", "release"}:
            continue
        assert component["state_topic"] == topics.live("pi-7")
        assert component["expire_after"] == 180
        state = render(component["value_template"], payload)
        if metric == "throttled":
            assert state == "ON"
        elif metric in SAMPLE.values:
            assert float(state) == SAMPLE.values[metric]
        else:
            assert state == "None"
    throttled = message()["components"]["throttled"]["value_template"]
    assert render(throttled, encode(Sample(period_s=1, values={"throttled": 0}))) == "OFF"
    assert render(throttled, encode(Sample(period_s=1, values={}))) == "None"


def test_what_is_served_comes_from_a_real_status():
    components = message()["components"]
    told = encode(Status(device="pi-7", online=True, package_name="digits", release="r1"))
    for name, text in (("package", "digits"), ("release", "r1")):
        assert components[name]["state_topic"] == topics.status("pi-7")
        assert render(components[name]["value_template"], told) == text
        assert render(components[name]["value_template"], encode(Status(device="pi-7", online=True))) == "None"
        assert not {"expire_after", "state_class"} & set(components[name])


def test_what_a_device_is_there_for_is_not_diagnostic():
    components = message()["components"]
    primary = {name for name, one in components.items() if "entity_category" not in one}
    assert primary == {"inferences", "latency_ms", "power_w"}


def test_what_there_is_no_sensor_for_is_not_announced_and_taken_back():
    components = discovery("pi", "m", 60, {}, {"battery_percent", "throttled"})["components"]
    assert set(components) == set(message()["components"]) - {"battery_percent", "throttled"}
    removed = discovery("pi", "m", 60, {"throttled": "binary_sensor"}, {"throttled"})["components"]
    assert removed["throttled"] == {"platform": "binary_sensor"}


def test_the_sensors_of_a_bare_system_are_known_to_be_missing(tmp_path):
    assert missing_sensors(tmp_path) == {name for name, _ in SENSORS}


@pytest.mark.parametrize("online", [True, False])
def test_availability_and_online_come_from_a_real_status(online):
    payload = encode(Status(device="pi-7", online=online))
    components = message()["components"]
    for metric, component in components.items():
        if metric == "online":
            assert "availability" not in component
            assert "expire_after" not in component
            assert component["state_topic"] == topics.status("pi-7")
            assert render(component["value_template"], payload) == ("ON" if online else "OFF")
        else:
            (availability,) = component["availability"]
            assert availability["topic"] == topics.status("pi-7")
            assert render(availability["value_template"], payload) == ("online" if online else "offline")


@pytest.mark.parametrize("prefix", ["", "/a", "a/", "a/+/b", "#", "a b", "a//b"])
def test_a_prefix_that_is_none_is_the_callers_fault(prefix, tmp_path):
    with pytest.raises(CallerError, match="--home-assistant"):
        HomeAssistant(Link(None, "x"), "pi", "m", 60, tmp_path, prefix)


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as running:
        yield running.config


class Host:
    """Home Assistant, as far as the broker sees it."""

    def __init__(self, broker):
        self.heard = queue.Queue()
        self._link = Link(broker, "host")
        self._link.subscribe("+/device/+/config", self.heard.put)
        self._link.start()
        self._link.wait_ready(60)

    def next(self):
        delivery = self.heard.get(timeout=60)
        return delivery.topic, json.loads(delivery.payload) if delivery.payload else None

    def say(self, payload):
        self._link.publish(Message(topic="homeassistant/status", payload=payload))

    def close(self):
        self._link.stop()


def connected(broker, root, prefix):
    link = Link(broker, "agent")
    HomeAssistant(link, "pi", "m", 60, root, prefix)
    link.start()
    link.wait_ready(60)
    return link


def test_it_is_announced_again_when_home_assistant_has_started(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(homeassistant, "SPREAD_S", 0.01)
    host = Host(broker)
    link = connected(broker, tmp_path, "homeassistant")
    topic, first = host.next()
    assert topic == config_topic("homeassistant", "pi") == "homeassistant/device/pi/config"
    host.say(b"offline")
    host.say(b"online")
    assert host.next() == (topic, first)
    time.sleep(0.3)
    assert host.heard.empty()
    late = Host(broker)
    assert late.next() == (topic, first)  # retained
    for one in (host, late, link):
        one.close() if isinstance(one, Host) else one.stop()


def test_what_is_no_more_is_removed_and_forgotten(broker, tmp_path):
    (tmp_path / FILE).write_text('{"prefix":"homeassistant","platforms":{"fan":"sensor","online":"binary_sensor"}}')
    host = Host(broker)
    link = connected(broker, tmp_path, "homeassistant")
    _, removing = host.next()
    assert removing["components"]["fan"] == {"platform": "sensor"}
    _, after = host.next()
    assert "fan" not in after["components"]
    link.stop()
    assert "fan" not in (tmp_path / FILE).read_text()
    host.close()


def test_another_prefix_or_none_takes_the_device_back(broker, tmp_path):
    host = Host(broker)
    link = connected(broker, tmp_path, "homeassistant")
    assert host.next()[1] is not None
    link.stop()
    link = connected(broker, tmp_path, "hass")
    found = dict(host.next() for _ in range(2))
    link.stop()
    assert found[config_topic("homeassistant", "pi")] is None
    assert found[config_topic("hass", "pi")] is not None
    link = connected(broker, tmp_path, None)
    assert host.next() == (config_topic("hass", "pi"), None)
    link.stop()
    assert not (tmp_path / FILE).exists()
    connected(broker, tmp_path, None).stop()
    assert host.heard.empty()
    host.close()


@pytest.mark.parametrize("prefix", ["hass", None])
def test_what_the_broker_did_not_take_back_is_taken_back_on_the_next_connection(broker, tmp_path, monkeypatch, prefix):
    link = connected(broker, tmp_path, "homeassistant")
    until((tmp_path / FILE).exists)
    link.stop()
    before = (tmp_path / FILE).read_text()
    monkeypatch.setattr(homeassistant, "TAKEN_S", 0.0)
    monkeypatch.setattr(Connection, "publish", lambda self, message, done: None)  # the line breaks
    connected(broker, tmp_path, prefix).stop()
    assert (tmp_path / FILE).read_text() == before
    monkeypatch.undo()
    host = Host(broker)
    assert host.next()[1] is not None
    link = connected(broker, tmp_path, prefix)
    assert host.next() == (config_topic("homeassistant", "pi"), None)
    link.stop()
    assert (tmp_path / FILE).exists() == (prefix is not None)
    host.close()


def test_a_damaged_memory_is_no_reason_to_be_silent(broker, tmp_path, caplog):
    (tmp_path / FILE).write_text("{")
    host = Host(broker)
    link = connected(broker, tmp_path, "homeassistant")
    assert host.next()[1] is not None
    assert "cannot be read" in caplog.text
    link.stop()
    host.close()
