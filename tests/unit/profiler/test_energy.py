from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import pytest

from ferryman.profiler import energy
from ferryman.profiler.energy import Meter, choose_source, integrate_j
from ferryman.profiler.samplers.hwmon_ina import InaSampler
from ferryman.profiler.samplers.rapl import RaplSampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.measurement import Energy
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import INA226, RAPL, write_tree, write_vcgencmd


@dataclass
class RampSampler:
    """1 W at its birth and 10 W more every second; the energy is known in closed form."""

    unit: Literal["W", "J"]
    source: str = "a ramp"
    rails: tuple[str, ...] = ("all",)
    period_s: float = 0.01
    readings_left: int = 10**6

    def __post_init__(self) -> None:
        self.born_s = time.perf_counter()
        self.ages_s: list[float] = []

    def joules_at(self, age_s: float) -> float:
        return age_s + 5 * age_s**2

    def read(self) -> float:
        if not self.readings_left:
            raise SensorError("the sensor is gone")
        self.readings_left -= 1
        age_s = time.perf_counter() - self.born_s
        self.ages_s.append(age_s)
        return 1 + 10 * age_s if self.unit == "W" else self.joules_at(age_s)


def test_powers_are_integrated_by_trapezoids_whatever_their_spacing():
    assert integrate_j("W", [0, 10**9, 4 * 10**9], [2.0, 4.0, 4.0]) == pytest.approx(3 + 12)


def test_a_counter_is_the_last_less_the_first():
    assert integrate_j("J", [0, 1, 2], [5.0, 6.0, 9.5]) == pytest.approx(4.5)


@pytest.mark.parametrize("unit", ["W", "J"])
def test_the_whole_chain_is_within_one_per_cent_of_a_known_energy(monkeypatch, unit):
    monkeypatch.setattr(energy, "WINDOW_MIN_S", 0.2)
    sampler = RampSampler(unit)
    meter = Meter(sampler)
    meter.start()
    time.sleep(0.5)
    found = meter.stop(runs=7)
    assert isinstance(found, Energy), found
    true_j = sampler.joules_at(sampler.ages_s[-1]) - sampler.joules_at(sampler.ages_s[0])
    assert found.energy_j == pytest.approx(true_j, rel=0.01)
    assert found.runs == 7
    assert found.rails == ("all",)
    assert len(found.values) == len(found.times_ns) > 5
    assert found.times_ns[0] == 0


def test_a_short_window_is_unavailable_and_says_what_would_do():
    meter = Meter(RampSampler("W"))
    meter.start()
    found = meter.stop(runs=3)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("too short")
    assert "ask for more runs" in found.reason


@pytest.mark.parametrize("readings_left", [0, 1, 4])
def test_a_sensor_unplugged_in_the_window_is_unavailable(readings_left):
    meter = Meter(RampSampler("W", readings_left=readings_left))
    meter.start()
    time.sleep(0.1)
    assert meter.stop(runs=3) == Unavailable(reason="a ramp failed during the window: the sensor is gone")


def test_no_source_stays_unavailable():
    meter = Meter(Unavailable(reason="none here"))
    meter.start()
    assert meter.stop(runs=3) == Unavailable(reason="none here")


def test_a_device_without_sources_gives_every_source_its_reason(tmp_path):
    found = choose_source(tmp_path)
    assert isinstance(found, Unavailable)
    for name in ("INA", "PMIC", "RAPL", "power_supply"):
        assert name in found.reason


def test_a_source_that_fails_makes_way_for_the_next(tmp_path):
    write_vcgencmd(tmp_path, "exit 1")
    write_tree(tmp_path, RAPL, "sys/class/powercap")
    assert isinstance(choose_source(tmp_path), RaplSampler)
    write_tree(tmp_path, INA226, "sys/class/hwmon")
    assert isinstance(choose_source(tmp_path), InaSampler)
