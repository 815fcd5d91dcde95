from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from ferryman.profiler import energy
from ferryman.profiler.energy import choose_source, measure_energy
from ferryman.profiler.samplers.hwmon_ina import InaSampler
from ferryman.profiler.samplers.rapl import RaplSampler
from ferryman.runtime.contracts.energy import Energy, EnergySource
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from tests.support.undisturbed import undisturbed
from tests.support.virtual_time import (
    NO,
    RUN_S,
    SENSORS,
    Bench,
    Load,
    SyntheticSensor,
    VirtualTime,
    measured,
)
from tests.unit.profiler.trees import INA226, RAPL, write_tree, write_vcgencmd


def within(kind: str, seeds: range) -> tuple[int, int]:
    """In how many the true joules lie within the error bar, gross and net; in each they are within 1 %."""
    gross = net = 0
    for seed in seeds:
        found, bench, _ = measured(seed, **SENSORS[kind])
        assert isinstance(found, Energy), found
        assert found.gross_j == pytest.approx(bench.true_gross_j, rel=0.01), seed
        assert found.error_j < 0.02 * bench.true_gross_j
        assert found.net_j is not None
        assert found.net_error_j is not None
        gross += abs(found.gross_j - bench.true_gross_j) <= found.error_j
        net += abs(found.net_j - bench.true_net_j) <= found.net_error_j
    return gross, net


def test_a_known_energy_is_found_within_one_per_cent_and_within_the_error_bar():
    seeds = range(12)
    found = {kind: within(kind, seeds) for kind in SENSORS}
    assert sum(gross for gross, _ in found.values()) >= 0.95 * len(found) * len(seeds), found
    assert sum(net for _, net in found.values()) >= 0.95 * len(found) * len(seeds), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", SENSORS)
def test_the_error_bar_holds_for_each_kind_of_sensor(kind):
    seeds = range(100, 200)
    gross, net = within(kind, seeds)
    assert gross >= 0.95 * len(seeds), gross
    assert net >= 0.95 * len(seeds), net


def test_readings_that_would_fall_in_step_with_the_load_are_taken_unevenly():
    """A sine at the rate of reading would look like a constant to even readings, anywhere between its ends."""
    inside = 0
    for seed in range(12):
        clock, rng = VirtualTime(), np.random.default_rng(seed)
        active = Load(rng, level_w=3.5, sine_w=1.0)
        active.hz = 50.0
        bench = Bench(clock, Load(rng, level_w=2.0), active)
        sensor = SyntheticSensor(bench, rng, "W")
        found = measure_energy(sensor, lambda b=bench: b.run(0.01), clock_ns=clock.clock_ns, wait=clock.wait)
        assert isinstance(found, Energy)
        assert found.gross_j == pytest.approx(bench.true_gross_j, rel=0.03)
        inside += abs(found.gross_j - bench.true_gross_j) <= found.error_j
    assert inside >= 11


@pytest.mark.parametrize("run_s", [0.0002, 0.3, 4.0])
@pytest.mark.parametrize("unit", ["W", "J"])
def test_runs_of_any_length_are_counted_whole(unit, run_s):
    found, bench, _ = measured(3, unit=unit, step=0.001, run_s=run_s, window_s=10.0, noise_w=0.02)
    assert isinstance(found, Energy), found
    assert found.gross_j == pytest.approx(bench.true_gross_j, rel=0.01)
    settling = 1 if unit == "W" and run_s > 0.001 else 6
    assert bench.runs - settling <= found.active.runs <= bench.runs + 0.02
    assert found.active.window_s >= 10.0
    assert found.idle.runs == 0


def test_a_record_says_where_its_joules_come_from():
    found, bench, sensor = measured(1, **SENSORS["noise"])
    assert isinstance(found, Energy)
    assert decode(encode(found), Energy) == found
    assert found.source == sensor.source
    assert found.active.rate_hz == pytest.approx(50, rel=0.1)
    assert found.active.times_ns[0] > 0
    assert found.net_j == pytest.approx(bench.true_net_j, rel=0.02)
    assert sensor.closed


def test_without_an_idle_window_there_is_no_net():
    found, _, _ = measured(1, idle_s=0.0, **SENSORS["noise"])
    assert isinstance(found, Energy)
    assert found.net_j is None
    assert found.net_error_j is None


def test_a_slow_source_is_given_the_time_for_ten_readings():
    found, bench, _ = measured(1, unit="W", noise_w=0.01, period_s=5.0)
    assert isinstance(found, Energy), found
    assert found.active.window_s > 50
    assert len(found.active.values) >= 10
    assert found.gross_j == pytest.approx(bench.true_gross_j, rel=0.01)


@pytest.mark.parametrize(("idle_s", "window_s"), [(10.0, 9.0), (2.0, 10.0)])
def test_a_short_window_is_unavailable_before_anything_runs(idle_s, window_s):
    found, bench, sensor = measured(1, idle_s=idle_s, window_s=window_s, unit="W")
    assert isinstance(found, Unavailable)
    assert found.reason.startswith(f"too short: {min(idle_s, window_s):g} s, expected at least 10 s")
    assert bench.runs == 0
    assert sensor.closed


def test_too_few_readings_are_too_short_too():
    found, _, _ = measured(1, unit="W", fails=[n for n in range(18, 2000) if n % 3], noise_w=0.1, period_s=0.7)
    assert isinstance(found, Unavailable)
    assert "too short: " in found.reason
    assert "readings" in found.reason


