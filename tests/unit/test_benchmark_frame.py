from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.benchmarks import __main__ as every
from tests.benchmarks.frame import CannotRun, Goal, Part, failed, figure, interleave, run_parts, table
from tests.support.interpreters import ROOT

BENCHMARK = """
from tests.benchmarks.frame import CannotRun, Goal, Part, figure, main

FAST = Goal("fast", "<", 5.0, "us")
RATIO = Goal("ratio", ">=", {target})
ABSENT = Goal("absent", "<=", 1.0)

def absent():
    raise CannotRun("no such broker")

def measure():
    print("a toolchain that chats")
    return [FAST.measured([3.0, 4.0, 100.0]), RATIO.measured([0.9]), figure("beside", [1.0, 2.0], "s")]

main("fake", (Part((FAST, RATIO), measure), Part((ABSENT,), absent)))
"""


def fake(target, *arguments):
    command = [sys.executable, "-c", BENCHMARK.format(target=target), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_last_line_of_json_is_one_object_of_the_agreed_shape():
    done = fake(0.8, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"bars", "conditions"} <= set(found)
    for bar in found["bars"]:
        assert {"name", "value", "target", "ok"} <= set(bar)
    by_name = {bar["name"]: bar for bar in found["bars"]}
    assert by_name["fast"] | {"value": 4.0, "target": 5.0, "ok": True, "spread": [3.5, 52.0]} == by_name["fast"]
    assert by_name["ratio"]["ok"] is True
    assert by_name["absent"] | {"value": None, "ok": None, "not_run": "no such broker"} == by_name["absent"]
    assert found["conditions"]["cpu_count"] >= 1


def test_a_failing_bar_ends_with_status_1_and_a_table_that_says_so():
    done = fake(1.0)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("ratio")).endswith("FAILS")
    assert next(line for line in lines if line.startswith("fast")).endswith("ok")
    assert next(line for line in lines if line.startswith("absent")).endswith("NOT RUN: no such broker")
    assert any(line.startswith("beside") for line in lines)


@pytest.mark.parametrize(
    ("comparison", "value", "ok"),
    [("<", 1.0, False), ("<=", 1.0, True), (">", 1.0, False), (">=", 1.0, True), ("<", 0.9, True), (">=", 0.9, False)],
)
def test_a_bar_holds_the_median_against_its_target(comparison, value, ok):
    bar = Goal("it", comparison, 1.0).measured([value, value, 1000.0 if value == 1.0 else value])
    assert bar.ok is ok
    assert failed(run_parts([Part((), lambda: [bar])], {})) is not ok


def test_no_samples_are_an_error():
    with pytest.raises(IndexError):
        Goal("it", "<", 1.0).measured([])


def test_rounds_alternate_their_order_and_keep_each_measures_values_together():
    calls = []

    def measure(name):
        return lambda: calls.append(name) or float(len(calls))

    first, second = interleave(2, measure("a"), measure("b"))
    assert calls == ["a", "b", "b", "a"]
    assert first.tolist() == [1.0, 4.0]
    assert second.tolist() == [2.0, 3.0]


def test_what_cannot_run_is_neither_a_failure_nor_a_success():
    def absent():
        raise CannotRun("no sshd")

    result = run_parts([Part((Goal("it", "<", 1.0),), absent)], {})
    assert result.bars[0].ok is None
    assert not failed(result)
    assert "NOT RUN: no sshd" in table("fake", result)


def test_a_figure_is_a_median_with_quartiles():
    found = figure("it", [1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.value, found.spread, found.samples) == (3.0, (2.0, 4.0), 5)


def test_a_benchmark_that_breaks_is_told_apart_from_one_that_fails(monkeypatch, capsys):
    monkeypatch.setattr(every, "BENCHMARKS", ("there_is_none",))
    with pytest.raises(SystemExit) as ended:
        every.main()
    assert ended.value.code == 1
    assert "there_is_none: BROKE" in capsys.readouterr().out


def test_every_listed_benchmark_is_there():
    for name in every.BENCHMARKS:
        assert (ROOT / "tests" / "benchmarks" / f"{name}.py").is_file()
