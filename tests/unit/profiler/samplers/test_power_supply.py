from __future__ import annotations

import pytest

from ferryman.profiler.samplers import power_supply
from ferryman.profiler.samplers.power_supply import BatterySampler
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import BATTERY, write_tree

SUPPLY = "sys/class/power_supply"


@pytest.mark.parametrize("current", ["-500000\n", "500000\n"])
def test_a_discharging_battery_gives_watts_whatever_sign_its_driver_uses(tmp_path, current):
    sampler = power_supply.open_source(write_tree(tmp_path, BATTERY | {"BAT0/current_now": current}, SUPPLY))
    assert isinstance(sampler, BatterySampler), sampler
    assert sampler.read() == pytest.approx(2.0)


def test_power_now_is_preferred(tmp_path):
    sampler = power_supply.open_source(write_tree(tmp_path, BATTERY | {"BAT0/power_now": "2500000\n"}, SUPPLY))
    assert isinstance(sampler, BatterySampler)
    assert sampler.read() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"BAT0/status": "Charging\n"}, "the battery is charging; unplug"),
        ({"BAT0/current_now": "500\n"}, "unit uncertain"),
        ({"BAT0/voltage_now": "soon\n"}, "expected an integer, found 'soon'"),
    ],
)
def test_a_battery_that_tells_nothing_is_unavailable(tmp_path, change, reason):
    found = power_supply.open_source(write_tree(tmp_path, BATTERY | change, SUPPLY))
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_the_battery_of_a_mouse_feeds_nothing_here(tmp_path):
    only_mouse = {name: text for name, text in BATTERY.items() if name.startswith("hid")}
    found = power_supply.open_source(write_tree(tmp_path, only_mouse, SUPPLY))
    assert found == Unavailable(reason="power_supply: no battery")
