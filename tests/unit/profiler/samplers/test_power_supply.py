from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.samplers import power_supply
from ferryman.profiler.samplers.power_supply import BatterySampler, Properties
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import BATTERY, PHONE_BATTERY, break_file, forbid, write_tree

SUPPLY = "sys/class/power_supply"


def opened(root: Path) -> BatterySampler:
    sampler = power_supply.open_source(root)
    assert isinstance(sampler, BatterySampler), sampler
    return sampler


def watts(sampler: BatterySampler) -> float:
    ((_, value),) = sampler.read()
    return value


@pytest.mark.parametrize(("current", "sign"), [("-500000\n", "negative"), ("500000\n", "positive")])
def test_a_discharging_battery_gives_watts_whatever_sign_its_driver_uses(tmp_path, current, sign):
    sampler = opened(write_tree(tmp_path, BATTERY | {"BAT0/current_now": current}, SUPPLY))
    assert watts(sampler) == pytest.approx(2.0)
    assert f"current_now, {sign} while discharging" in sampler.source.note


def test_power_now_is_preferred(tmp_path):
    sampler = opened(write_tree(tmp_path, BATTERY | {"BAT0/power_now": "2500000\n"}, SUPPLY))
    assert watts(sampler) == pytest.approx(2.5)
    assert sampler.source.note.startswith("power_now, positive")


def test_a_power_now_that_cannot_be_read_makes_way_for_the_current(tmp_path):
    root = write_tree(tmp_path, BATTERY | {"BAT0/power_now": "1\n"}, SUPPLY)
    break_file(root / SUPPLY / "BAT0/power_now")
    assert watts(opened(root)) == pytest.approx(2.0)


def test_a_small_current_is_taken_for_milliamperes_and_called_uncertain(tmp_path):
    sampler = opened(write_tree(tmp_path, BATTERY | {"BAT0/current_now": "-500\n"}, SUPPLY))
    assert watts(sampler) == pytest.approx(2.0)
    assert "unit uncertain: taken for mA" in sampler.source.note


class Gauge:
    """A battery whose current and counter run with a clock of their own: (reported, true) microamperes."""

    def __init__(self, reported: int, true_ua: int, step_uah: int = 1000, counter: str = "charge_counter") -> None:
        self.now_ns, self.reported, self.true_ua, self.step_uah = 0, reported, true_ua, step_uah
        self.counter = counter

    def fetch(self) -> Properties:
        left_uah = 3_000_000 - self.true_ua * self.now_ns // 3_600_000_000_000
        texts = {
            "status": "Discharging",
            "current_now": str(self.reported),
            "voltage_now": "4000000",
            self.counter: str(left_uah // self.step_uah * self.step_uah),
        }

        def get(name: str) -> str:
            if name not in texts:
                raise SensorError(f"{name}: No such file or directory")
            return texts[name]

        return get

    def sampler(self) -> BatterySampler:
        return BatterySampler("gauge", self.fetch, clock_ns=lambda: self.now_ns)

    def let_run(self, sampler: BatterySampler, seconds: float) -> float:
        value = 0.0
        for _ in range(round(seconds / 0.5)):
            self.now_ns += 500_000_000
            value = watts(sampler)
        return value


@pytest.mark.parametrize("counter", ["charge_counter", "charge_now"])
@pytest.mark.parametrize(("reported", "unit"), [(-900_000, "uA"), (900, "mA")])
def test_the_unit_is_checked_against_the_charge_that_left(reported, unit, counter):
    gauge = Gauge(reported, 900_000, counter=counter)
    sampler = gauge.sampler()
    assert "unit uncertain" in sampler.source.note
    assert gauge.let_run(sampler, 20) == pytest.approx(3.6)
    assert f"unit {unit}, checked: the counter fell by 4,000 uAh" in sampler.source.note


@pytest.mark.parametrize(
    ("reported", "true_ua"), [(-900_000, 900), (900, 900), (-20_000, 20_000_000), (-900_000, -900_000)]
)
def test_a_current_that_contradicts_the_counter_is_an_error(reported, true_ua):
    gauge = Gauge(reported, true_ua, step_uah=1 if abs(true_ua) < 1000 else 1000)
    with pytest.raises(SensorError, match="unit uncertain: current_now adds up to"):
        gauge.let_run(gauge.sampler(), 60)


def test_a_counter_that_stands_still_settles_nothing():
    gauge = Gauge(-900_000, 900_000, step_uah=50_000)
    sampler = gauge.sampler()
    gauge.let_run(sampler, 20)
    assert "unit uncertain: taken for uA by its size, and no counter moved" in sampler.source.note


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"BAT0/status": "Charging\n"}, "the battery is charging; unplug"),
        ({"BAT0/status": "Not charging\n"}, "the battery is not charging; unplug"),
        ({"BAT0/status": "Full\n"}, "the battery is full"),
        ({"BAT0/status": ""}, "status: empty"),
        ({"BAT0/current_now": "0\n"}, "current_now is 0"),
        ({"BAT0/current_now": "-0.5 A\n"}, "expected an integer, found '-0.5 A'"),
        ({"BAT0/voltage_now": "soon\n"}, "expected an integer, found 'soon'"),
        ({"BAT0/voltage_now": "4000\n"}, "no battery's microvolts; unit uncertain"),
        ({"BAT0/voltage_now": "-4000000\n"}, "no battery's microvolts"),
    ],
)
def test_a_battery_that_tells_nothing_is_unavailable(tmp_path, change, reason):
    found = power_supply.open_source(write_tree(tmp_path, BATTERY | change, SUPPLY))
    assert isinstance(found, Unavailable)
    assert reason in found.reason


