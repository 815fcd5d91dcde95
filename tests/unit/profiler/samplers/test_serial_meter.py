from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import threading
import time
import tty
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler import energy
from ferryman.profiler.energy import measure_energy
from ferryman.profiler.meter import open_meter
from ferryman.profiler.samplers import serial_meter
from ferryman.profiler.samplers.serial_meter import SerialSampler, parse_line
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy
from ferryman.runtime.contracts.record import Unavailable
from tests.support.telemetry import until
from tests.support.undisturbed import undisturbed


class Line:
    """A meter at the other end of a pseudo-terminal."""

    def __init__(self) -> None:
        self.meter, self.ours = pty.openpty()
        tty.setraw(self.meter)
        self.path = os.ttyname(self.ours)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def print(self, data: bytes) -> None:
        os.write(self.meter, data)

    def print_every(self, seconds: float, line: Callable[[], bytes]) -> None:
        def work() -> None:
            while not self._stop.wait(seconds):
                self.print(line())

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def unplug(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(OSError):
            os.close(self.meter)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.unplug()
    os.close(made.ours)


def opened(spec: str) -> SerialSampler:
    found = open_meter(spec)
    assert isinstance(found, SerialSampler), found
    return found


def next_values(sampler: SerialSampler, count: int = 4) -> list[float]:
    values: list[float] = []
    until(lambda: len(values) >= count or bool(values.extend(value for _, value in sampler.read())))
    return values


def trouble(sampler: SerialSampler) -> str:
    """Why it cannot be read; empty: it can."""
    try:
        sampler.read()
    except SensorError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("query", "text", "value", "unit"),
    [
        ("", b"4.25\r\n", 4.25, "W"),
        ("?unit=mW&column=3", b"5.01,0.849,4253\n", 4.253, "W"),
        ("?unit=mWh&column=2&baud=9600", b"t;250\n", 900.0, "J"),
    ],
)
def test_a_column_is_read_in_its_unit(line, query, text, value, unit):
    line.print_every(0.02, lambda: text)
    before = set(threading.enumerate())
    sampler = opened(f"serial:{line.path}{query}")
    values = next_values(sampler)
    assert values == pytest.approx([value] * len(values))
    assert sampler.source.unit == unit
    assert line.path in sampler.source.name
    sampler.close()
    assert set(threading.enumerate()) <= before


def test_half_lines_headings_and_noise_are_left_out(line):
    line.print_every(0.02, lambda: b"25\nP [W]\n\xff\xfe\x00\n3.5\n" + b"9" * 5000 + b"\n")
    sampler = opened(f"serial:{line.path}")
    assert set(next_values(sampler)) <= {3.5, 25.0}
    sampler.close()


def test_a_line_cut_in_two_is_one_reading(line):
    line.print(b"\n")
    parts = itertools.cycle((b"1.5\n2.", b"15\n"))
    line.print_every(0.03, lambda: next(parts))
    sampler = opened(f"serial:{line.path}")
    assert set(next_values(sampler)) == {1.5, 2.15}
    sampler.close()


def test_the_whole_chain_finds_the_joules_of_a_counter_on_a_line(line, monkeypatch):
    """A meter that counts joules: 4 W, and 7 W from the first run on."""
    monkeypatch.setattr(energy, "WINDOW_MIN_S", 1.0)
    born_s, began = time.perf_counter(), [0.0]

    def counter() -> bytes:
        now_s = time.perf_counter()
        more = 3 * (now_s - began[0]) if began[0] else 0.0
        return f"{1000 * (4 * (now_s - born_s) + more):.1f}\n".encode()

    def run() -> None:
        began[0] = began[0] or time.perf_counter()
        time.sleep(0.01)

    line.print_every(0.02, counter)

    def attempt() -> None:
        began[0] = 0.0
        sampler = opened(f"serial:{line.path}?unit=mJ&period=0.02&settle=0.1")
        found = measure_energy(sampler, run, idle_s=1.0, window_s=1.0)
        assert isinstance(found, Energy), found
        assert found.active.power_w == pytest.approx(7.0, rel=0.01)
        assert found.idle.power_w == pytest.approx(4.0, rel=0.01)  # type: ignore[union-attr]
        assert found.active.rate_hz > 20
        assert found.gross_j == pytest.approx(7.0 * found.active.window_s / found.active.runs, rel=0.01)

    undisturbed(attempt)


def test_a_line_that_is_unplugged_is_an_error(line):
    line.print_every(0.02, lambda: b"1.5\n")
    sampler = opened(f"serial:{line.path}")
    line.unplug()
    until(lambda: re.search(r"Input/output error|the line was closed", trouble(sampler)) is not None)
    sampler.close()


def test_a_line_that_falls_silent_is_an_error(line, monkeypatch):
    line.print(b"\n1.5\n")
    sampler = opened(f"serial:{line.path}")
    sampler.read()
    sampler._inbox._silence_s = 0.05
    time.sleep(0.1)
    with pytest.raises(SensorError, match="no reading for"):
        sampler.read()
    sampler.close()


@pytest.mark.parametrize("text", [b"", b"nothing here\n" * 10])
def test_a_line_without_a_number_is_unavailable(line, monkeypatch, text):
    monkeypatch.setattr(serial_meter, "_FIRST_S", 0.2)
    line.print(text)
    found = open_meter(f"serial:{line.path}?period=0.05")
    assert isinstance(found, Unavailable)
    assert "no reading within 0.3 s" in found.reason


@pytest.mark.parametrize(
    ("path", "reason"), [("/dev/no-such-line", "No such file"), ("/dev/null", "Inappropriate ioctl for device")]
)
def test_what_is_no_line_is_unavailable(path, reason):
    found = open_meter(f"serial:{path}")
    assert isinstance(found, Unavailable)
    assert reason in found.reason


@given(st.binary(max_size=60), st.integers(1, 4))
def test_any_bytes_are_a_number_or_none(data, column):
    found = parse_line(data, column)
    assert found is None or abs(found) < 1e112


@pytest.mark.parametrize(
    ("text", "column", "value"),
    [
        (b" 1.5 2,3 ; 4\t5\r", 5, 5.0),
        (b"1,,3", 3, 3.0),
        (b"1,,3", 2, None),
        (b"nan", 1, None),
        (b"1e3", 1, 1000.0),
        (b"-.5", 1, -0.5),
        (b"1_0", 1, None),
        (b"5", 2, None),
    ],
)
def test_columns(text, column, value):
    assert parse_line(text, column) == value
