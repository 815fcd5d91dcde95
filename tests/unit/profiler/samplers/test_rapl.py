from __future__ import annotations

from pathlib import Path

import pytest

from ferryman.profiler.samplers import rapl
from ferryman.profiler.samplers.rapl import RaplSampler
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import RAPL, write_tree

POWERCAP = "sys/class/powercap"


def opened(root: Path) -> RaplSampler:
    sampler = rapl.open_source(root)
    assert isinstance(sampler, RaplSampler), sampler
    return sampler


def set_counter(root: Path, zone: str, value: int) -> None:
    (root / POWERCAP / zone / "energy_uj").write_text(f"{value}\n")


def test_package_and_dram_count_and_what_holds_or_repeats_them_does_not(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    sampler = opened(root)
    assert sampler.rails == ("package-0", "package-0 dram")
    for zone, start in (
        ("intel-rapl:0", 17515587911),
        ("intel-rapl:0:0", 9 * 10**9),
        ("intel-rapl-mmio:0", 17515587911),
    ):
        set_counter(root, zone, start + 3_000_000)
    set_counter(root, "intel-rapl:0:1", 1_500_000)
    assert sampler.read() == pytest.approx(3.5)


def test_a_zone_listed_under_two_names_counts_once(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    (root / POWERCAP / "intel-rapl:7").symlink_to(root / POWERCAP / "intel-rapl:0")
    assert opened(root).rails == ("package-0", "package-0 dram")


def test_a_counter_that_wraps_goes_on_counting(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    set_counter(root, "intel-rapl:0", 262143328850 - 1_000_000)
    sampler = opened(root)
    set_counter(root, "intel-rapl:0", 500_000)
    assert sampler.read() == pytest.approx(1.5)
    set_counter(root, "intel-rapl:0", 700_000)
    assert sampler.read() == pytest.approx(1.7)


def test_a_counter_beyond_its_range_is_an_error_not_energy(tmp_path):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    sampler = opened(root)
    set_counter(root, "intel-rapl:0", 10**15)
    with pytest.raises(SensorError, match="does not follow"):
        sampler.read()


def test_a_counter_only_root_may_read_is_unavailable_with_the_reason(tmp_path, monkeypatch):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    real_open = Path.open

    def refuse(path: Path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    found = rapl.open_source(root)
    assert isinstance(found, Unavailable)
    assert "energy_uj: Permission denied" in found.reason


@pytest.mark.parametrize("zone_file", ["name", "energy_uj", "max_energy_range_uj"])
def test_an_io_error_is_unavailable(tmp_path, zone_file):
    root = write_tree(tmp_path, RAPL, POWERCAP)
    victim = root / POWERCAP / "intel-rapl:0" / zone_file
    victim.unlink()
    victim.symlink_to("/proc/self/mem")  # reading its first page gives EIO
    found = rapl.open_source(root)
    assert isinstance(found, Unavailable)
    assert "Input/output error" in found.reason


def test_no_powercap_is_unavailable(tmp_path):
    found = rapl.open_source(tmp_path)
    assert isinstance(found, Unavailable)
    assert "no package counter" in found.reason
