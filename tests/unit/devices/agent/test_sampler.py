from __future__ import annotations

import queue
import threading
import time

import psutil
import pytest

from ferryman.devices import topics
from ferryman.devices.agent.outbox import Counts
from ferryman.devices.agent.sampler import Sampler, Sources, live
from ferryman.devices.agent.tally import ServedTally
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.energy import EnergyWindow
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from ferryman.runtime.contracts.telemetry import METRICS, Sample
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import until


class FakePower:
    def __init__(self, found):
        self.take = lambda: found


def sampler(tmp_path, *, power=None, counts=lambda: Counts(3, 2_000_000, 0), tell=lambda _: None, period_s=60.0):
    tally, records = ServedTally(), []
    sources = Sources(tally, counts, lambda: "active", tmp_path, power, tmp_path / "fs")
    return Sampler(sources, records.append, tell, period_s), tally, records


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def board(fs, *, throttled="throttled=80008", millidegrees="71500"):
    """A Raspberry Pi's sensors."""
    write(fs / "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(fs / "sys/class/thermal/thermal_zone0/temp", millidegrees)
    write(fs / "sys/devices/platform/soc/soc:firmware/get_throttled", throttled)
    for cpu, khz in enumerate((1_500_000, 1_700_000)):
        write(fs / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", f"{khz}\n")


def test_every_metric_has_a_value_or_a_reason(tmp_path):
    one, _, _ = sampler(tmp_path)
    (sample,) = one.take()
    assert set(sample.values) | set(sample.unavailable) == set(METRICS)
    assert not set(sample.values) & set(sample.unavailable)
    assert set(sample.unavailable) >= {"temperature_c", "clock_mhz", "throttled", "battery_percent", "power_w"}
    assert all(sample.unavailable.values())
    assert sample.unavailable["power_w"] == "no meter is named"
    assert decode(encode(sample), Sample) == sample


def test_sensors_are_read_in_the_units_of_their_names(tmp_path):
    board(tmp_path / "fs")
    one, _, _ = sampler(tmp_path)
    (sample,) = one.take()
    expected = {"temperature_c": 71.5, "clock_mhz": 1600, "throttled": 1, "outbox_records": 3, "outbox_mb": 2}
    assert {name: sample.values[name] for name in expected} == expected
    memory = psutil.virtual_memory()
    assert 0 < sample.values["memory_used_mb"] < memory.total / 1e6
    assert 5 < sample.values["agent_memory_mb"] < memory.total / 1e6
    assert sample.values["disk_free_mb"] == pytest.approx(psutil.disk_usage(str(tmp_path)).free / 1e6, rel=0.2)


def test_a_throttling_that_is_over_is_none(tmp_path):
    board(tmp_path / "fs", throttled="throttled=80000")
    one, _, _ = sampler(tmp_path)
    assert one.take()[0].values["throttled"] == 0


def test_a_sensor_that_talks_nonsense_is_unavailable(tmp_path):
    board(tmp_path / "fs", millidegrees="-274000")
    one, _, _ = sampler(tmp_path)
    (sample,) = one.take()
    assert "not plausible" in sample.unavailable["temperature_c"]


def test_what_was_served_is_told_by_package_and_the_last_has_the_device(tmp_path):
    one, tally, _ = sampler(tmp_path)
    tally.answered("old", 4_000_000)
    tally.answered("new", 2_000_000)
    tally.failed("new")
    old, new = one.take()
    assert (old.package_sha256, old.values, old.latencies_ms) == (
        "old",
        {"inferences": 1, "errors": 0, "latency_ms": 4.0},
        (4.0,),
    )
    assert (new.package_sha256, new.values["inferences"], new.values["errors"]) == ("new", 1, 1)
    assert "memory_used_mb" in new.values
    (idle,) = one.take()
    assert (idle.package_sha256, idle.values["inferences"]) == ("active", 0)
    assert idle.unavailable["latency_ms"] == "no inference was answered"


def test_energy_is_that_of_the_period_by_what_was_answered(tmp_path):
    window = EnergyWindow(energy_j=120.0, window_s=60.0, runs=0, times_ns=(), values=())
    one, tally, _ = sampler(tmp_path, power=FakePower(window))
    assert one.take()[0].unavailable["energy_mj"] == "no inference was answered"
    for package in ("old", "new"):
        tally.answered(package, 1)
    *_, sample = one.take()
    assert (sample.values["power_w"], sample.values["energy_mj"]) == (2.0, 60_000)
    failed, _, _ = sampler(tmp_path, power=FakePower(Unavailable(reason="unplugged")))
    assert failed.take()[0].unavailable["power_w"] == "unplugged"


def test_a_broken_disk_is_a_reason_too(tmp_path):
    def broken():
        raise DeviceError("the disk is broken")

    one, _, _ = sampler(tmp_path, counts=broken)
    (sample,) = one.take()
    assert sample.unavailable["outbox_records"] == sample.unavailable["outbox_mb"] == "the disk is broken"


def test_it_goes_on_whatever_goes_wrong_and_ends_with_what_is_left(tmp_path, caplog):
    told = queue.Queue()

    def tell(sample):
        told.put(sample)
        raise ZeroDivisionError

    one, _, records = sampler(tmp_path, tell=tell, period_s=0.02)
    stop = threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    for _ in range(3):
        told.get(timeout=60)
    stop.set()
    thread.join()
    assert len(records) > 3
    assert "no sample was taken" in caplog.text


def test_the_newest_sample_is_kept_by_the_broker_for_three_periods(tmp_path):
    with Mosquitto(tmp_path) as broker:
        link = Link(broker.config, "agent")
        tell = live(link, "pi", 1.2)
        sample = sampler(tmp_path)[0].take()[0]
        tell(sample)  # nobody is there: not an error, and not kept for later
        link.start()
        link.wait_ready(60)
        first = heard(broker)
        assert first.empty()
        tell(sample)
        said = queue.Queue()
        link.publish(Message(topic="said", payload=b""), said.put)
        said.get(timeout=60)
        found = heard(broker).get(timeout=60)
        assert found.retained
        assert 1 <= found.expiry_s <= 4
        assert decode(found.payload, Sample) == sample
        until(lambda: heard(broker).empty())
        link.stop()


def heard(broker):
    """What the broker keeps."""
    found = queue.Queue()
    reader = Link(broker.config, "reader")
    reader.subscribe(topics.live("pi"), found.put)
    reader.start()
    reader.wait_ready(60)
    time.sleep(0.3)
    reader.stop()
    return found
