from __future__ import annotations

import errno
import sys

import pytest

from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import ina_i2c
from ferryman.profiler.samplers.ina import CHIPS
from ferryman.profiler.samplers.ina_i2c import open_chip
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable

RESET = {"ina219": 0x399F, "ina226": 0x4127, "ina3221": 0x7127}


class FakeBus:
    """Registers of one chip at 0x40, as its data sheet has them; words in SMBus order, low byte first."""

    def __init__(self, name: str, volts: float, amperes: float, shunt_ohm: float, channel: int = 1) -> None:
        self.name, self.closed, self.failure = name, False, 0
        self.registers = {0: RESET[name]}
        shunt_v = amperes * shunt_ohm
        if name == "ina219":
            shunt, bus = round(shunt_v / 10e-6), round(volts / 4e-3) << 3 | 0b10
        elif name == "ina226":
            shunt, bus = round(shunt_v / 2.5e-6), round(volts / 1.25e-3)
        else:
            shunt, bus = round(shunt_v / 40e-6) << 3, round(volts / 8e-3) << 3
        if name != "ina219":
            self.registers |= {0xFE: 0x5449, 0xFF: {"ina226": 0x2260, "ina3221": 0x3220}[name]}
        for number in range(1, CHIPS[name].channels + 1):
            self.registers |= {2 * number - 1: 0, 2 * number: 0}
        self.registers |= {2 * channel - 1: shunt & 0xFFFF, 2 * channel: bus}

    def read_word_data(self, i2c_addr: int, register: int) -> int:
        self._answer(i2c_addr)
        value = self.registers[register]
        return (value & 0xFF) << 8 | value >> 8

    def write_word_data(self, i2c_addr: int, register: int, value: int) -> None:
        self._answer(i2c_addr)
        self.registers[register] = (value & 0xFF) << 8 | value >> 8

    def close(self) -> None:
        self.closed = True

    def _answer(self, address: int) -> None:
        if address != 0x40:
            raise OSError(errno.ENXIO, "No such device or address")
        if self.failure:
            raise OSError(self.failure, "Input/output error")


@pytest.mark.parametrize(
    ("name", "config", "channel", "shunt_ohm", "resolution"),
    [
        ("ina219", 0x3FFF, 1, 0.1, 5e-4),
        ("ina226", 0x4527, 1, 0.01, 1.25e-3),
        ("ina3221", 0x7527, 1, 0.1, 2e-3),
        ("ina3221", 0x7527, 3, 0.1, 2e-3),
    ],
)
def test_registers_become_watts(name, config, channel, shunt_ohm, resolution):
    bus = FakeBus(name, 5.104, 0.84, shunt_ohm, channel)
    sampler = open_chip(bus, 0x40, name, shunt_ohm, 0.01, channel=channel, place="i2c:1/0x40")
    ((_, watts),) = sampler.read()
    assert watts == pytest.approx(5.104 * 0.84, rel=0.001)
    assert bus.registers[0] == config
    assert sampler.source.resolution == pytest.approx(resolution)
    assert sampler.source.name == f"{name} at i2c:1/0x40, shunt {1000 * shunt_ohm:g} mOhm"
    assert sampler.settle_s == CHIPS[name].period_s
    sampler.close()
    assert bus.registers[0] == RESET[name]
    assert bus.closed


def test_the_configuration_means_what_the_data_sheets_say():
    ina219, ina226, ina3221 = (CHIPS[name].config for name in ("ina219", "ina226", "ina3221"))
    assert ina219 & 0b111 == 0b111  # continuous, both
    assert ina219 >> 3 & 0b1111 == ina219 >> 7 & 0b1111 == 0b1111  # 128 conversions of 532 us
    assert CHIPS["ina219"].period_s == pytest.approx(2 * 128 * 532e-6, rel=0.01)
    assert (ina226 >> 9 & 0b111, ina226 >> 6 & 0b111, ina226 >> 3 & 0b111, ina226 & 0b111) == (2, 4, 4, 7)
    assert CHIPS["ina226"].period_s == pytest.approx(16 * 2 * 1.1e-3)
    assert ina3221 >> 12 == 0b0111  # all three channels
    assert ina3221 & 0xFFF == ina226 & 0xFFF
    assert CHIPS["ina3221"].period_s == pytest.approx(3 * 16 * 2 * 1.1e-3)


@pytest.mark.parametrize("name", CHIPS)
def test_a_current_the_other_way_is_negative(name):
    bus = FakeBus(name, 5.0, -0.5, 0.1)
    ((_, watts),) = open_chip(bus, 0x40, name, 0.1, 0.01).read()
    assert watts == pytest.approx(-2.5, rel=0.001)


@pytest.mark.parametrize(
    ("name", "amperes"), [("ina219", 3.2), ("ina226", 0.8191751), ("ina3221", 1.638), ("ina219", -3.2)]
)
def test_more_than_the_shunt_is_good_for_is_an_error(name, amperes):
    with pytest.raises(SensorError, match=r"more current than the shunt of 0\.1 Ohm"):
        open_chip(FakeBus(name, 5.0, amperes, 0.1), 0x40, name, 0.1, 0.01)


@pytest.mark.parametrize(("there", "asked"), [("ina219", "ina226"), ("ina226", "ina3221"), ("ina3221", "ina226")])
def test_another_chip_is_not_written_to(there, asked):
    bus = FakeBus(there, 5.0, 0.5, 0.1)
    bus.registers.setdefault(0xFE, 0), bus.registers.setdefault(0xFF, 0)
    with pytest.raises(SensorError, match=f"no {asked}; expected"):
        open_chip(bus, 0x40, asked, 0.1, 0.01)
    assert bus.registers[0] == RESET[there]


def test_nobody_at_the_address_is_an_error():
    with pytest.raises(SensorError, match="0x41 register 0x0: No such device"):
        open_chip(FakeBus("ina219", 5, 1, 0.1), 0x41, "ina219", 0.1, 0.01)


def test_a_chip_that_is_unplugged_is_an_error_and_can_be_closed():
    bus = FakeBus("ina226", 5, 1, 0.01)
    sampler = open_chip(bus, 0x40, "ina226", 0.01, 0.01)
    bus.failure = errno.EIO
    with pytest.raises(SensorError, match="Input/output error"):
        sampler.read()
    sampler.close()
    assert bus.closed


def test_by_name_the_bus_is_the_kernels(monkeypatch):
    bus = FakeBus("ina219", 5, 1, 0.1)
    asked = []

    def open_bus(number: int) -> FakeBus:
        asked.append(number)
        return bus

    monkeypatch.setattr(ina_i2c, "open_bus", open_bus)
    sampler = open_meter("i2c:7/0x40?chip=ina219&shunt=0.1&tolerance=0.02")
    assert not isinstance(sampler, Unavailable)
    assert asked == [7]
    assert sampler.source.uncertainty == pytest.approx(0.04)
    assert isinstance(open_meter("i2c:7/0x41?chip=ina219&shunt=0.1"), Unavailable)
    assert bus.closed


def test_a_bus_that_is_not_there_is_unavailable():
    pytest.importorskip("smbus2")
    found = open_meter("i2c:250/0x40?chip=ina219&shunt=0.1")
    assert found == Unavailable(reason="/dev/i2c-250: No such file or directory")


def test_without_smbus2_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "smbus2", None)
    found = open_meter("i2c:1/0x40?chip=ina226&shunt=0.01")
    assert found == Unavailable(reason="reading I2C takes smbus2: pip install ferryman[i2c]")
