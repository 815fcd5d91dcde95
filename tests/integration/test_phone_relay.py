"""A phone's telemetry, sent from the host: a real broker, the real collector, the real adb."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from ferryman.cli import main
from ferryman.devices.fleet.phone.relay import relay_folder, run_relay
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.fleet.store.tables import records
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.telemetry import Sample
from tests.support.adbd import plug
from tests.support.agent import StatusWatch
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.packages import sha256_of
from tests.support.phones import WHY_NO_PHONES, phone_scene
from tests.support.telemetry import collecting, until

pytestmark = pytest.mark.skipif(bool(WHY_NO_PHONES), reason=WHY_NO_PHONES)
PROFILE = ("--starts", "1", "--runs", "3", "--warmup", "1", "--no-energy")


@pytest.fixture
def scene(tmp_path, monkeypatch):
    with phone_scene(tmp_path, monkeypatch) as made:
        made.ferryman("push", made.first, "phone")
        yield made


@pytest.fixture
def store(tmp_path: Path):
    database = open_store(tmp_path / "store.db")
    yield database
    database.close()


def at_broker(scene, port: int) -> None:
    scene.broker = f"mqtt://127.0.0.1:{port}"
    scene.write_devices()
    scene.device = scene.device.__class__(
        name="phone", adb=scene.phone.serial, root=scene.system.home, broker=scene.broker, labels={"site": "lab"}
    )


def test_a_profile_reaches_the_collector_in_the_phones_name(scene, store, tmp_path):
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store), StatusWatch(broker.config, "phone") as watch:
        at_broker(scene, broker.port)
        said = scene.ferryman("profile", scene.first, "phone", *PROFILE)
        assert "has 1 measurements as phone's" in said
        (kept,) = store.measurements(device="phone")
        assert (kept.measurement.package_sha256, kept.measurement.interpreter) == (
            sha256_of(scene.first),
            "executorch",
        )
        watch.wait_for(lambda status: not status.online)
        (born,) = (status for status in watch.seen if status.online)
        assert (born.package_name, born.model) == ("add-1", "Acme Phone 9, 4x Cortex-A77")
        assert born.interpreters == {"executorch": "1.5.1"}
        assert born.standing["soc"] == "Acme S900"


def test_what_no_collector_took_waits_for_the_next_time(scene, store, tmp_path, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.phone.relay.CONFIRM_S", 0.5)
    monkeypatch.setattr("ferryman.devices.fleet.phone.relay.relay_measurements.__defaults__", (0.5,))
    port = free_port()
    at_broker(scene, port)
    said = scene.ferryman("profile", scene.first, "phone", *PROFILE)
    assert f"1 records of phone wait in {relay_folder('phone')} (" in said
    with Mosquitto(tmp_path, port=port) as broker, collecting(broker.config, store):
        relaying = Relaying(scene)
        until(lambda: len(store.measurements(device="phone")) == 1, 60)
        said = scene.ferryman("profile", scene.first, "phone", *PROFILE)
        assert "1 measurements are with the relay of phone that runs here" in said
        until(lambda: len(store.measurements(device="phone")) == 2, 60)
        relaying.end()


class Relaying:
    """A relay in a thread."""

    def __init__(self, scene) -> None:
        self.stop = threading.Event()
        self.said: list[str] = []
        self.thread = threading.Thread(
            target=run_relay, args=(scene.device, 0.3, self.stop), kwargs={"say": self.said.append}
        )
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_a_relay_tells_how_the_phone_does_and_when_it_is_away(scene, store, tmp_path):
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store), StatusWatch(broker.config, "phone") as watch:
        at_broker(scene, broker.port)
        relaying = Relaying(scene)
        watch.wait_for(lambda status: status.online and status.package_name == "add-1", 60)
        assert watch.seen[-1].labels == {"site": "lab"}
        until(lambda: store.totals().records >= 2, 60)
        until(lambda: relaying.said, 60)
        assert relaying.said == [f"the collector at {broker.config.address} has all records"]
        with pytest.raises(DeviceError, match="another relay of phone is at work"):
            run_relay(scene.device, 1, threading.Event())
        scene.phone.cut = lambda _what, _done: True
        watch.wait_for(lambda status: not status.online, 30)
        assert watch.seen[-1].mode == ""
        scene.phone.cut = lambda _what, _done: False
        plug(scene.phone)
        watch.wait_for(lambda status: status.online, 60)
        relaying.end()
        watch.wait_for(lambda status: not status.online, 60)
    bodies = [body for (body,) in store.read(select(records.c.body).where(records.c.kind == "sample"))]
    sample = decode(bodies[0] if isinstance(bodies[0], bytes) else bodies[0].encode(), Sample)
    assert sample.values["temperature_c"] == 38.5
    assert (sample.values["battery_percent"], sample.values["battery_c"]) == (83.0, 31.5)
    assert (sample.values["thermal_status"], sample.values["throttled"]) == (0.0, 0.0)
    assert sample.values["clock_mhz"] == 1804.8
    assert sample.unavailable["cpu_percent"] == "not taken on a phone"
    assert sample.package_sha256 == sha256_of(scene.first)


def test_records_that_nobody_takes_are_told_of(scene, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.phone.relay._PATIENCE_S", 2.0)
    at_broker(scene, free_port())
    relaying = Relaying(scene)
    until(lambda: relaying.said, 60)
    relaying.end()
    assert relaying.said[0].startswith("records wait on this machine: ")
    assert "refused" in relaying.said[0]


def test_a_phone_without_a_broker_is_told_once_and_nothing_is_relayed(scene):
    done = CliRunner().invoke(main, scene.words("relay", "phone"))
    assert done.exit_code == 1
    assert "relaying" not in done.output
    assert done.output.count("has no broker") == 1
