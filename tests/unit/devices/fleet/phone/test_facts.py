from __future__ import annotations

import pytest

from ferryman.describe_facts import describe_facts
from ferryman.devices.fleet.facts.advice import Advice, advise
from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.facts import phone_facts
from tests.support.phone import WHY_NOT, AndroidSystem, DirectLink

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def system(tmp_path):
    return AndroidSystem(tmp_path / "phone")


def facts_of(system: AndroidSystem, *, runner: bool = False):
    if runner:
        system.write("data/local/tmp/ferryman/runner/1/ferryman_runner", RUNNER)
        (system.home / "runner/1/ferryman_runner").chmod(0o755)
    device = AdbDevice(name="pixel", adb="", root=system.home)
    return phone_facts(device, 20.0, connect=lambda _device: DirectLink(system))


RUNNER = """#!/bin/sh
echo '{"runner": "0.2.0", "executorch": "1.5.1", "kernels_version": 4, "kernels_isa": "neon", "machine": "aarch64", \
"cores": 4, "kernel": "6.1", "page_bytes": 4096}'
"""


def sensors_of(facts) -> list[Advice]:
    return [one for one in advise(facts) if one.topic == "sensors"]


def test_heat_and_energy_are_what_a_profile_takes(system):
    facts = facts_of(system)
    found = {one.measures: one for one in facts.sensors if one.available}
    assert "thermalservice CPU0" in {one.name for one in facts.sensors}
    assert "38.5" in found["temperature"].detail or "31.5" in found["temperature"].detail
    assert "charge counter" in found["energy"].detail
    assert [one.level for one in sensors_of(facts)] == ["ok"]


def test_a_phone_that_charges_is_to_be_unplugged(system):
    system.battery(ac="true", status=2)
    (energy,) = sensors_of(facts_of(system))
    assert energy.says == "energy cannot be measured there as it is"
    assert "charging" in energy.because
    assert "unplug it" in energy.do
    assert "powercap" not in energy.because + energy.do


def test_a_phone_without_a_thermal_service_has_no_temperature(system):
    (system.bin / "dumpsys.thermal").write_text("")
    assert sensors_of(facts_of(system))[-1].says == "no temperature: profiles cannot wait until it is cool"


def test_no_phone_is_told_to_install_a_python_package(system):
    facts = facts_of(system, runner=True)
    assert [one.name for one in facts.interpreters] == ["executorch"]
    assert not [one for one in advise(facts) if "pip" in one.do or "TFLite" in one.says or "tflite" in one.topic]


def test_what_is_not_there_fills_one_line(system):
    system.battery(ac="true", status=2)
    (system.bin / "dumpsys.thermal").write_text("")
    lines = describe_facts(facts_of(system)).splitlines()
    assert [line.strip() for line in lines if "energy" in line or "temperature" in line] == [
        "sensors       no energy (battery), no temperature"
    ]
