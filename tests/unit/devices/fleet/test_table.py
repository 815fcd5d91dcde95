"""Rows to choose from, and the numbers in them."""

from __future__ import annotations

import csv
import io

import pytest
from msgspec.structs import replace

from ferryman.devices.fleet.metrics import METRICS
from ferryman.devices.fleet.table import Row, Table
from ferryman.runtime.contracts.energy import Energy, EnergySource, EnergyWindow
from ferryman.runtime.contracts.errors import CallerError, WireError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from tests.support.fleet import LITERT, NO, measured
from tests.support.packages import write_tiny_package

SENSORLESS = Unavailable(reason="no sensor")


@pytest.fixture
def found(tmp_path) -> Measurement:
    spec = ProfileSpec(variants=("fp32-tflite",), interpreters=(LITERT,))
    return measured(write_tiny_package(tmp_path / "p.ferry"), spec, 2.0)


def row(candidate: str, latency: float | Unavailable, energy: float | Unavailable = SENSORLESS) -> Row:
    values = {"latency_ms": latency, "energy_mj": energy}
    return Row(candidate=candidate, number=0, device="pi", variant="fp32", interpreter=LITERT, values=values)


CRASH = WireError(party="runtime-crash", message="killed by\x1b[31m signal 11")
FAILED = replace(row("c", Unavailable(reason=CRASH.message)), variant=None, interpreter=None, error=CRASH)
TABLE = Table(metrics=("latency_ms", "energy_mj"), rows=(row("a", 3.0), row("b", 1.25), FAILED))


def test_the_best_has_the_least():
    assert TABLE.best("latency_ms").candidate == "b"


def test_the_best_of_what_nobody_has_says_why():
    with pytest.raises(CallerError, match="no candidate has energy_mj: no sensor"):
        TABLE.best("energy_mj")


def test_the_best_of_what_was_not_asked_says_what_was():
    with pytest.raises(CallerError, match="metric 'memory_mb' was not asked for; there are: latency_ms, energy_mj"):
        TABLE.best("memory_mb")


def test_within_keeps_what_is_known_to_be_within():
    assert [one.candidate for one in TABLE.within(latency_ms=3.0).rows] == ["a", "b"]
    assert [one.candidate for one in TABLE.within(latency_ms=2.9).rows] == ["b"]
    assert TABLE.within(latency_ms=9.0, energy_mj=9.0).rows == ()


def test_the_rows_of_one_candidate():
    assert [one.candidate for one in TABLE.of("a").rows] == ["a"]


def test_json_brings_everything_back(found):
    table = replace(TABLE, rows=(*TABLE.rows, replace(row("d", 2.0), measurement=found, cached=True)))
    assert Table.from_json(table.to_json()) == table


def test_other_json_is_no_table():
    with pytest.raises(CallerError, match="no table"):
        Table.from_json('{"rows": 1}')


def test_csv_has_an_empty_cell_for_what_could_not_be_had_and_says_why():
    lines = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [line["latency_ms"] for line in lines] == ["3.0", "1.25", ""]
    assert [line["energy_mj"] for line in lines] == ["", "", ""]
    assert lines[0]["error"] == "energy_mj: no sensor"
    assert lines[2]["error"].startswith("runtime-crash: killed by")


def test_as_text_columns_are_aligned_and_steer_no_terminal():
    lines = str(TABLE).splitlines()
    assert lines[0].split() == ["candidate", "device", "variant", "interpreter", "latency_ms", "energy_mj"]
    assert [line.index("pi") for line in lines[1:]] == [lines[0].index("device")] * 3
    assert "1.25" in lines[2]
    assert "\x1b" not in str(TABLE)
    assert "runtime-crash: killed by?[31m signal 11" in lines[3]


def test_every_metric_of_a_measurement(found):
    source = EnergySource(name="s", rails=(), unit="W", resolution=NO, renewed_s=NO, uncertainty=NO)
    active = EnergyWindow(energy_j=20.0, window_s=10.0, runs=1000, times_ns=(0, 1), values=(2.0, 2.0))
    idle = EnergyWindow(energy_j=5.0, window_s=10.0, runs=0, times_ns=(0, 1), values=(0.5, 0.5))
    full = replace(found, energy=Energy(source=source, active=active, idle=idle, error_j=0.0, net_error_j=0.0))
    starts = tuple(replace(start, busy=busy) for start, busy in zip(full.starts, (0.25, 0.5), strict=True))
    values = {name: metric(replace(full, starts=starts)) for name, metric in METRICS.items()}
    error = values.pop("latency_error")
    assert values == {
        "latency_ms": 2.0,
        "latency_p90_ms": pytest.approx(2.0005),
        "latency_p99_ms": pytest.approx(2.00095),
        "load_ms": 3.0,
        "first_run_ms": 4.0,
        "cold_start_ms": 10.0,
        "memory_mb": 30.0,
        "model_memory_mb": 5.0,
        "energy_mj": pytest.approx(20.0),
        "energy_net_mj": pytest.approx(15.0),
        "artifact_kb": pytest.approx(found.artifact_bytes / 1e3),
        "busy": 0.5,
    }
    assert error == 0  # both processes have one median


def test_what_was_not_measured_is_unavailable_with_its_reason(found):
    bare = replace(found, memory=replace(found.memory, start=NO, peak_rss_bytes=NO), starts=found.starts[:1])
    values = {name: metric(bare) for name, metric in METRICS.items()}
    assert {name for name, value in values.items() if isinstance(value, Unavailable)} == {
        "memory_mb",
        "model_memory_mb",
        "energy_mj",
        "energy_net_mj",
        "busy",
        "latency_error",
    }
    assert METRICS["energy_mj"](replace(found, energy=SENSORLESS)) == SENSORLESS
