"""A device that is too hot is waited for."""

from __future__ import annotations

import pytest

from ferryman.profiler.gate import WAIT_MAX_S, wait_until_cool
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import write_tree


class Cooling:
    """A zone that loses `per_s` degrees a second."""

    def __init__(self, root, from_c, per_s):
        self.root, self.now_c, self.per_s, self.now_s = root, from_c, per_s, 0.0
        self.sleep(0)

    def sleep(self, seconds):
        self.now_s += seconds
        self.now_c -= seconds * self.per_s
        zones = {"thermal_zone0": ("cpu", self.now_c), "thermal_zone1": ("battery", 20.0)}
        write_tree(
            self.root,
            {f"sys/class/thermal/{zone}/type": kind for zone, (kind, _) in zones.items()}
            | {f"sys/class/thermal/{zone}/temp": str(int(at * 1000)) for zone, (_, at) in zones.items()},
        )

    def wait(self, below_c):
        return wait_until_cool(below_c, self.root, sleep=self.sleep, clock=lambda: self.now_s)


def test_it_opens_below_the_temperature(tmp_path):
    gate = Cooling(tmp_path, 70.0, 0.5).wait(60.0)
    assert gate.opened
    assert gate.waited_s == pytest.approx(21)
    assert gate.temperature_c.value < 60
    assert gate.temperature_c.source == "thermal_zone0 cpu"


def test_a_cool_device_does_not_wait(tmp_path):
    assert Cooling(tmp_path, 40.0, 0.0).wait(60.0).waited_s == 0


def test_a_device_that_stays_hot_begins_after_the_longest_wait_and_says_so(tmp_path):
    gate = Cooling(tmp_path, 70.0, 0.0).wait(60.0)
    assert not gate.opened
    assert gate.waited_s == pytest.approx(WAIT_MAX_S, abs=1)
    assert gate.temperature_c.value == 70


def test_without_a_zone_there_is_nothing_to_wait_for(tmp_path):
    gate = wait_until_cool(60.0, tmp_path)
    assert not gate.opened
    assert isinstance(gate.temperature_c, Unavailable)
