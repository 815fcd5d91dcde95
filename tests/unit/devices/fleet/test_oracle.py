"""What a fleet answers, with devices that are not there."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from ferryman.devices.fleet.answers import Answers
from ferryman.devices.fleet.oracle import Candidate, Oracle, State
from ferryman.runtime.contracts.errors import CallerError, LinkError, RuntimeCrash, WireError
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from tests.support.fleet import BENCH, BOTH, LITERT, LOCAL, STATE, Devices, conditions, measured
from tests.support.interpreters import ROOT
from tests.support.packages import write_tiny_package
from tests.support.telemetry import until

LATENCY = ("latency_ms",)
ONE = ProfileSpec(interpreters=(LITERT,))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def devices() -> Devices:
    return Devices()


@pytest.fixture
def oracle(tmp_path, devices) -> Oracle:
    return Oracle(Answers(tmp_path / "answers"), devices.hands)


def candidates(folder: Path, count: int = 3) -> list[Candidate]:
    return [Candidate(f"c{n}", write_tiny_package(folder / f"c{n}.ferry", added=n + 1.0)) for n in range(count)]


def test_each_variant_on_each_interpreter_is_a_row_with_its_measurement(tmp_path, oracle):
    table = oracle.ask(candidates(tmp_path, 2), [LOCAL], ("latency_ms", "memory_mb"), ProfileSpec())

    assert [(row.candidate, row.number, row.interpreter) for row in table.rows] == [
        (f"c{n}", n, interpreter) for n in range(2) for interpreter in BOTH
    ]
    for row in table.rows:
        assert row.values == {"latency_ms": 2.0, "memory_mb": 30.0}
        assert row.measurement is not None
        assert list(row.measurement.samples_ns) == [1_999_000, 2_000_000, 2_001_000, *[2_000_000] * 3]
        assert not row.cached


def test_what_was_measured_is_not_measured_again_by_anyone(tmp_path, oracle, devices):
    first = oracle.ask(candidates(tmp_path), [LOCAL], LATENCY, ProfileSpec())
    assert devices.count("profile") == 6

    again = Oracle(Answers(tmp_path / "answers"), devices.hands)
    second = again.ask(candidates(tmp_path), [LOCAL], LATENCY, ProfileSpec())

    assert devices.count("profile") == 6
    assert all(row.cached for row in second.rows)
    assert [row.measurement for row in second.rows] == [row.measurement for row in first.rows]


@pytest.mark.parametrize(
    "change",
    [
        lambda devices: devices.stand(governor="powersave"),
        lambda devices: devices.stand(kernel="7"),
        lambda devices: devices.state.update({"local": State(BOTH | {LITERT: "2.4.0"}, STATE.standing)}),
    ],
)
def test_another_state_of_the_device_is_another_question(tmp_path, oracle, devices, change):
    oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE)
    change(devices)
    oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE)
    assert devices.count("profile") == 2


@pytest.mark.parametrize(
    ("spec", "metrics"),
    [
        (replace(ONE, runs=7), LATENCY),
        (replace(ONE, threads=2), LATENCY),
        (replace(ONE, interpreters=("tflite-runtime",)), LATENCY),
        (ONE, ("latency_ms", "energy_mj")),
    ],
)
def test_another_spec_is_another_question(tmp_path, oracle, devices, spec, metrics):
    oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE)
    oracle.ask(candidates(tmp_path, 1), [LOCAL], metrics, spec)
    assert devices.count("profile") == 2


def test_how_long_a_process_may_take_is_no_part_of_the_question(tmp_path, oracle, devices):
    oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE)
    oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, replace(ONE, timeout_s=9.0))
    assert devices.count("profile") == 1


def test_fresh_measures_again_and_replaces_what_was_kept(tmp_path, oracle, devices):
    oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE)
    devices.measure = lambda package, _, spec: measured(package, spec, 5.0)
    assert oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE).rows[0]["latency_ms"] == 2.0
    assert oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE, fresh=True).rows[0]["latency_ms"] == 5.0
    assert oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE).rows[0]["latency_ms"] == 5.0


def test_what_was_measured_in_two_states_is_not_kept(tmp_path, oracle, devices):
    devices.measure = lambda package, _, spec: replace(
        measured(package, spec, 2.0), after=conditions(governor="powersave")
    )
    for _ in range(2):
        oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE)
    assert devices.count("profile") == 2


def test_what_fails_is_a_row_and_the_others_are_measured(tmp_path, oracle, devices):
    def measure(package, _device, spec):
        if package.stem == "c1" and spec.interpreters == (LITERT,):
            raise RuntimeCrash("the process was killed by signal 11")
        if package.stem == "c2":
            raise ZeroDivisionError("a bug")
        return measured(package, spec, 2.0)

    devices.measure = measure
    some = [*candidates(tmp_path), Candidate("refused", WireError(party="model", message="it cannot be captured"))]
    some.append(Candidate("lost", tmp_path / "nowhere.ferry"))
    table = oracle.ask(some, [LOCAL], LATENCY, ProfileSpec())

    errors = [(row.candidate, row.interpreter, row.error and row.error.party) for row in table.rows]
    assert errors == [
        ("c0", LITERT, None),
        ("c0", "tflite-runtime", None),
        ("c1", LITERT, "runtime-crash"),
        ("c1", "tflite-runtime", None),
        ("c2", LITERT, "ferryman"),
        ("c2", "tflite-runtime", "ferryman"),
        ("refused", None, "model"),
        ("lost", None, "caller"),
    ]
    assert table.rows[2]["latency_ms"] == Unavailable(reason="the process was killed by signal 11")
    assert table.rows[2].measurement is None
    assert table.failed == tuple(row for row in table.rows if row.error)
    assert table.rows[4].error == WireError(party="ferryman", message="ZeroDivisionError: a bug")


def test_what_failed_is_tried_again(tmp_path, oracle, devices):
    def crash(*_: object):
        raise RuntimeCrash("killed")

    devices.measure = crash
    assert oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE).failed
    devices.measure = lambda package, _, spec: measured(package, spec, 2.0)
    assert not oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ONE).failed


def test_a_damaged_package_is_a_row(tmp_path, oracle):
    (candidate,) = candidates(tmp_path, 1)
    data = bytearray(candidate.package.read_bytes())
    data[100] ^= 1
    candidate.package.write_bytes(data)
    (row,) = oracle.ask([candidate], [LOCAL], LATENCY, ONE).rows
    assert row.error is not None
    assert row.error.party == "package"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ProfileSpec(variants=("int8",)), "no variant int8 in add-1; there are: fp32-tflite"),
        (ProfileSpec(interpreters=("nope",)), "no interpreter nope for add-1 on local; there are: ai-edge-litert, "),
    ],
)
def test_what_is_not_there_is_said_in_the_row(tmp_path, oracle, spec, message):
    (row,) = oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, spec).rows
    assert row.error is not None
    assert message in row.error.message


def test_a_device_without_an_interpreter_says_so(tmp_path, oracle, devices):
    devices.state["local"] = State({"executorch": "1.5.1"}, {})
    (row,) = oracle.ask(candidates(tmp_path, 1), [LOCAL], LATENCY, ProfileSpec()).rows
    assert row.error is not None
    assert row.error.party == "device"


def test_a_package_is_pushed_once_and_only_to_be_measured(tmp_path, oracle, devices):
    for _ in range(2):
        oracle.ask(candidates(tmp_path, 2), [BENCH], LATENCY, ProfileSpec())
    assert devices.done == [(what, "bench", f"c{n}") for n in range(2) for what in ("push", "profile", "profile")]


def test_a_device_that_is_away_costs_no_other_its_rows(tmp_path, devices):
    def state(device):
        if device is BENCH:
            raise LinkError("device bench: offline")
        return STATE

    oracle = Oracle(Answers(tmp_path / "answers"), dataclasses.replace(devices.hands, state=state))
    table = oracle.ask(candidates(tmp_path, 2), [BENCH, LOCAL], LATENCY, ONE)
    assert [(row.candidate, row.device, row.error is None) for row in table.rows] == [
        ("c0", "bench", False),
        ("c0", "local", True),
        ("c1", "bench", False),
        ("c1", "local", True),
    ]


def test_devices_work_at_the_same_time(tmp_path, oracle, devices):
    meeting = threading.Barrier(2, timeout=60)

    def measure(package, _device, spec):
        meeting.wait()
        return measured(package, spec, 2.0)

    devices.measure = measure
    assert not oracle.ask(candidates(tmp_path, 1), [LOCAL, BENCH], LATENCY, ONE).failed


def test_one_device_is_measured_by_one_thread_at_a_time(tmp_path, oracle, devices):
    busy = threading.Lock()

    def measure(package, _device, spec):
        assert busy.acquire(blocking=False)
        until(lambda: "local: another measures there, waiting" in heard)
        busy.release()
        return measured(package, spec, 2.0)

    devices.measure = measure
    tables, heard = [], []
    some = candidates(tmp_path)
    threads = [
        threading.Thread(target=lambda: tables.append(oracle.ask(some, [LOCAL], LATENCY, ONE, progress=heard.append)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(tables) == 4
    assert not any(table.failed for table in tables)
    assert devices.count("profile") == 3  # who waited for its turn takes the answer of whoever had it
    assert "local: another measures there, waiting" in heard


ASK = """
import os, sys, time
from pathlib import Path
from ferryman.devices.fleet.answers import Answers
from ferryman.devices.fleet.oracle import Candidate, Oracle
from ferryman.runtime.contracts.measurement import ProfileSpec
from tests.support.fleet import LITERT, LOCAL, Devices, measured

