from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import android
from ferryman.profiler.samplers.android import ChargeSampler, adb_shell, open_phone, parse_dumpsys
from ferryman.profiler.samplers.base import Sampler
from ferryman.profiler.samplers.odpm import OdpmSampler
from ferryman.profiler.samplers.power_supply import BatterySampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.support.adbd import ADB, FakePhone, adb_server
from tests.unit.profiler.trees import DUMPSYS, ODPM, PHONE_BATTERY, write_tree

SUPPLY = "sys/class/power_supply"
IIO = "sys/bus/iio/devices"


@pytest.fixture
def phone(tmp_path):
    made = FakePhone(tmp_path)
    says(tmp_path, "dumpsys", DUMPSYS)
    says(tmp_path, "cmd", "Unknown get option: current_now", status=255)
    yield made
    made.close()


def says(root: Path, program: str, text: str, status: int = 0) -> None:
    path = root / "bin" / program
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(text)}\nexit {status}\n")
    path.chmod(0o755)


def opened(phone: FakePhone) -> Sampler:
    """With the phone's shell at hand, without adb."""

    def shell(command: str) -> str:
        done = phone.command(command)
        if done.returncode:
            raise SensorError(f"exit code {done.returncode}")
        return done.stdout.decode()

    found = open_phone("PIXEL", shell)
    assert not isinstance(found, Unavailable), found
    return found


def reading(sampler: Sampler) -> float:
    ((_, value),) = sampler.read()
    return value


def test_the_power_monitor_is_preferred(phone, tmp_path):
    write_tree(tmp_path, ODPM, IIO)
    write_tree(tmp_path, PHONE_BATTERY, SUPPLY)
    sampler = opened(phone)
    assert isinstance(sampler, OdpmSampler)
    assert sampler.source.name == "ODPM at PIXEL"
    assert len(sampler.source.rails) == 10
    assert "S2M_VDD_CPUCL2 (CPU)" in sampler.source.rails
    later = ODPM["iio:device0/energy_value"].replace("t=412006", "t=413006").replace("32945982", "34945982")
    write_tree(tmp_path, {"iio:device0/energy_value": later}, IIO)
    assert reading(sampler) == pytest.approx(2.0)


def test_then_the_battery_where_a_shell_may_read_it(phone, tmp_path):
    write_tree(tmp_path, PHONE_BATTERY, SUPPLY)
    sampler = opened(phone)
    assert isinstance(sampler, BatterySampler)
    assert sampler.source.name == "battery of PIXEL (sysfs)"
    assert reading(sampler) == pytest.approx(0.8125 * 3.815175)
    write_tree(tmp_path, {"battery/status": "Charging\n"}, SUPPLY)
    with pytest.raises(SensorError, match="the battery is charging"):
        sampler.read()


@pytest.mark.parametrize(("current", "watts"), [("-512000", 0.512 * 4.231), ("512", 0.512 * 4.231)])
def test_then_battery_manager_in_whatever_unit_it_answers(phone, tmp_path, current, watts):
    says(tmp_path, "cmd", current)
    sampler = opened(phone)
    assert isinstance(sampler, BatterySampler)
    assert sampler.source.name == "battery of PIXEL (BatteryManager)"
    assert reading(sampler) == pytest.approx(watts)
    assert "unit uncertain" in sampler.source.note


def test_then_the_charge_counter(phone, tmp_path):
    sampler = opened(phone)
    assert isinstance(sampler, ChargeSampler)
    assert reading(sampler) == 0
    says(tmp_path, "dumpsys", DUMPSYS.replace("3411000", "3410000"))
    assert reading(sampler) == pytest.approx(3.6 * 4.231)
    says(tmp_path, "dumpsys", DUMPSYS.replace("3411000", "3412000"))
    with pytest.raises(SensorError, match="rose from 3410000 to 3412000"):
        sampler.read()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DUMPSYS.replace("status: 3", "status: 2"), "the battery is charging; unplug the phone"),
        (DUMPSYS.replace("status: 3", "status: 9"), "the battery is unknown (9)"),
        (DUMPSYS.replace("voltage: 4231", "voltage: soon"), "expected an integer, found 'soon000'|found 'soon'"),
        (DUMPSYS.replace("voltage: 4231", "voltage: 4"), "make no sense"),
        (DUMPSYS.replace("Charge counter: 3411000", ""), "no charge_counter"),
        ("Can't find service: battery", "no status in"),
        ("", "no status in"),
    ],
)
def test_a_phone_that_tells_nothing_is_unavailable_with_every_reason(phone, tmp_path, text, reason):
    says(tmp_path, "dumpsys", text)
    found = open_phone("PIXEL", lambda command: phone.command(command).stdout.decode())
    assert isinstance(found, Unavailable)
    assert "no energy_value" in found.reason
    assert any(part in found.reason for part in reason.split("|")), found.reason


@given(
    st.text() | st.lists(st.sampled_from([*DUMPSYS.splitlines(), "status:", "voltage: x", "status: \0"])).map("\n".join)
)
def test_garbage_is_properties_or_a_sensor_error(text):
    try:
        found = parse_dumpsys(text)
    except SensorError:
        return
    assert "status" in found


def fake_adb(monkeypatch, tmp_path: Path, script: str) -> None:
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin/adb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'error: device PIXEL not found' >&2; exit 1", "exit code 1: 'error: device PIXEL not found'"),
        ("echo 'error: device unauthorized.' >&2; exit 1", "device unauthorized"),
        ("exec sleep 30", "no answer within 0.2 s"),
    ],
)
def test_adb_that_fails_is_unavailable_in_its_own_words(monkeypatch, tmp_path, script, reason):
    if "sleep" in script:
        monkeypatch.setattr(android, "_TIMEOUT_S", 0.2)
    fake_adb(monkeypatch, tmp_path, script)
    found = open_meter("adb:PIXEL")
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_the_serial_is_one_argument(monkeypatch, tmp_path):
    fake_adb(monkeypatch, tmp_path, 'for word; do echo "[$word]"; done')
    assert adb_shell("10.0.0.7:5555")("dumpsys battery") == "[-s]\n[10.0.0.7:5555]\n[shell]\n[dumpsys battery]\n"
    assert adb_shell("")("true") == "[shell]\n[true]\n"


def test_without_adb_the_reason_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = open_meter("adb:")
    assert found == Unavailable(reason="adb adb: no adb on this machine; on Debian or Ubuntu: sudo apt-get install adb")


@pytest.mark.skipif(ADB is None, reason="adb is not installed (apt-get install adb)")
def test_the_real_adb_reads_a_phone(phone, tmp_path, monkeypatch):
    write_tree(tmp_path, PHONE_BATTERY, SUPPLY)
    with adb_server(monkeypatch, phone):
        sampler = open_meter(f"adb:{phone.serial}")
        assert isinstance(sampler, BatterySampler), sampler
        assert reading(sampler) == pytest.approx(0.8125 * 3.815175)
        with pytest.raises(SensorError, match="exit code 3"):
            adb_shell(phone.serial)("exit 3")
        assert isinstance(open_meter("adb:elsewhere:1"), Unavailable)
