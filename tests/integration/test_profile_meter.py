"""A profile with a meter beside the device: a process of its own finds it by its name and reads it."""

from __future__ import annotations

import itertools
import os

import pytest

from ferryman.profiler.runner import profile_package
from ferryman.runtime.contracts.energy import Energy, EnergyWindow, PowerModel
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.session import installed
from tests.support.packages import write_tiny_package
from tests.unit.profiler.samplers.test_serial_meter import Line

pytestmark = pytest.mark.skipif("ai-edge-litert" not in installed("tflite"), reason="ai-edge-litert is not installed")


@pytest.mark.slow
def test_a_meter_on_a_serial_line_is_read_by_the_process_that_runs(tmp_path):
    line, turn = Line(), itertools.count()
    line.print_every(0.05, lambda: b"5.02,%d\n" % (800 + next(turn) % 5))
    model = PowerModel(idle_w=1.0, core_w=2.0, source="this test")
    try:
        (found,) = profile_package(
            write_tiny_package(tmp_path / "tiny.ferry"),
            ProfileSpec(
                starts=1,
                runs=20,
                warmup_runs=5,
                interpreters=("ai-edge-litert",),
                meter=f"serial:{line.path}?unit=mW&column=2&period=0.05",
                estimate=model,
            ),
        )
    finally:
        line.unplug()
    assert isinstance(found.energy, Energy), found.energy
    assert isinstance(found.energy.idle, EnergyWindow)
    assert found.energy.active.power_w == pytest.approx(0.802, rel=0.002)
    assert found.energy.idle.power_w == pytest.approx(0.802, rel=0.002)
    assert abs(found.energy.net_j or 0.0) <= found.energy.net_error_j
    assert found.energy.active.runs > 1000
    assert found.energy.active.window_s >= 10
    assert found.energy_estimate is not None
    assert found.energy_estimate.model == model
    assert found.energy_estimate.gross_j > found.energy_estimate.net_j > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("time.sleep(10**6)", "bench: read() did not answer within 20 s"),
        ("sys.exit('no more')", "bench: SystemExit: no more"),
    ],
)
def test_a_meter_that_misbehaves_costs_the_energy_alone(tmp_path, monkeypatch, body, reason):
    (tmp_path / "bad_lab.py").write_text(f"""
import sys, time
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

NO = Unavailable(reason="not stated")

class Bad:
    period_s, settle_s = 0.1, 0.0
    source = EnergySource(name="bench", rails=("all",), unit="W", resolution=NO, renewed_s=NO, uncertainty=NO)
    def read(self):
        {body}
    def close(self):
        pass

def open_meter(text):
    return Bad()
""")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    (found,) = profile_package(
        write_tiny_package(tmp_path / "tiny.ferry"),
        ProfileSpec(starts=1, runs=20, warmup_runs=5, interpreters=("ai-edge-litert",), meter="python:bad_lab?x"),
    )
    assert found.energy == Unavailable(reason=reason)
    assert not isinstance(found.pipeline, Unavailable)
    assert len(found.starts) == 1
