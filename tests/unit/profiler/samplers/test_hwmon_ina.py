from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.samplers import hwmon_ina
from ferryman.profiler.samplers.hwmon_ina import InaSampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import INA226, INA3221, break_file, forbid, write_tree

HWMON = "sys/class/hwmon"


def opened(root: Path) -> InaSampler:
    sampler = hwmon_ina.open_source(root)
    assert isinstance(sampler, InaSampler), sampler
    return sampler


def watts(sampler: InaSampler) -> float:
    ((_, value),) = sampler.read()
    return value


def test_power_is_read_and_the_shunt_is_named(tmp_path):
    sampler = opened(write_tree(tmp_path, INA226, HWMON))
    assert watts(sampler) == pytest.approx(4.3)
    assert sampler.source.name == "ina226 hwmon, shunt 10 mOhm"
    assert sampler.source.rails == ("ina226 at hwmon1",)
    assert sampler.source.resolution == pytest.approx(0.00625)  # 25 times the driver's 250 uA
    assert sampler.source.renewed_s == pytest.approx(0.034)
    assert sampler.source.uncertainty == pytest.approx(0.012)


def test_what_is_not_stated_is_unavailable_and_not_guessed(tmp_path):
    tree = {name: text for name, text in INA226.items() if "shunt" not in name and "interval" not in name}
    source = opened(write_tree(tmp_path, tree | {"hwmon1/name": "ina230\n"}, HWMON)).source
    assert source.name == "ina230 hwmon, fixed shunt"
    assert isinstance(source.resolution, Unavailable)
    assert isinstance(source.renewed_s, Unavailable)
    assert isinstance(source.uncertainty, Unavailable)


def test_of_three_channels_the_one_that_feeds_the_others_is_read(tmp_path):
    sampler = opened(write_tree(tmp_path, INA3221, HWMON))
    assert watts(sampler) == pytest.approx(5.064 * 1.184)
    assert sampler.source.rails == ("VDD_IN",)
    assert sampler.source.name == "ina3221 hwmon, shunt 5 mOhm"
    assert sampler.source.resolution == pytest.approx(5.064 * 40e-6 / 5e-3)
    assert "2 others left out" in sampler.source.note


def test_channels_that_cannot_be_read_are_left_out(tmp_path):
    tree = INA3221 | {"hwmon3/curr1_input": "gone\n"}
    del tree["hwmon3/in2_input"]
    sampler = opened(write_tree(tmp_path, tree, HWMON))
    assert sampler.source.rails == ("VDD_SOC",)
    assert "0 others left out" in sampler.source.note


def test_a_chip_without_one_channel_that_carries_power_says_so(tmp_path):
    found = hwmon_ina.open_source(
        write_tree(tmp_path, INA3221 | {f"hwmon3/curr{n}_input": "0\n" for n in (1, 2, 3)}, HWMON)
    )
    assert isinstance(found, Unavailable)
    assert "no channel carries power" in found.reason


def test_a_chip_that_is_unplugged_is_an_error(tmp_path):
    sampler = opened(write_tree(tmp_path, INA226, HWMON))
    (tmp_path / HWMON / "hwmon1/power1_input").unlink()
    with pytest.raises(SensorError, match="No such file"):
        sampler.read()


@pytest.mark.parametrize("value", ["", "garbage\n", "4.3\n", "1_000\n", "9" * 400, "0x10\n", "\0\0", b"\xff\xfe"])
def test_garbage_is_unavailable_and_quoted(tmp_path, value):
    found = hwmon_ina.open_source(write_tree(tmp_path, INA226 | {"hwmon1/power1_input": value}, HWMON))
    assert isinstance(found, Unavailable)
    assert "power1_input" in found.reason


@pytest.mark.parametrize("power", ["4300\n", "4300000000\n", "-4300000\n", "0\n"])
def test_another_unit_or_sign_than_volts_times_amperes_is_unavailable(tmp_path, power):
    found = hwmon_ina.open_source(write_tree(tmp_path, INA226 | {"hwmon1/power1_input": power}, HWMON))
    assert isinstance(found, Unavailable)
    assert "volts times amperes 4.29757 W" in found.reason


def test_a_shunt_the_wrong_way_round_is_named(tmp_path):
    found = hwmon_ina.open_source(write_tree(tmp_path, INA226 | {"hwmon1/curr1_input": "-842\n"}, HWMON))
    assert isinstance(found, Unavailable)
    assert "turn the shunt around" in found.reason


@pytest.mark.parametrize("shunt", ["0\n", "-10\n", "soon\n"])
def test_a_shunt_without_a_value_leaves_the_scale_unnamed(tmp_path, shunt):
    sampler = opened(write_tree(tmp_path, INA226 | {"hwmon1/shunt_resistor": shunt}, HWMON))
    assert sampler.source.name == "ina226 hwmon, fixed shunt"


@pytest.mark.parametrize("file", ["name", "power1_input"])
def test_an_io_error_is_unavailable(tmp_path, file):
    root = write_tree(tmp_path, INA226, HWMON)
    break_file(root / HWMON / "hwmon1" / file)
    found = hwmon_ina.open_source(root)
    assert isinstance(found, Unavailable)
    assert "Input/output error" in found.reason


def test_a_file_we_may_not_read_is_unavailable(tmp_path, monkeypatch):
    root = write_tree(tmp_path, INA226, HWMON)
    forbid(monkeypatch, "power1_input")
    found = hwmon_ina.open_source(root)
    assert isinstance(found, Unavailable)
    assert "power1_input: Permission denied" in found.reason


def test_a_device_without_a_chip_says_so(tmp_path):
    found = hwmon_ina.open_source(write_tree(tmp_path, {"hwmon0/name": "k10temp\n"}, HWMON))
    assert found == Unavailable(reason="INA hwmon: no INA219/INA226/INA3221 chip")


@given(st.dictionaries(st.sampled_from(sorted({**INA226, **INA3221})), st.binary(max_size=30)))
def test_any_bytes_are_a_reading_or_a_reason(tmp_path_factory, changes):
    root = write_tree(tmp_path_factory.mktemp("ina"), {**INA226, **INA3221, **changes}, HWMON)
    found = hwmon_ina.open_source(root)
    assert isinstance(found, Unavailable) or isinstance(watts(found), float)
