"""Meters that block, raise, and state nonsense: the energy is unavailable, and says whose fault it is."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler import energy, meter
from ferryman.profiler.energy import choose_source, measure_energy
from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import power_supply
from ferryman.profiler.samplers.guard import stated
from ferryman.profiler.samplers.pi_pmic import open_source as open_pmic
from ferryman.profiler.sysfs import SensorError, read_text
from ferryman.runtime.contracts.energy import Energy, EnergySource
from ferryman.runtime.contracts.record import Unavailable, encode
from tests.support.virtual_time import NO
from tests.unit.profiler.trees import BATTERY, INA226, write_tree

SOURCE = EnergySource(name="bench", rails=("all",), unit="W", resolution=NO, renewed_s=NO, uncertainty=NO)


class Meter:
    """A good one, which tests spoil."""

    def __init__(self, **parts: Any) -> None:
        self.period_s, self.settle_s, self.source = 0.002, 0.0, SOURCE
        self.reads, self.closed = itertools.count(), False
        vars(self).update(parts)

    def read(self) -> Any:
        return ((time.perf_counter_ns(), 2.0 + 0.01 * (next(self.reads) % 2)),)

    def close(self) -> None:
        self.closed = True


def from_third(do: Callable[[], object]) -> Callable[[], object]:
    """A `read` that is good twice, and then does that."""
    good, reads = Meter(), itertools.count()
    return lambda: good.read() if next(reads) < 2 else do()


def stating(**fields: Any) -> Meter:
    return Meter(source=msgspec.structs.replace(SOURCE, **fields))


def throw(error: BaseException) -> Callable[[], object]:
    def read() -> object:
        raise error

    return read


def measure(sampler: Any) -> Energy | Unavailable:
    return measure_energy(sampler, lambda: time.sleep(0.001), idle_s=0.2, window_s=0.2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(energy, "WINDOW_MIN_S", 0.1)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(energy, "ANSWER_S", 1.0)
    monkeypatch.setattr(meter, "OPEN_S", 1.0)


@pytest.fixture
def lab(monkeypatch):
    def make(open_it: Callable[[str], object]) -> Any:
        module = types.ModuleType("my_lab")
        module.open_meter = open_it  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "my_lab", module)
        return open_meter("python:my_lab?3")

    return make


def test_a_good_meter_is_measured():
    sampler = Meter()
    found = measure(sampler)
    assert isinstance(found, Energy), found
    assert sampler.closed


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "name")
    with pytest.raises(SensorError, match="name: no regular file"):
        read_text(tmp_path / "name")
    (tmp_path / "dev").mkdir()
    os.mkfifo(tmp_path / "dev/vcio")
    assert isinstance(open_pmic(tmp_path), Unavailable)


def test_a_device_node_is_refused(tmp_path):
    (tmp_path / "name").symlink_to("/dev/zero")
    with pytest.raises(SensorError, match="no regular file"):
        read_text(tmp_path / "name")


@pytest.mark.parametrize("reads", [0, 2, 25])
def test_a_meter_that_blocks_is_left_behind(hasty, reads):
    release, good, count = threading.Event(), Meter(), itertools.count()

    def read() -> object:
        if next(count) >= reads:
            release.wait(60)
        return good.read()

    found = measure(Meter(read=read))
    release.set()
    assert found == Unavailable(reason="bench: read() did not answer within 1 s")


def test_a_meter_that_blocks_when_it_is_asked_or_closed_is_left_behind(hasty):
    release = threading.Event()

    class Slow(Meter):
        source = property(lambda _: release.wait(60))  # type: ignore[assignment]

        def __init__(self) -> None:
            self.period_s, self.settle_s = 0.01, 0.0

    found = [measure(Slow()), measure(Meter(close=lambda: release.wait(60)))]
    release.set()
    assert found == [
        Unavailable(reason="meter Slow: what it states did not answer within 1 s"),
        Unavailable(reason="bench: close() did not answer within 1 s"),
    ]


def test_a_source_of_the_device_that_blocks_makes_way_for_the_next(hasty, tmp_path, monkeypatch):
    write_tree(tmp_path, BATTERY, "sys/class/power_supply")
    release = threading.Event()

    def open_source(_root):
        release.wait(60)

    monkeypatch.setattr(energy, "SOURCES", (open_source, power_supply.open_source))
    assert isinstance(choose_source(tmp_path), power_supply.BatterySampler)
    monkeypatch.setattr(energy, "SOURCES", (open_source,))
    found = choose_source(tmp_path)
    release.set()
    assert isinstance(found, Unavailable)
    assert found.reason.endswith("did not answer within 1 s")


def flood(how_many: int | None) -> Callable[[], object]:
    def read() -> object:
        begin_ns = time.perf_counter_ns()
        numbers = itertools.count() if how_many is None else range(how_many)
        return ((begin_ns + n, 2.0) for n in numbers)

    return read


@pytest.mark.parametrize("how_many", [60_000, None])
def test_a_meter_that_floods_is_given_up(how_many):
    found = measure(Meter(read=flood(how_many)))
    assert isinstance(found, Unavailable)
    assert "bench: " in found.reason
    assert "more than 100,000 readings in a window; have the meter average them" in found.reason


@pytest.mark.parametrize("error", [ZeroDivisionError("1/0"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("begin", [throw, lambda error: from_third(throw(error))], ids=["at once", "in the window"])
def test_whatever_read_raises_is_a_reading_that_failed(error, begin):
    sampler = Meter(read=begin(error))
    found = measure(sampler)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("bench: ")
    assert type(error).__name__ in found.reason
    assert sampler.closed


@pytest.mark.parametrize(
    "readings",
    [None, 3, [3.0], [(1.5, 2.0)], [("now", 2.0)], [(1, "2 W")], [(-1, 2.0)], [(1 << 80, 2.0)], [(1, 10**400)], "abc"],
)
def test_what_is_no_reading_is_one_that_failed(readings):
    found = measure(Meter(read=lambda: readings))
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("bench: read(): expected ")


@pytest.mark.parametrize("error", [RuntimeError("stuck"), SystemExit(1), KeyboardInterrupt("stuck")])
def test_a_meter_that_cannot_be_closed_is_unavailable(error):
    found = measure(Meter(close=throw(error)))
    assert found == Unavailable(reason=f"bench: close(): {type(error).__name__}: {error}")


def test_what_a_run_raises_comes_before_what_closing_raises():
    def run() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        measure_energy(Meter(close=throw(SystemExit())), run, idle_s=0, window_s=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RuntimeError("no lab"), SystemExit(2), KeyboardInterrupt()])
def test_a_module_that_raises_is_unavailable(lab, error):
    found = lab(lambda _: throw(error)())
    assert found == Unavailable(reason=f"meter python:my_lab?3: {type(error).__name__}: {error}")


def test_an_error_that_cannot_even_be_printed_is_unavailable(lab):
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise SystemExit

    assert lab(lambda _: throw(Unspeakable())()) == Unavailable(reason="meter python:my_lab?3: Unspeakable: ")
    found = lab(lambda _: throw(ValueError("\ud800\n" * 10_000))())
    assert len(encode(found)) < 1000


def test_a_module_that_blocks_is_left_behind(hasty, lab):
    release = threading.Event()
    found = lab(lambda _: release.wait(60))
    release.set()
    assert found == Unavailable(reason="meter python:my_lab?3: open_meter() did not answer within 1 s")


@pytest.mark.parametrize("part", ["period_s", "settle_s", "source", "read", "close"])
def test_what_is_no_sampler_is_unavailable(lab, part):
    parts = {"period_s": 1, "settle_s": 0, "source": SOURCE, "read": lambda: (), "close": lambda: None}
    del parts[part]
    made = types.SimpleNamespace(**parts)
    found = lab(lambda _: made)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("meter python:my_lab?3: expected period_s, settle_s, source, read, close of a meter")
    assert found.reason.endswith(f"without {part}")
    assert isinstance(measure(made), Unavailable)


@pytest.mark.parametrize("made", [None, 3, "meter", Meter])
def test_nothing_is_no_meter(lab, made):
    found = lab(lambda _: made)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("meter python:my_lab?3: ")
    found = measure(made)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("meter ")


@pytest.mark.parametrize("reason", [None, 5, "", "a\nb", "x" * 5000, "\ud800"])
def test_a_reason_that_is_none_is_named(lab, reason):
    found = lab(lambda _: Unavailable(reason=reason))
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("meter python:my_lab?3: reason: expected ")
    assert encode(found)


NONSENSE = [math.nan, math.inf, -math.inf, -1e-9, "0.1", None, True, 10**400, 1e300]


@pytest.mark.parametrize(
    ("field", "spoilt"),
    [
        *[(field, stating(**{field: v})) for field in ("resolution", "renewed_s", "uncertainty") for v in NONSENSE],
        *[(field, Meter(**{field: value})) for field in ("period_s", "settle_s") for value in NONSENSE],
        ("period_s", Meter(period_s=0)),
        ("uncertainty", stating(uncertainty=2)),
        ("resolution: reason", stating(resolution=Unavailable(reason="\0"))),
        *[("unit", stating(unit=unit)) for unit in ("mW", "w", "", None, 1, [])],
        *[("rails", stating(rails=rails)) for rails in ((), None, "all", ("",), ("a\nb",), (3,), ("x",) * 2000)],
        *[("name", stating(name=name)) for name in ("", "a\nb", "\x1b[2J", "x" * 501, 5, None, "\ud800")],
        *[("note", stating(note=note)) for note in ("a\0b", "x" * 5000, None)],
        ("source", Meter(source=None)),
        ("source", Meter(source={"name": "bench"})),
        ("read", Meter(read=None)),
        ("close", Meter(close=3)),
    ],
)
def test_what_a_meter_states_is_checked(lab, field, spoilt):
    found = lab(lambda _: spoilt)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith(f"meter python:my_lab?3: {field}: expected ")
    assert ", found " in found.reason
    assert encode(found)
    assert spoilt.closed or field == "close"
    found = measure(spoilt)
    assert isinstance(found, Unavailable)
    assert f"{field}: expected " in found.reason


def test_numbers_of_numpy_become_those_of_a_record():
    found = stated(stating(resolution=np.float32(0.5), rails=["a", "b"], uncertainty=np.float64(0.25)))
    assert type(found.source.resolution) is float
    assert type(found.source.uncertainty) is float
    assert found.source.rails == ("a", "b")


@pytest.mark.parametrize(("unit", "later"), [("W", "J"), ("W", None)])
def test_what_a_meter_states_at_the_end_is_checked_too(unit, later):
    class Changing(Meter):
        asked = itertools.count()

        @property
        def source(self) -> EnergySource:
            return msgspec.structs.replace(SOURCE, unit=unit if next(self.asked) < 3 else later)

        def __init__(self) -> None:
            self.period_s, self.settle_s, self.reads = 0.01, 0.0, itertools.count()

    found = measure(Changing())
    assert isinstance(found, Unavailable)
    assert "unit: expected " in found.reason


def test_an_interval_of_the_driver_that_makes_no_sense_does_not_last(tmp_path):
    write_tree(tmp_path, INA226 | {"hwmon1/update_interval": "9" * 18}, "sys/class/hwmon")
    found = measure(choose_source(tmp_path))
    assert isinstance(found, Unavailable)
    assert "renewed_s: expected a number from 0 to 60, found " in found.reason


def test_a_counter_whose_times_are_of_another_clock_holds_no_run():
    reads = itertools.count()
    sampler = stating(unit="J")
    sampler.read = lambda: ((10**9 * (n := next(reads)), 3.0 * n + 0.1 * (n % 2)),)
    assert measure(sampler) == Unavailable(reason="bench: no run lies between its readings; does it tell our time?")


@given(
    st.lists(
        st.floats() | st.floats(width=16) | st.sampled_from([1e308, -1e308, 5e-324, 1e14]), min_size=10, max_size=30
    ),
    st.sampled_from(["W", "J"]),
)
def test_an_energy_never_holds_what_is_no_number(values, unit):
    from ferryman.profiler.joules import Stretch, energy_of, window_of

    source = msgspec.structs.replace(SOURCE, unit=unit)
    readings = [(n * 10**9 + 1, value) for n, value in enumerate(values)]
    stretch = Stretch(0, 31 * 10**9, ((0, 0), (31 * 10**9, 100)))
    try:
        window = window_of(source, readings, stretch)
        found = energy_of(source, window, window)
    except SensorError:
        return
    numbers = json.dumps(msgspec.to_builtins(found))
    assert "NaN" not in numbers
    assert "Infinity" not in numbers
    assert math.isfinite(found.gross_j)
