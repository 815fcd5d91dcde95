from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from ferryman.profiler import energy
from ferryman.profiler.energy import measure_energy
from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import mqtt_meter
from ferryman.profiler.samplers.mqtt_meter import MqttSampler, parse_shelly, parse_tasmota, parse_watts
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.record import Unavailable
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.telemetry import until
from tests.support.undisturbed import undisturbed

TASMOTA = {
    "Time": "2026-11-26T10:00:00",
    "ENERGY": {
        "TotalStartTime": "2026-01-01T00:00:00",
        "Total": 3.185,
        "Period": 0,
        "Power": 6.4,
        "ApparentPower": 11,
        "Factor": 0.58,
        "Voltage": 231,
        "Current": 0.048,
    },
}
SHELLY = {
    "id": 0,
    "source": "init",
    "output": True,
    "apower": 6.3,
    "voltage": 230.5,
    "current": 0.048,
    "aenergy": {"total": 1203.456, "by_minute": [105.1, 104.9, 104.7], "minute_ts": 1764151200},
    "temperature": {"tC": 41.2, "tF": 106.2},
}


@pytest.fixture
def broker(tmp_path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


class Plug:
    """Publishes what it is told, every so often, and answers those who ask."""

    def __init__(
        self, broker: Mosquitto, topic: str, payload: Callable[[], str | bytes], period_s: float = 0.05
    ) -> None:
        self.topic, self.payload, self.period_s = topic, payload, period_s
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._asked
        self.client.connect("127.0.0.1", broker.port)
        self.client.subscribe([("cmnd/plug/STATUS", 0), ("shelly/rpc", 0)])
        self.client.loop_start()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._publish)

    def _publish(self) -> None:
        while not self.stop.wait(self.period_s):
            self.client.publish(self.topic, self.payload())

    def _asked(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic == "cmnd/plug/STATUS" and message.payload == b"8":
            client.publish("stat/plug/STATUS8", json.dumps({"StatusSNS": json.loads(self.payload())}))
        elif message.topic == "shelly/rpc":
            call = json.loads(message.payload)
            assert call["method"] == "Switch.GetStatus"
            answer = {"id": call["id"], "src": "shelly", "dst": call["src"], "result": json.loads(self.payload())}
            client.publish(f"{call['src']}/rpc", json.dumps(answer))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.client.disconnect()
        self.client.loop_stop()


def opened(spec: str) -> MqttSampler:
    found = open_meter(spec)
    assert isinstance(found, MqttSampler), found
    return found


def next_values(sampler: MqttSampler, count: int = 4) -> list[float]:
    values: list[float] = []
    until(lambda: len(values) >= count or bool(values.extend(value for _, value in sampler.read())))
    return values


def trouble(sampler: MqttSampler) -> str:
    """Why it cannot be read; empty: it can."""
    try:
        sampler.read()
    except SensorError as error:
        return str(error)
    return ""


def came(sampler: MqttSampler) -> bool:
    with contextlib.suppress(SensorError):
        return bool(sampler.read())
    return False


@pytest.mark.parametrize(
    ("kind", "topic", "message", "watts"),
    [
        ("tasmota", "tele/plug/SENSOR", json.dumps(TASMOTA), 6.4),
        ("shelly", "shelly/status/switch:0", json.dumps(SHELLY), 6.3),
        ("watts", "bench/power", "6.2", 6.2),
    ],
)
def test_a_plug_that_publishes_is_read(broker, kind, topic, message, watts):
    with Plug(broker, topic, lambda: message):
        sampler = opened(f"mqtt://127.0.0.1:{broker.port}/{topic}?kind={kind}")
        values = next_values(sampler)
        assert set(values) == {watts}
        assert sampler.source.name == f"{kind} plug at mqtt://127.0.0.1/{topic}"
        assert sampler.settle_s == 2
        sampler.close()


@pytest.mark.parametrize(
    ("spec", "message"),
    [("tele/plug/SENSOR?kind=tasmota", TASMOTA), ("shelly/status/switch:0?kind=shelly", SHELLY)],
)
def test_a_plug_that_is_silent_is_asked(broker, spec, message):
    with Plug(broker, "elsewhere", lambda: json.dumps(message), 3600.0):
        sampler = opened(f"mqtt://127.0.0.1:{broker.port}/{spec}&poll=0.1")
        assert sampler.period_s == pytest.approx(0.1)
        asked = [value for _, value in sampler.read()]
        assert asked + next_values(sampler, 1)
        sampler.close()


def test_the_whole_chain_finds_the_joules_of_a_plug(broker, monkeypatch):
    """5 W idle, 8 W running, and a plug that tells half a second late."""
    monkeypatch.setattr(energy, "WINDOW_MIN_S", 1.0)
    monkeypatch.setitem(mqtt_meter.KINDS, "watts", mqtt_meter.Kind(parse_watts, 0.1, 0.05))

    def attempt() -> None:
        changed = [0.0]

        def payload() -> str:
            late = changed[0] and time.monotonic() - changed[0] > 0.5
            return f"{8.0 if late else 5.0}"

        runs = [0]

        def run() -> None:
            changed[0] = changed[0] or time.monotonic()
            time.sleep(0.01)
            runs[0] += 1

        with Plug(broker, "bench/power", payload, 0.03):
            sampler = opened(f"mqtt://127.0.0.1:{broker.port}/bench/power?kind=watts&settle=0.7")
            found = measure_energy(sampler, run, idle_s=1.0, window_s=1.0)
        assert isinstance(found, Energy), found
        assert found.active.power_w == pytest.approx(8.0, rel=0.001)
        assert found.idle.power_w == pytest.approx(5.0, rel=0.001)  # type: ignore[union-attr]
        assert 0 < found.active.runs < runs[0]
        assert found.gross_j == pytest.approx(8.0 * found.active.window_s / found.active.runs)

    undisturbed(attempt)


def test_what_the_broker_kept_is_of_an_earlier_time(broker):
    with Plug(broker, "bench/power", lambda: "2.0") as plug:
        plug.client.publish("bench/power", "99.0", retain=True).wait_for_publish(60)
        sampler = opened(f"mqtt://127.0.0.1:{broker.port}/bench/power?kind=watts")
        assert set(next_values(sampler)) == {2.0}
        sampler.close()


@pytest.mark.parametrize(
    "message", [b"\xff\xfe", b"{", b"[]", b"null", b'{"ENERGY": {"Power": "much"}}', b'{"ENERGY": {}}']
)
def test_garbage_is_unavailable_and_quoted(broker, message):
    with Plug(broker, "tele/plug/SENSOR", lambda: message):
        found = open_meter(f"mqtt://127.0.0.1:{broker.port}/tele/plug/SENSOR")
    assert isinstance(found, Unavailable)
    assert "expected" in found.reason


def test_a_broker_that_goes_away_is_an_error_and_may_come_back(broker):
    with Plug(broker, "bench/power", lambda: "2.0"):
        sampler = opened(f"mqtt://127.0.0.1:{broker.port}/bench/power?kind=watts")
        broker.kill()
        until(lambda: "the broker is gone" in trouble(sampler))
        broker.start()
        until(lambda: came(sampler))
        sampler.close()


def test_a_silent_plug_is_unavailable(broker, monkeypatch):
    monkeypatch.setattr(mqtt_meter, "_CONNECT_S", 2.0)
    found = open_meter(f"mqtt://127.0.0.1:{broker.port}/tele/plug/SENSOR?poll=0.1")
    assert isinstance(found, Unavailable)
    assert "no reading within" in found.reason


def test_no_broker_is_unavailable():
    found = open_meter(f"mqtt://127.0.0.1:{free_port()}/tele/plug/SENSOR")
    assert isinstance(found, Unavailable)
    assert "Connection refused" in found.reason


def test_a_broker_that_refuses_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv(mqtt_meter.PASSWORD, "wrong")
    (tmp_path / "passwords").write_text("")
    (tmp_path / "passwords").chmod(0o700)
    with Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {tmp_path}/passwords") as running:
        found = open_meter(f"mqtt://127.0.0.1:{running.port}/tele/plug/SENSOR?user=me")
    assert isinstance(found, Unavailable)
    assert "the broker refuses: Not authorized" in found.reason
    assert "wrong" not in found.reason


def test_parsers_find_the_number():
    assert parse_tasmota(json.dumps(TASMOTA)) == 6.4
    assert parse_tasmota(json.dumps({"StatusSNS": TASMOTA})) == 6.4
    assert parse_tasmota('{"ENERGY": {"Power": [3, 4]}}') == 3
    assert parse_tasmota('{"ANALOG": {"A0": 1}}') is None
    assert parse_shelly(json.dumps(SHELLY)) == 6.3
    assert parse_shelly('{"output": true}') is None


@pytest.mark.parametrize("parse", [parse_tasmota, parse_shelly, parse_watts])
@given(
    text=st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["ENERGY", "Power", "StatusSNS", "apower", "result"]), inner, max_size=3)
        ),
    ).map(json.dumps)
)
def test_any_text_is_watts_or_nothing_or_a_sensor_error(parse, text):
    try:
        found = parse(text)
    except SensorError:
        return
    assert found is None or isinstance(found, float)
