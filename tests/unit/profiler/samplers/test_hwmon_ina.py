from __future__ import annotations

import pytest

from ferryman.profiler.samplers import hwmon_ina
from ferryman.profiler.samplers.hwmon_ina import InaSampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import INA226, write_tree

HWMON = "sys/class/hwmon"


def test_power_is_read_and_the_shunt_is_named(tmp_path):
    sampler = hwmon_ina.open_source(write_tree(tmp_path, INA226, HWMON))
    assert isinstance(sampler, InaSampler), sampler
    assert sampler.read() == pytest.approx(4.3)
    assert sampler.source == "ina226 hwmon, shunt 10 mOhm"
    assert sampler.rails == ("ina226 at hwmon1",)


def test_a_chip_that_is_unplugged_is_an_error(tmp_path):
    sampler = hwmon_ina.open_source(write_tree(tmp_path, INA226, HWMON))
    assert isinstance(sampler, InaSampler)
    (tmp_path / HWMON / "hwmon1/power1_input").unlink()
    with pytest.raises(SensorError, match="No such file"):
        sampler.read()


@pytest.mark.parametrize("value", ["", "garbage\n", "4.3\n", "1_000\n", "9" * 400])
def test_garbage_is_unavailable_and_quoted(tmp_path, value):
    found = hwmon_ina.open_source(write_tree(tmp_path, INA226 | {"hwmon1/power1_input": value}, HWMON))
    assert isinstance(found, Unavailable)
    assert "power1_input" in found.reason


def test_a_device_without_a_chip_says_so(tmp_path):
    found = hwmon_ina.open_source(write_tree(tmp_path, {"hwmon0/name": "k10temp\n"}, HWMON))
    assert found == Unavailable(reason="INA hwmon: no INA219/INA226 chip")
