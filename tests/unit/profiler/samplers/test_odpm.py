from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.samplers import odpm
from ferryman.profiler.samplers.odpm import OdpmSampler, parse_rails_uj
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import ODPM, ODPM0, ODPM1, break_file, forbid, write_tree

IIO = "sys/bus/iio/devices"


def opened(root: Path) -> OdpmSampler:
    sampler = odpm.open_source(root)
    assert isinstance(sampler, OdpmSampler), sampler
    return sampler


def moved(text: str, time_ms: int, **more_uj: int) -> str:
    """The same rails later."""
    lines = [f"t={time_ms}"]
    for line in text.splitlines()[1:]:
        head, _, value = line.rpartition(" ")
        rail = head.partition("[")[2].partition("]")[0]
        lines.append(f"{head} {int(value) + more_uj.get(rail, 0)}")
    return "\n".join(lines) + "\n"


def test_the_recorded_text_is_read_by_name():
    time_ms, rails = parse_rails_uj(ODPM0)
    assert time_ms == 412006
    assert len(rails) == 8
    assert rails["S2M_VDD_CPUCL2"] == 32945982


def test_rails_of_both_devices_add_up_on_the_phones_own_clock(tmp_path):
    root = write_tree(tmp_path, ODPM, IIO)
    sampler = opened(root)
    assert len(sampler.source.rails) == 10
    assert "S2M_VDD_CPUCL2 (CPU)" in sampler.source.rails
    assert "S2S_VDD_G3D" in sampler.source.rails
    assert sampler.read() == ()  # nothing new yet
    write_tree(root, {"iio:device0/energy_value": moved(ODPM0, 412506, S2M_VDD_CPUCL2=900_000)}, IIO)
    ((first_ns, first_j),) = sampler.read()
    write_tree(root, {"iio:device0/energy_value": moved(ODPM0, 413506, S2M_VDD_CPUCL2=2_900_000)}, IIO)
    write_tree(root, {"iio:device1/energy_value": moved(ODPM1, 413506, S2S_VDD_G3D=500_000)}, IIO)
    ((last_ns, last_j),) = sampler.read()
    assert last_ns - first_ns == 1_000_000_000
    assert first_j == pytest.approx(0.9)
    assert last_j - first_j == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (moved(ODPM0, 412506, S1M_VDD_MIF=-1), "S1M_VDD_MIF went back"),
        (moved(ODPM0, 1000), "its clock went back"),
        (ODPM0.replace("S10M_VDD_TPU", "S10M_VDD_NPU"), "expected rails"),
        ("t=412506\n", "expected `t=` and rails"),
        ("", "empty"),
    ],
)
def test_counters_that_make_no_sense_are_errors(tmp_path, text, reason):
    root = write_tree(tmp_path, ODPM, IIO)
    sampler = opened(root)
    write_tree(root, {"iio:device0/energy_value": text}, IIO)
    with pytest.raises(SensorError, match=reason):
        sampler.read()


def test_a_monitor_that_goes_away_is_an_error(tmp_path):
    root = write_tree(tmp_path, ODPM, IIO)
    sampler = opened(root)
    break_file(root / IIO / "iio:device0/energy_value")
    with pytest.raises(SensorError, match="Input/output error"):
        sampler.read()


def test_what_we_may_not_read_is_unavailable(tmp_path, monkeypatch):
    root = write_tree(tmp_path, ODPM, IIO)
    forbid(monkeypatch, "energy_value")
    found = odpm.open_source(root)
    assert isinstance(found, Unavailable)
    assert "energy_value: Permission denied" in found.reason


def test_a_device_without_a_monitor_says_so(tmp_path):
    assert odpm.open_source(tmp_path) == Unavailable(reason="ODPM: no energy_value on this device")


@given(st.text() | st.lists(st.sampled_from([*ODPM0.splitlines(), "t=", "CH0(T=1)[], 1", "t=-1"])).map("\n".join))
def test_garbage_is_rails_or_a_sensor_error(text):
    try:
        time_ms, rails = parse_rails_uj(text)
    except SensorError:
        return
    assert time_ms >= 0
    assert rails
    assert all(value >= 0 for value in rails.values())
