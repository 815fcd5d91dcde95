from __future__ import annotations

import queue
import threading

import pytest

from ferryman.devices import topics
from ferryman.devices.agent import instruments as instruments_module
from ferryman.devices.agent.instruments import Instruments, InstrumentsConfig, Wires
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.tally import ServedTally
from ferryman.devices.mqtt import Link
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.telemetry import Sample
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import until


@pytest.fixture
def wires(tmp_path):
    with Mosquitto(tmp_path) as broker:
        outbox = Outbox(tmp_path / "outbox.sqlite")
        yield Wires("pi", "board", tmp_path, broker.config, Link(broker.config, "agent"), outbox)
        outbox.close()


def made(wires, config, *, record=lambda _: None, mode=lambda: "full"):
    return Instruments(config, wires, ServedTally(), lambda: "sha", record, mode)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (InstrumentsConfig(), {"samples"}),
        (InstrumentsConfig(sample_s=0), set()),
        (InstrumentsConfig(meter="device", home_assistant="homeassistant"), {"samples", "power"}),
        (InstrumentsConfig(sparkplug="plant"), {"samples", "sparkplug"}),
    ],
)
def test_only_what_is_asked_for_runs(wires, config, names):
    assert set(made(wires, config).runs()) == names


@pytest.mark.parametrize(
    "config",
    [
        InstrumentsConfig(sample_s=0, meter="device"),
        InstrumentsConfig(sample_s=0, home_assistant="homeassistant"),
        InstrumentsConfig(sample_s=0, sparkplug="plant"),
        InstrumentsConfig(sample_s=0.5),
        InstrumentsConfig(sample_s=float("nan")),
        InstrumentsConfig(sample_s=86_401),
        InstrumentsConfig(home_assistant=""),
        InstrumentsConfig(sparkplug=""),
        InstrumentsConfig(meter=""),
    ],
)
def test_what_makes_no_sense_is_the_callers_fault(wires, config):
    with pytest.raises(CallerError):
        made(wires, config)


def test_on_a_link_that_is_to_be_spared_samples_are_recorded_and_not_shown(wires, monkeypatch):
    monkeypatch.setattr(instruments_module, "_POLL_S", 0.01)
    mode, recorded, heard, births = ["metered"], [], queue.Queue(), queue.Queue()
    wires.link.subscribe(topics.live("pi"), heard.put)
    wires.link.subscribe("spBv1.0/plant/NBIRTH/pi", births.put)
    one = made(wires, InstrumentsConfig(sparkplug="plant"), record=recorded.append, mode=lambda: mode[0])
    one._sampler._period_s = 0.05
    wires.link.start()
    wires.link.wait_ready(60)
    stop = threading.Event()
    threads = [threading.Thread(target=run, args=(stop,)) for run in one.runs().values()]
    for thread in threads:
        thread.start()
    until(lambda: len(recorded) > 3)
    assert heard.empty()
    assert births.empty()
    mode[0] = "full"
    assert isinstance(decode(heard.get(timeout=60).payload, Sample), Sample)
    births.get(timeout=60)
    mode[0] = "offline"
    until(lambda: one._sparkplug.paused)
    stop.set()
    for thread in threads:
        thread.join()
    wires.link.stop()
