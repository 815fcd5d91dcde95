from __future__ import annotations

import time

import pytest

from ferryman.profiler.estimate import MODELS, estimate_energy, power_model
from ferryman.runtime.contracts.energy import Energy, EnergyEstimate, PowerModel
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import decode, encode

MODEL = PowerModel(idle_w=2.0, core_w=1.5, source="this test")


def test_joules_follow_from_time_and_processor_time():
    wall, cpu = iter([0, 600_000_000, 1_200_000_000]), iter([0, 2_400_000_000])
    found = estimate_energy(lambda: None, MODEL, window_s=1.0, clock_ns=lambda: next(wall), cpu_ns=lambda: next(cpu))
    assert found.runs == 2
    assert found.gross_j == pytest.approx((2.0 * 1.2 + 1.5 * 2.4) / 2)
    assert found.net_j == pytest.approx(1.5 * 2.4 / 2)


def test_a_process_that_sleeps_takes_next_to_nothing_beyond_idle():
    asleep = estimate_energy(lambda: time.sleep(0.01), MODEL, window_s=0.2)
    busy = estimate_energy(lambda: sum(range(100_000)), MODEL, window_s=0.2)
    assert asleep.net_j / asleep.gross_j < 0.3
    assert busy.cpu_s / busy.window_s > 2 * asleep.cpu_s / asleep.window_s


def test_an_estimate_never_passes_for_a_measurement():
    estimate = EnergyEstimate(model=MODEL, window_s=1.0, cpu_s=1.0, runs=1)
    assert decode(encode(estimate), EnergyEstimate) == estimate
    assert not isinstance(estimate, Energy)
    with pytest.raises(ValueError, match="energy_estimate"):
        decode(encode(estimate), Energy)


def test_no_profile_estimates_unasked():
    assert ProfileSpec().estimate is None


def test_a_model_is_of_the_table_or_of_the_user():
    assert power_model("raspberry-pi-4b") is MODELS["raspberry-pi-4b"]
    assert power_model("1.5,0.25") == PowerModel(idle_w=1.5, core_w=0.25, source="the user")
    assert all(model.source for model in MODELS.values())


@pytest.mark.parametrize("name", ["", "pi", "1", "1,2,3", "-1,1", "nan,1", "1,inf"])
def test_no_model_is_the_callers_error(name):
    with pytest.raises(CallerError, match="power model"):
        power_model(name)