@pytest.mark.parametrize("fails", [(1, 2, 3), (100, 101, 102), (700, 701, 702)])
def test_a_sensor_that_is_unplugged_is_unavailable_at_once(fails):
    found, bench, sensor = measured(1, unit="W", noise_w=0.1, fails=fails)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("synthetic: ")
    assert "the sensor is gone" in found.reason
    assert sensor.closed
    assert bench.runs < 10 / RUN_S


def test_a_meter_of_someones_own_may_raise_anything():
    found = measure_by_power(lambda: 1 / 0)
    assert found == Unavailable(reason="told: ZeroDivisionError: division by zero")


def test_a_reading_that_fails_now_and_then_is_counted_and_bridged():
    found, bench, _ = measured(1, unit="W", noise_w=0.05, fails=range(7, 2000, 7))
    assert isinstance(found, Energy)
    assert found.active.failed > 50
    assert found.gross_j == pytest.approx(bench.true_gross_j, rel=0.01)


@pytest.mark.parametrize(
    ("watts", "reason"),
    [
        (0.0, "make no sense"),
        (-3.0, "a wrong sign or unit"),
        (3e-6, "make no sense"),
        (3e6, "make no sense"),
        (math.nan, "no number"),
        (math.inf, "no number"),
        (3.0, "stuck, or too coarse"),
    ],
)
def test_readings_that_make_no_sense_are_unavailable(watts, reason):
    found = measure_by_power(lambda: watts)
    assert isinstance(found, Unavailable)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("joules", "reason"),
    [(lambda n: 5.0, "stuck"), (lambda n: 100.0 - n, "went back"), (lambda n: float(n % 7), "went back")],
)
def test_counters_that_stick_or_go_back_are_unavailable(joules, reason):
    found = measure_by_power(joules, "J")
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def measure_by_power(value: Any, unit: str = "W") -> Energy | Unavailable:
    """Of a sensor that reads what it is told, whatever the load."""
    clock, rng = VirtualTime(), np.random.default_rng(0)
    bench = Bench(clock, Load(rng, level_w=2.0), Load(rng, level_w=3.5))
    sensor = SyntheticSensor(bench, rng, "W")
    sensor.source = EnergySource(name="told", rails=("all",), unit=unit, resolution=NO, renewed_s=NO, uncertainty=NO)
    readings = iter(range(10**6))
    sensor.read = lambda: ((clock.now_ns + 1, value(next(readings)) if unit == "J" else value()),)  # type: ignore[method-assign]
    return measure_energy(sensor, lambda: bench.run(RUN_S), clock_ns=clock.clock_ns, wait=clock.wait)


def test_what_a_run_raises_is_raised_and_the_source_is_closed():
    clock, rng = VirtualTime(), np.random.default_rng(0)
    bench = Bench(clock, Load(rng, level_w=2.0), Load(rng, level_w=3.5))
    sensor = SyntheticSensor(bench, rng, "W")
    before = set(threading.enumerate())

    def run() -> None:
        clock.sleep(RUN_S)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_energy(sensor, run, clock_ns=clock.clock_ns, wait=clock.wait)
    assert sensor.closed
    assert set(threading.enumerate()) <= before


def test_in_real_time_a_ramp_is_found(monkeypatch):
    """The real clock and thread: power rises by 10 W every second, so a wrong time would show."""
    monkeypatch.setattr(energy, "WINDOW_MIN_S", 0.4)

    def attempt() -> None:
        born_ns = time.perf_counter_ns()

        class Ramp:
            period_s, settle_s = 0.01, 0.0
            source = EnergySource(name="ramp", rails=("all",), unit="W", resolution=NO, renewed_s=NO, uncertainty=NO)

            def read(self):
                now_ns = time.perf_counter_ns()
                return ((now_ns, 1 + 10 * (now_ns - born_ns) / 1e9),)

            def close(self):
                pass

        ends: list[float] = []
        begins: list[float] = []

        def run() -> None:
            begins.append((time.perf_counter_ns() - born_ns) / 1e9)
            time.sleep(0.002)
            ends.append((time.perf_counter_ns() - born_ns) / 1e9)

        found = measure_energy(Ramp(), run, idle_s=0.5, window_s=0.5)
        assert isinstance(found, Energy), found
        a, b = begins[0], ends[-1]
        assert found.gross_j == pytest.approx((b - a + 5 * (b**2 - a**2)) / len(ends), rel=0.01)
        assert found.active.runs == len(ends)

    undisturbed(attempt)


def test_no_source_stays_unavailable():
    assert measure_energy(Unavailable(reason="none here"), lambda: None) == Unavailable(reason="none here")


def test_a_device_without_sources_gives_every_source_its_reason(tmp_path):
    found = choose_source(tmp_path)
    assert isinstance(found, Unavailable)
    for name in ("INA", "PMIC", "ODPM", "RAPL", "power_supply"):
        assert name in found.reason


def test_a_source_that_fails_makes_way_for_the_next(tmp_path):
    write_vcgencmd(tmp_path, "exit 1")
    write_tree(tmp_path, RAPL, "sys/class/powercap")
    assert isinstance(choose_source(tmp_path), RaplSampler)
    write_tree(tmp_path, INA226, "sys/class/hwmon")
    assert isinstance(choose_source(tmp_path), InaSampler)


def test_a_meter_that_is_named_takes_the_place_of_the_devices_own(tmp_path):
    write_tree(tmp_path, INA226, "sys/class/hwmon")
    found = choose_source(tmp_path, meter="serial:/dev/no-such-line")
    assert found == Unavailable(reason="/dev/no-such-line: No such file or directory")
    with pytest.raises(CallerError, match="no meter 'sextant:1'"):
        choose_source(tmp_path, meter="sextant:1")
