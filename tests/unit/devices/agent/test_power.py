from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from ferryman.devices.agent import power as power_module
from ferryman.devices.agent.power import PowerMeter
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource, EnergyWindow
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Unavailable
from tests.support.telemetry import until


class Meter:
    """Reads 5 W, or counts joules at 5 W."""

    period_s, settle_s = 0.001, 0.0

    def __init__(self, unit="W"):
        self.source = EnergySource(
            name="bench", rails=("all",), unit=unit, resolution=0.1, renewed_s=0.001, uncertainty=0.01
        )
        self.broken, self.closed = False, 0

    def read(self):
        if self.broken:
            raise SensorError("unplugged")
        now_ns = time.perf_counter_ns()
        return ((now_ns, 5.0 if self.source.unit == "W" else now_ns * 5e-9),)

    def close(self):
        self.closed += 1


@pytest.fixture
def running(monkeypatch):
    """Starts a PowerMeter that reads a given meter quickly."""
    stop = threading.Event()
    threads = []
    monkeypatch.setattr(power_module, "READ_S", 0.0)
    monkeypatch.setattr(power_module, "AGAIN_S", 0.02)

    def start(meter):
        monkeypatch.setitem(sys.modules, "a_bench_meter", SimpleNamespace(open_meter=lambda _: meter))
        one = PowerMeter("python:a_bench_meter?x")
        threads.append(threading.Thread(target=one.run, args=(stop,)))
        threads[-1].start()
        return one

    yield start
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("unit", ["W", "J"])
def test_power_is_the_mean_since_the_last_call(running, unit):
    one = running(Meter(unit))
    for _ in range(2):
        until(lambda: len(one._readings) > 20)
        found = one.take()
        assert isinstance(found, EnergyWindow)
        assert found.power_w == pytest.approx(5, rel=1e-6)


def test_too_few_readings_are_a_reason_and_no_number(running):
    one = running(Meter())
    until(lambda: one._source is not None)
    one.take()
    found = one.take()
    assert isinstance(found, Unavailable)
    assert "too short" in found.reason


def test_a_meter_that_fails_is_closed_said_once_and_tried_again(running, caplog):
    meter = Meter()
    one = running(meter)
    until(lambda: len(one._readings) > 0)
    meter.broken = True
    until(lambda: meter.closed > 2)
    assert one.take().reason in {"bench: unplugged", "meter python:a_bench_meter?x: unplugged"}
    meter.broken = False
    until(lambda: len(one._readings) > 20)
    assert isinstance(one.take(), EnergyWindow)


def test_a_meter_that_is_not_there_is_a_reason(running):
    one = running(Unavailable(reason="no such port"))
    until(lambda: "no such port" in one.take().reason)


def test_a_name_that_cannot_be_understood_is_the_callers_fault():
    with pytest.raises(CallerError, match="no meter"):
        PowerMeter("crystal:ball")