folder, me = Path(sys.argv[1]), sys.argv[2]
devices = Devices()
def measure(package, device, spec):
    begin = time.monotonic()
    time.sleep(0.02)
    with (folder / "log").open("a") as log:
        log.write(f"{begin} {time.monotonic()}\\n")
    return measured(package, spec, 2.0)
devices.measure = measure
some = [Candidate(f"c{n}", folder / f"c{n}.ferry") for n in range(3)]
for round in range(3):
    spec = ProfileSpec(interpreters=(LITERT,), runs=round + 1)
    table = Oracle(Answers(folder / me), devices.hands).ask(some, [LOCAL], ("latency_ms",), spec)
    assert not table.failed, table
"""


def test_one_device_is_measured_by_one_process_at_a_time(tmp_path):
    candidates(tmp_path)
    processes = [subprocess.Popen([sys.executable, "-c", ASK, str(tmp_path), f"cache {n}"], cwd=ROOT) for n in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    spans = sorted(tuple(map(float, line.split())) for line in (tmp_path / "log").read_text().splitlines())
    assert len(spans) == 27
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_progress_says_what_is_measured_where(tmp_path, oracle):
    heard = []
    oracle.ask(candidates(tmp_path, 1), [BENCH], LATENCY, ONE, progress=heard.append)
    assert heard == ["bench: pushing c0", "bench: c0, fp32-tflite on ai-edge-litert"]


@pytest.mark.parametrize(
    ("devices_asked", "metrics", "message"),
    [
        ([], LATENCY, "one device or more"),
        ([LOCAL, LOCAL], LATENCY, "each once"),
        ([LOCAL], (), "no metric is asked for"),
        ([LOCAL], ("speed",), "no metric 'speed'; there are: latency_ms, "),
        ([LOCAL], "latency_ms", r"write \('latency_ms',\)"),
    ],
)
def test_what_cannot_be_asked_is_the_callers_fault(tmp_path, oracle, devices_asked, metrics, message):
    with pytest.raises(CallerError, match=message):
        oracle.ask(candidates(tmp_path, 1), devices_asked, metrics, ONE)
