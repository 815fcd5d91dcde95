from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.samplers import rapl
from ferryman.profiler.samplers.base import Unwrapped
from ferryman.profiler.samplers.rapl import RaplSampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import RAPL, break_file, forbid, write_tree

POWERCAP = "sys/class/powercap"
SPAN = 262143328850


def opened(root: Path) -> RaplSampler:
    sampler = rapl.open_source(root)
    assert isinstance(sampler, RaplSampler), sampler
    return sampler


def joules(sampler: RaplSampler) -> float:
    ((_, value),) = sampler.read()
    return value


def set_counter(root: Path, zone: str, value: int) -> None:
    (root / POWERCAP / zone / "energy_uj").write_text(f"{value}\n")


def test_package_and_dram_count_and_what_holds_or_repeats_them_does_not(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    sampler = opened(root)
    assert sampler.source.rails == ("package-0", "package-0 dram")
    for zone, start in (
        ("intel-rapl:0", 17515587911),
        ("intel-rapl:0:0", 9 * 10**9),
        ("intel-rapl-mmio:0", 17515587911),
    ):
        set_counter(root, zone, start + 3_000_000)
    set_counter(root, "intel-rapl:0:1", 1_500_000)
    assert joules(sampler) == pytest.approx(3.5)


def test_a_zone_listed_under_two_names_counts_once(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    (root / POWERCAP / "intel-rapl:7").symlink_to(root / POWERCAP / "intel-rapl:0")
    assert opened(root).source.rails == ("package-0", "package-0 dram")


def test_a_counter_that_wraps_goes_on_counting(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    set_counter(root, "intel-rapl:0", SPAN - 1_000_000)
    sampler = opened(root)
    set_counter(root, "intel-rapl:0", 500_000)
    assert joules(sampler) == pytest.approx(1.5)
    set_counter(root, "intel-rapl:0", 700_000)
    assert joules(sampler) == pytest.approx(1.7)


@pytest.mark.parametrize("value", [10**15, -5, 17515587911 - 1])
def test_a_counter_beyond_its_range_or_that_falls_is_an_error_not_energy(tmp_path, value):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    sampler = opened(root)
    set_counter(root, "intel-rapl:0", value)
    with pytest.raises(SensorError, match=r"does not follow|outside its range"):
        sampler.read()


@given(st.integers(2, 10**6), st.data())
def test_steps_of_less_than_half_a_span_add_up(span, data):
    first = data.draw(st.integers(0, span - 1))
    steps = data.draw(st.lists(st.integers(0, span // 2), max_size=20))
    counter, raw = Unwrapped("counter", span, first), first
    for step in steps:
        raw = (raw + step) % span
        counter.add(raw)
    assert counter.total == sum(steps)


def test_a_counter_only_root_may_read_is_unavailable_with_the_reason(tmp_path, monkeypatch):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    forbid(monkeypatch, "energy_uj")
    found = rapl.open_source(root)
    assert isinstance(found, Unavailable)
    assert "energy_uj: Permission denied" in found.reason


@pytest.mark.parametrize("zone_file", ["name", "energy_uj", "max_energy_range_uj"])
def test_an_io_error_is_unavailable(tmp_path, zone_file):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    break_file(root / POWERCAP / "intel-rapl:0" / zone_file)
    found = rapl.open_source(root)
    assert isinstance(found, Unavailable)
    assert "Input/output error" in found.reason


@pytest.mark.parametrize("span", ["0\n", "-1\n", "wide\n"])
def test_a_range_that_makes_no_sense_is_unavailable(tmp_path, span):
    found = rapl.open_source(write_tree(tmp_path, RAPL | {"intel-rapl:0/max_energy_range_uj": span}, POWERCAP))
    assert isinstance(found, Unavailable)
    assert "max_energy_range_uj" in found.reason


def test_a_counter_that_goes_away_is_an_error(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    sampler = opened(root)
    (root / POWERCAP / "intel-rapl:0/energy_uj").unlink()
    with pytest.raises(SensorError, match="No such file"):
        sampler.read()


def test_no_powercap_is_unavailable(tmp_path):
    found = rapl.open_source(tmp_path)
    assert isinstance(found, Unavailable)
    assert "no package counter" in found.reason


@given(st.dictionaries(st.sampled_from(sorted(RAPL)), st.binary(max_size=30)))
def test_any_bytes_are_a_reading_or_a_reason(tmp_path_factory, changes):
    found = rapl.open_source(write_tree(tmp_path_factory.mktemp("rapl"), {**RAPL, **changes}, POWERCAP))
    assert isinstance(found, Unavailable) or joules(found) >= 0
