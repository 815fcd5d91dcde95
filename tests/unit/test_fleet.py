"""A search's question to a fleet: packages and models in, a table out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ferryman import Fleet
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import ProfileSpec
from tests.support.fleet import BENCH, LITERT, LOCAL, STATE, Devices, measured
from tests.support.packages import write_tiny_package

QUICK = ProfileSpec(runs=20, starts=1, interpreters=(LITERT,))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FERRYMAN_DEVICES", str(tmp_path / "no-devices.toml"))


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)


def packages(folder: Path, count: int = 2) -> list[Path]:
    return [write_tiny_package(folder / f"p{n}.ferry", added=n + 1.0) for n in range(count)]


def test_packages_are_measured_for_real_and_remembered(tmp_path):
    fleet = Fleet()
    metrics = ("latency_ms", "memory_mb", "energy_mj")
    first = fleet.measure(packages(tmp_path, 1), "local", metrics, spec=QUICK)
    (row,) = first.rows
    assert row.error is None
    assert 0 < row["latency_ms"] < 100
    assert 10 < row["memory_mb"] < 1000
    assert row.measurement is not None
    assert row.measurement.starts[0].samples.count == 20

    (again,) = Fleet().measure(packages(tmp_path, 1), "local", metrics, spec=QUICK).rows
    assert again.cached
    assert again.measurement == row.measurement


def test_models_are_converted_and_one_that_is_refused_is_a_row():
    devices = Devices()
    devices.measure = lambda package, _, spec: measured(package, spec, package.stat().st_size / 1e6)
    torch.manual_seed(0)
    wide, narrow, training = Net(256).eval(), Net(4).eval(), Net(4).train()
    heard = []
    fleet = Fleet(hands=devices.hands)
    table = fleet.measure(
        {"wide": wide, "narrow": (narrow, (torch.randn(1, 8),)), "training": training},
        inputs=(torch.randn(1, 8),),
        to=("tflite",),
        spec=ProfileSpec(interpreters=(LITERT,)),
        progress=heard.append,
    )
    assert [row.candidate for row in table.rows] == ["wide", "narrow", "training"]
    assert table.best("latency_ms").candidate == "narrow"
    (failed,) = table.failed
    assert failed.candidate == "training"
    assert failed.error is not None
    assert failed.error.party == "model"
    assert heard[0] == "converting wide, 1/3"


def test_the_same_model_under_another_name_is_not_measured_again():
    devices = Devices()
    fleet = Fleet(hands=devices.hands)
    torch.manual_seed(0)
    model, example = Net(4).eval(), (torch.zeros(1, 8),)
    for name in ("a", "b"):
        fleet.measure({name: (model, example)}, to=("tflite",), spec=ProfileSpec(interpreters=(LITERT,)))
    assert devices.count("profile") == 1


def test_candidates_without_names_are_told_apart(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    table = Fleet(hands=Devices().hands).measure(
        [*packages(tmp_path), *packages(other, 1)], spec=ProfileSpec(interpreters=(LITERT,))
    )
    assert [row.candidate for row in table.rows] == ["p0 0", "p1", "p0 2"]


def test_devices_are_named_or_given(tmp_path):
    devices = Devices()
    devices.state["shed"] = STATE
    file = tmp_path / "devices.toml"
    file.write_text('[shed]\nhost = "shed.lan"\nuser = "pi"\n')
    fleet = Fleet(file, hands=devices.hands)
    spec = ProfileSpec(interpreters=(LITERT,))
    table = fleet.measure(packages(tmp_path, 1), ["shed", LOCAL, BENCH], spec=spec)
    assert [row.device for row in table.rows] == ["shed", "local", "bench"]
    assert not table.failed


def test_a_device_that_is_not_in_the_file_is_the_callers_fault(tmp_path):
    with pytest.raises(CallerError, match="no device 'attic'; there are: local"):
        Fleet().measure(packages(tmp_path), "attic")


@pytest.mark.parametrize("candidates", [[], {}, "one.ferry", [3], [nn.Linear(1, 1)], [(3, ())]])
def test_what_is_no_candidate_is_the_callers_fault(candidates):
    with pytest.raises(CallerError, match="candidate"):
        Fleet().measure(candidates)


def test_a_metric_that_is_not_known_is_said_before_anything_is_converted():
    with pytest.raises(CallerError, match="no metric 'flops'"):
        Fleet().measure([(nn.Linear(1, 1), ())], metrics=("flops",), progress=pytest.fail)