@pytest.mark.parametrize("file", ["type", "status", "current_now", "voltage_now"])
def test_an_io_error_is_unavailable(tmp_path, file):
    root = write_tree(tmp_path, PHONE_BATTERY, SUPPLY)
    break_file(root / SUPPLY / "battery" / file)
    found = power_supply.open_source(root)
    assert isinstance(found, Unavailable)
    assert "Input/output error" in found.reason


def test_what_we_may_not_read_is_unavailable(tmp_path, monkeypatch):
    root = write_tree(tmp_path, PHONE_BATTERY, SUPPLY)
    forbid(monkeypatch, "current_now")
    found = power_supply.open_source(root)
    assert isinstance(found, Unavailable)
    assert "current_now: Permission denied" in found.reason


def test_a_charger_that_is_plugged_in_is_an_error(tmp_path):
    root = write_tree(tmp_path, PHONE_BATTERY, SUPPLY)
    sampler = opened(root)
    assert watts(sampler) == pytest.approx(0.8125 * 3.815175)
    write_tree(tmp_path, {"battery/status": "Charging\n"}, SUPPLY)
    with pytest.raises(SensorError, match="unplug the device"):
        sampler.read()


def test_a_ups_hat_is_a_battery_too(tmp_path):
    assert watts(opened(write_tree(tmp_path, BATTERY | {"BAT0/type": "UPS\n"}, SUPPLY))) == pytest.approx(2.0)


def test_the_battery_of_a_mouse_feeds_nothing_here(tmp_path):
    only_mouse = {name: text for name, text in BATTERY.items() if name.startswith("hid")}
    found = power_supply.open_source(write_tree(tmp_path, only_mouse, SUPPLY))
    assert found == Unavailable(reason="power_supply: no battery")


@given(st.dictionaries(st.sampled_from([*BATTERY, "BAT0/power_now", "BAT0/charge_now"]), st.binary(max_size=30)))
def test_any_bytes_are_a_reading_or_a_reason(tmp_path_factory, changes):
    found = power_supply.open_source(write_tree(tmp_path_factory.mktemp("bat"), {**BATTERY, **changes}, SUPPLY))
    assert isinstance(found, Unavailable) or watts(found) >= 0
