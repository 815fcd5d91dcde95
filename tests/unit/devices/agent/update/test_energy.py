"""A budget of energy is kept by what was measured, and by nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ferryman.devices.agent.update.energy import energy_of_both, golden_check
from ferryman.profiler.energy import choose_source
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.golden import check_golden
from ferryman.runtime.install import install, repick
from ferryman.runtime.session import installed
from ferryman.runtime.slots import SlotStore
from tests.support.packages import write_tiny_package, write_varied_package


@pytest.fixture
def package(tmp_path):
    return write_varied_package(tmp_path / "v.ferry", added=4.0)


def measuring(*joules):
    """A meter that finds these, one after the other, and runs what it is to measure."""
    left = list(joules)

    def measure(_source, run):
        run()
        found = left.pop(0)
        return found if isinstance(found, Unavailable) else SimpleNamespace(net_j=found)

    return measure, left


def test_without_a_budget_of_energy_nothing_is_measured():
    assert golden_check("largest-20ms") is check_golden
    with pytest.raises(CallerError, match="is not known"):
        golden_check("largest-5j")


def test_the_largest_within_a_budget_of_energy_is_picked(package, tmp_path):
    interpreters = len(installed("tflite"))
    measure, left = measuring(*[0.006] * interpreters, *[0.004] * interpreters)
    pick = "largest-10000ms-10000mb-5mj"
    done = install(package, tmp_path / "root", pick=pick, golden=golden_check(pick, measure=measure))
    assert done.active.variant == "small"
    assert {one.energy_j for one in done.active.measured if one.variant == "small"} == {0.004}
    assert not left


def test_what_breaks_another_budget_is_not_measured(package, tmp_path):
    measure, _ = measuring()
    pick = "largest-0.001ms-5mj"
    with pytest.raises(DeviceError, match=r"is within largest-0\.001ms-5mj on this device, and no energy was measured"):
        install(package, tmp_path / "root", pick=pick, golden=golden_check(pick, measure=measure))


def test_a_device_without_a_meter_keeps_to_no_budget_of_energy(package, tmp_path, caplog):
    install(package, tmp_path / "root", golden=lambda *_: ())
    measure, _ = measuring(*[Unavailable(reason="no meter")] * 4)
    with pytest.raises(DeviceError, match="no energy was measured here"):
        repick(tmp_path / "root", "fastest-5mj", golden=golden_check("fastest-5mj", measure=measure))
    assert "was not measured: no meter" in caplog.text
    assert SlotStore(tmp_path / "root").active().slot.pick == "first"


def test_a_trial_is_measured_beside_the_package_before(tmp_path, monkeypatch):
    for added in (1, 2):
        install(write_tiny_package(tmp_path / f"{added}.ferry", added=added), tmp_path / "root", golden=lambda *_: ())
    store = SlotStore(tmp_path / "root")
    measure, left = measuring(0.002, 0.001)
    nothing = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("ferryman.devices.agent.update.energy.choose_source", lambda **_: nothing)
    assert energy_of_both(store, store.read_state(), measure=measure) == (0.002, 0.001)
    assert not left


def test_without_a_meter_a_trial_is_not_measured(tmp_path):
    install(write_tiny_package(tmp_path / "1.ferry"), tmp_path / "root", golden=lambda *_: ())
    store = SlotStore(tmp_path / "root")
    measure, _ = measuring()
    if not isinstance(choose_source(), Unavailable):
        pytest.skip("this machine has a meter")
    assert energy_of_both(store, store.read_state(), measure=measure) == (None, None)
