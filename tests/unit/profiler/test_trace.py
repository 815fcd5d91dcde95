from __future__ import annotations

import itertools
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.profiler.export import to_csv
from ferryman.profiler.trace import power_points, trace, write_trace
from ferryman.runtime.contracts.energy import EnergyWindow
from tests.support.measurements import bare_measurement, damaged, full_measurement, measurement, start
from tests.support.trace_check import check_trace

FULL = full_measurement()
BARE = msgspec.structs.replace(bare_measurement(), started_at_ns=FULL.started_at_ns + 10**9)


def events_of(found, *arguments) -> list[dict]:
    return check_trace(json.dumps(trace(found, *arguments), allow_nan=False))


def names(events, pid=None) -> list[str]:
    return [e["name"] for e in events if e["ph"] == "X" and pid in {None, e["pid"]}]


def processes(events) -> dict[int, str]:
    return {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}


@pytest.mark.parametrize("found", [[], [("pi", FULL)], [("pi", BARE)], [("a", FULL), ("b", BARE), ("c", FULL)]])
def test_a_trace_is_one_by_the_format(found):
    assert bool(events_of(found)) == bool(found)


def test_a_process_shows_its_phases_one_after_the_other():
    events = events_of([("pi", FULL)])
    steps = [e for e in events if e["ph"] == "X" and e["pid"] == 1 and e["name"] != "run"]
    assert [e["name"] for e in steps] == [
        *("process start", "import interpreter", "load", "first run", "warm-up", "timed runs"),
    ]
    assert [e["dur"] for e in steps[:4]] == [182_000.0, 95_000.0, 41_000.0, 24_000.0]
    for before, after in itertools.pairwise(steps):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert names(events, 1).count("run") == 30 + 400
    assert steps[-1]["dur"] == pytest.approx(sum(FULL.starts[0].samples) / 1e3)


def test_every_part_of_a_measurement_is_a_process_with_a_name():
    found = processes(events_of([("pi5", FULL)]))
    assert [name.partition(": ")[0] for name in found.values()] == [
        *("process 1 of 3", "process 2 of 3", "process 3 of 3", "asked 40 times a second", "without a pause"),
        *("energy, Raspberry Pi 5 PMIC", "operators of one run"),
    ]
    assert all(name.endswith(": fp32-tflite on ai-edge-litert") for name in found.values())
    assert processes(events_of([("a", FULL), ("b", BARE)]))[1] == "process 1 of 3: a: fp32-tflite on ai-edge-litert"


def test_counters_follow_heat_clock_memory_and_power():
    events = [e for e in events_of([("pi", FULL)]) if e["ph"] == "C"]
    assert {e["name"] for e in events} >= {"clock", "hottest", "RSS", "PSS", "power", "throttled"}
    assert next(e["args"] for e in events if e["name"] == "PSS") == {"private MB": 17.0, "file MB": 9.0}
    power = [e["args"]["W"] for e in events if e["name"] == "power"]
    assert power == [*FULL.energy.idle.values, *FULL.energy.active.values]
    hot = [e["args"]["°C"] for e in events if e["name"] == "hottest" and e["pid"] == 5]
    assert len(hot) == 24
    assert hot[-1] > hot[0] + 20


def test_operators_lie_within_their_run_with_what_is_known_of_them():
    events = [e for e in events_of([("pi", FULL)]) if e["ph"] == "X" and e["pid"] == 7]
    run, *operators = events
    assert len(operators) == len(FULL.operators.rows)
    assert operators[0]["name"] == "conv2d features.0.conv"
    assert operators[1]["args"]["flags"] == "undelegated, layout copy"
    assert operators[0]["args"]["macs"] == 90_000_000
    assert sum(e["dur"] for e in operators) == pytest.approx(run["dur"])


def test_waiting_in_line_is_shown_beside_the_runs_of_a_fixed_rate():
    late = msgspec.structs.replace(FULL, arrival=full_measurement(factor=2.5).arrival)
    events = [e for e in events_of([("pi", late)]) if e["ph"] == "X" and e["pid"] == 4]
    runs = [e for e in events if e["name"] == "run"]
    assert runs[-1]["args"]["latency_us"] > 10 * runs[-1]["dur"]
    assert sum(e["dur"] for e in events if e["name"] == "line") > 1e6


def test_a_file_has_a_size_and_says_what_it_left_out():
    events = events_of([("pi", FULL)], 600)
    assert len(events) < 1000
    timed = [e for e in events if e["name"] == "timed runs"]
    assert timed[0]["args"]["shown"].startswith("1 of every ")
    assert timed[0]["args"]["runs"] == 400
    assert timed[0]["dur"] == pytest.approx(sum(FULL.starts[0].samples) / 1e3), "what is left out takes its time"
    assert " shown: fp32-tflite" in processes(events)[4]


def test_thinned_samples_take_the_time_of_those_left_out():
    timed = [e for e in events_of([("pi", FULL)]) if e["name"] == "timed runs"]
    assert timed[2]["args"] == {"runs": 400, "shown": "1 of every 4 runs"}
    assert timed[2]["dur"] == pytest.approx(timed[0]["dur"], rel=0.05)


def test_a_counter_of_joules_becomes_power():
    window = EnergyWindow(
        energy_j=3.0, window_s=2.0, runs=1, times_ns=(0, 10**9, 10**9, 2 * 10**9), values=(5.0, 6.0, 6.0, 8.0)
    )
    assert power_points(window, "J") == [(0, 1.0), (10**9, 2.0)]
    assert power_points(window, "W")[1] == (10**9, 6.0)


def test_a_file_is_written(tmp_path):
    write_trace([("pi", FULL)], tmp_path / "trace.json")
    assert check_trace((tmp_path / "trace.json").read_text("utf-8"))


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 2000), st.sampled_from([0.0, -1.0, 1e300, -1e300, 2.0**62])), min_size=1, max_size=60
    )
)
def test_a_damaged_record_makes_a_trace_all_the_same(changes):
    odd = damaged(FULL, changes)
    if odd is not None:
        events_of([("pi", odd)], 500)
        assert to_csv([("pi", odd)]).count("\n") == 2


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(max_size=10),
    samples=st.lists(st.integers(0, 2**63 - 1), max_size=6),
    when=st.integers(0, 2**63 - 1),
    rate=finite,
    times=st.tuples(finite, finite),
    room=st.integers(1, 50),
)
def test_no_record_makes_a_trace_that_viewers_stumble_over(name, samples, when, rate, times, room):
    odd = msgspec.structs.replace(
        FULL,
        package_name=name,
        variant=name,
        started_at_ns=when,
        starts=(start(samples, kept_max=3),),
        arrival=msgspec.structs.replace(FULL.arrival, rate_hz=rate),
        sustained=tuple(msgspec.structs.replace(one, start_s=times[0], seconds=times[1]) for one in FULL.sustained[:3]),
    )
    events_of([(name, odd), ("pi", measurement())], room * 10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ts": -1.0}, "a ts below 0"),
        ({"dur": 1e12}, "crosses"),
        ({"tid": 9}, "without a name"),
        ({"name": "a\nb"}, "cannot be printed"),
    ],
)
def test_the_reader_of_these_tests_is_strict(change, words):
    found = trace([("pi", FULL)])
    at = next(i for i, e in enumerate(found["traceEvents"]) if e["ph"] == "X" and e["name"] == "run")
    found["traceEvents"][at] |= change
    with pytest.raises(AssertionError, match=words):
        check_trace(json.dumps(found))
