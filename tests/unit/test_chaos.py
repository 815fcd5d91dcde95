"""What judges the chaos runs notices each thing that can be wrong, and nothing where all is well."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time

import pytest

from ferryman.runtime.contracts.record import encode
from tests.chaos.bodies import record
from tests.chaos.faults import HABITS, Event, Storm, plan
from tests.chaos.journal import BEGUN, DONE, FAILED, Append, Journal, reached, read
from tests.chaos.oracle import End, Rules, judge
from tests.chaos.process import CLOCK
from tests.chaos.stores import Stored

APPENDS = [
    Append(1, 3, DONE, recorded_ns=7, at_ns=100, sequences=[1, 2, 3]),
    Append(4, 2, FAILED, at_ns=200),
    Append(4, 2, DONE, recorded_ns=8, at_ns=300, sequences=[4, 5]),
    Append(6, 2, BEGUN, at_ns=400),
]


def row(sequence: int, number: int | None = None, recorded_ns: int = 7, received_ns: int = 1000) -> Stored:
    kind, body = record("pi", sequence if number is None else number)
    return Stored("b", sequence, kind, recorded_ns, received_ns, encode(body).decode())


def rows() -> list[Stored]:
    return [row(1), row(2), row(3), row(4, recorded_ns=8), row(5, recorded_ns=8)]


ALL = End(5, 0, 0)


def wrong(stored: list[Stored], end: End = ALL, faults=(), **rules) -> list[str]:
    return judge("pi", APPENDS, stored, end, list(faults), Rules(**rules)).wrong


def dropped(sequence: int, records: int, first: int, last: int, total: int) -> Stored:
    body = {"records": records, "first": first, "last": last, "total": total}
    return Stored("b", sequence, "dropped", 9, 1000, json.dumps(body))


def test_what_is_as_it_should_be_is_not_blamed():
    assert wrong(rows()) == []
    assert wrong([*rows(), row(6), row(7)], End(7, 0, 0)) == []  # the interrupted append, whole


@pytest.mark.parametrize(
    ("stored", "end", "said"),
    [
        (rows()[:-1], End(5, 0, 0), "acknowledged records are lost, such as 5"),
        (rows()[:-1], End(4, 0, 0), "acknowledged records are lost, such as 5"),
        ([*rows(), row(5, recorded_ns=8)], End(5, 0, 0), "stored twice, such as 5"),
        ([*rows(), row(6, number=5)], End(6, 0, 0), "never appended, or appended under another sequence"),
        ([*rows()[:-1], row(5, number=4, recorded_ns=8)], End(5, 0, 0), "with another content, such as 5"),
        ([*rows()[:-1], row(5, recorded_ns=9)], End(5, 0, 0), "with another content, such as 5"),
        ([*rows(), row(6)], End(6, 0, 0), "interrupted and are there in part, such as 6..7: 1"),
        ([*rows(), row(6), row(7)], End(8, 0, 0), "0 records were counted as dropped, 1 are missing, such as [8]"),
        ([*rows(), row(6), row(7)], End(5, 0, 0), "which the outbox never gave, such as 6, 7"),
        (rows(), End(5, 2, 0), "2 records still wait"),
        (rows(), End(5, 0, 1), "dropped though there was room"),
        ([*rows(), rows()[0]._replace(boot="c", sequence=6)], End(6, 0, 0), "boots are stored"),
    ],
)
def test_whatever_is_wrong_is_said(stored, end, said):
    assert any(said in one for one in wrong(stored, end)), wrong(stored, end)


def test_drops_must_be_counted_and_reported():
    """1 and 2 made room; 6 and 7 say so, or not."""
    left = rows()[2:]
    assert wrong([*left, dropped(6, 2, 1, 2, 2)], End(6, 0, 2), may_drop=True) == []
    assert wrong([*left, dropped(6, 3, 1, 3, 3)], End(6, 0, 3), may_drop=True) == []  # 3 had arrived, without a receipt
    uncounted = wrong([*left, dropped(6, 1, 1, 1, 1)], End(6, 0, 1), may_drop=True)
    assert any("1 records were counted as dropped, 2 are missing" in one for one in uncounted)
    assert any("in no report, such as 2" in one for one in uncounted)
    unsaid = wrong(left, End(5, 0, 2), may_drop=True)
    assert any("2 records were dropped, reported were []" in one for one in unsaid)


def test_late_records_take_a_fault():
    """2 and 3 came before 1."""
    late = [row(1, received_ns=2000), *rows()[1:]]
    assert any("arrived after later ones though nothing was wrong" in one for one in wrong(late))
    assert wrong(late, faults=[(50, 60)]) != []  # over before it was appended
    assert wrong(late, faults=[(2001, 2050)]) != []  # it had arrived by then
    assert wrong(late, faults=[(50, 60), (1500, 1600)]) == []
    assert wrong(late, ordered=False) == []


def test_a_journal_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begin(1, 3)
    journal.done(1, 7, [1, 2, 4])
    journal.begin(4, 2)
    journal.failed(4)
    journal.begin(4, 1)
    with path.open("a") as file:
        file.write("D 4 9 5-")
    assert Journal(path).next == 5
    again = Journal(path)
    again.begin(again.next, 2)
    assert [(a.first, a.count, a.state, list(a.sequences)) for a in read(path)] == [
        (1, 3, DONE, [1, 2, 4]), (4, 2, FAILED, []), (4, 1, BEGUN, []), (5, 2, BEGUN, []),
    ]  # fmt: skip
    assert reached(path) == 6


def first(count: int, *arguments) -> list[object]:
    return list(itertools.islice(plan(*arguments), count))


def test_a_seed_says_everything():
    for target in HABITS:
        assert first(50, 7, target, 1.0) == first(50, 7, target, 1.0) != first(50, 8, target, 1.0)
        assert {fault.kind for fault in first(200, 7, target, 1.0)} == set(HABITS[target].kinds)


def test_a_storm_heals_what_it_began():
    done: list[str] = []

    def begin(_):
        done.append("begin")
        return lambda: done.append("heal")

    storm = Storm(1, 0.0001, {"broker": dict.fromkeys(HABITS["broker"].kinds, begin)})
    storm.start()
    while len(done) < 10:
        time.sleep(0.001)
    storm.calm()
    assert done == ["begin", "heal"] * (len(done) // 2)
    assert storm.trouble == []
    assert sum(storm.counts().values()) == len(storm.events) == len(done) // 2


def test_only_what_lies_between_a_device_and_the_store_excuses_it():
    storm = Storm(1, 1.0, {})
    second = 10**9
    storm.events += [Event(0, second, "device:other", "kill"), Event(0, second, "clock:pi", "jump")]
    assert storm.intervals("pi") == []
    storm.events += [Event(3 * second, 4 * second, "link:pi", "cut"), Event(5 * second, 6 * second, "broker", "kill")]
    assert storm.intervals("pi") == [(3 * second, 12 * second)]


def test_a_wall_clock_is_put_wrong_from_outside(tmp_path):
    place = tmp_path / "clock"
    place.write_bytes((-86400 * 10**9).to_bytes(8, "little", signed=True))
    program = "import time; print(time.clock_gettime_ns(time.CLOCK_REALTIME) - time.time_ns())"
    environment = {"PYTHONPATH": str(CLOCK), "CHAOS_CLOCK": str(place)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert 86399 * 10**9 < int(shown.stdout) <= 86400 * 10**9
