from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ferryman.devices.agent import clock
from ferryman.devices.agent.clock import Reading
from ferryman.devices.agent.outbox import Dropped, Outbox, SetAside
from ferryman.devices.agent.outbox_file import OVERHEAD_BYTES
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.telemetry import Priority, priority
from tests.support.disk import disk_free, small_disk


class Note(Record):
    text: str


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def test_what_is_appended_is_there_after_reopening(path):
    first = Outbox(path)
    sequence = first.append("note", Note(text="a"), Reading(7, 3, sure=True))
    first.close()
    (entry,) = Outbox(path).pending(0, 10)
    assert entry[:5] == (sequence, first.boot, "note", 7, encode(Note(text="a")))


def test_sequences_grow_even_when_the_outbox_was_emptied_and_reopened(path):
    box = Outbox(path)
    last = box.append_all([("note", Note(text="a"))] * 5)[-1]
    assert box.forget(box.boot, [(1, last)]) == 5
    box.close()
    assert Outbox(path).append("note", Note(text="b")) == last + 1


def test_a_deleted_file_begins_another_run_of_numbers(path):
    box = Outbox(path)
    before = box.boot
    box.append("note", Note(text="a"))
    for part in path.parent.glob("outbox.db*"):
        part.unlink()
    assert box.append("note", Note(text="b")) == 1
    assert box.boot != before


def test_records_of_an_earlier_boot_keep_their_boot_and_are_forgotten_by_it(path, tmp_path, monkeypatch):
    box = Outbox(path)
    old = box.boot
    box.append("note", Note(text="a"))
    box.close()
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("after-the-reboot\n")
    monkeypatch.setattr(clock, "_BOOT_ID", boot_id)
    box = Outbox(path)
    box.append("note", Note(text="b"))
    assert [entry.boot for entry in box.pending(0, 9)] == [old, box.boot]
    assert box.forget(old, [(1, 2)]) == 1
    assert [entry.sequence for entry in box.pending(0, 9)] == [2]


def test_a_receipt_for_another_outbox_forgets_nothing(path):
    box = Outbox(path)
    box.append("note", Note(text="a"))
    assert box.forget("another", [(1, 1)]) == 0
    assert box.counts().records == 1


def test_a_full_outbox_drops_the_oldest_counts_them_and_says_so(path):
    box = Outbox(path, max_bytes=8192)
    sequences = [box.append("note", Note(text="x" * 500)) for _ in range(40)]
    entries = box.pending(0, 1000)
    kept = [entry.sequence for entry in entries if entry.kind == "note"]
    (report,) = [decode(entry.body, Dropped) for entry in entries if entry.kind == "dropped"]
    assert kept == sequences[-len(kept) :]
    assert 0 < len(kept) < 40
    assert report.first == 1
    assert report.records == report.total == report.kinds["note"] == report.priorities["normal"]
    assert box.counts().bytes <= 8192
    box.close()
    assert Outbox(path).counts().dropped == 40 - len(kept)


def test_what_is_dropped_while_a_report_waits_is_in_the_next_one(path):
    box = Outbox(path, max_bytes=8192)
    for _ in range(40):
        box.append("note", Note(text="x" * 500))
    (first,) = [entry for entry in box.pending(0, 1000) if entry.kind == "dropped"]
    box.forget(box.boot, [(first.sequence, first.sequence)])
    (second,) = [entry for entry in box.pending(0, 1000) if entry.kind == "dropped"]
    reports = [decode(entry.body, Dropped) for entry in (first, second)]
    assert sum(report.records for report in reports) == reports[1].total == box.counts().dropped
    assert reports[1].first == reports[0].last + 1
    assert [(drop.kind, drop.records) for drop in box.drops()] == [("note", box.counts().dropped)]


def test_what_is_vital_survives_a_flood_of_bulk(path):
    box = Outbox(path, max_bytes=16384)
    vital = [box.append("update", Note(text="x" * 300)) for _ in range(10)]
    normal = [box.append("note", Note(text="x" * 300)) for _ in range(5)]
    for _ in range(300):
        box.append("sample", Note(text="x" * 300))
    waiting = {kind.kind: kind.records for kind in box.kinds()}
    assert (waiting["update"], waiting["note"], waiting["dropped"]) == (10, 5, 1)
    assert 0 < waiting["sample"] < 300
    assert {entry.sequence for entry in box.pending(0, 15)} == {*vital, *normal}


def test_what_comes_is_itself_dropped_where_all_else_matters_more(path):
    box = Outbox(path, max_bytes=8192)
    while not box.counts().dropped:
        box.append("update", Note(text="x" * 300))
    before = [entry.sequence for entry in box.pending(0, 100)]
    dropped = box.counts().dropped
    box.append_all([("sample", Note(text="x" * 300))] * 8)
    assert [s for s in before if s not in {e.sequence for e in box.pending(0, 100)}] == []
    assert box.counts().dropped > dropped
    assert {drop.kind for drop in box.drops()} == {"update", "sample"}


def test_a_record_that_can_never_fit_is_the_callers_error(path):
    box = Outbox(path, max_bytes=4096)
    with pytest.raises(CallerError, match="split it"):
        box.append("note", Note(text="x" * 3000))
    with pytest.raises(CallerError, match="split it"):
        Outbox(path).append("note", Note(text="x" * (1 << 20)))
    assert box.counts() == (0, 0, 0)


def test_a_damaged_file_is_set_aside_and_the_new_one_says_so(path):
    path.write_bytes(b"this was never a database" * 1000)
    box = Outbox(path)
    sequence = box.append("note", Note(text="a"))
    report, note = box.pending(0, 9)
    assert (report.kind, note.sequence) == ("outbox-set-aside", sequence)
    aside = decode(report.body, SetAside)
    assert Path(aside.moved_to).read_bytes().startswith(b"this was never")
    assert "not a database" in aside.reason


def test_damage_found_while_running_is_healed_and_the_append_goes_to_the_new_file(path):
    box = Outbox(path)
    box.append_all([("note", Note(text="x" * 900))] * 200)
    before = box.boot
    box._file._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    box.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(path.stat().st_size - 4096))  # noqa: S311
    box.append("note", Note(text="after"))
    assert box.boot != before
    assert [entry.kind for entry in box.pending(0, 9)] == ["outbox-set-aside", "note"]


def test_a_process_that_holds_the_damaged_file_open_moves_over_to_the_new_one(path):
    one, other = Outbox(path), Outbox(path)
    one._file.run(lambda _: one._file._set_aside("test"))
    other.append("note", Note(text="b"))
    assert other.boot == one.boot
    assert [entry.kind for entry in one.pending(0, 9)] == ["outbox-set-aside", "note"]
    assert len(list(path.parent.glob("*.damaged-*"))) >= 1


@pytest.mark.parametrize(
    "statements",
    [
        "DELETE FROM totals",
        "DROP TABLE totals",
        "DROP TABLE records",
        "DROP TABLE totals; DROP TABLE records",
        "PRAGMA user_version = 0",
        "ALTER TABLE records DROP COLUMN kind",
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_a_database_that_is_no_outbox_is_set_aside(path, caplog, statements, running):
    box = Outbox(path)
    if not running:
        box.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)
    if not running:
        box = Outbox(path)
    box.append("note", Note(text="after"))
    box.counts()
    if running and statements == "PRAGMA user_version = 0":  # read once
        return
    assert [entry.kind for entry in box.pending(0, 9)] == ["outbox-set-aside", "note"]
    assert "beginning a new one" in caplog.text


def test_the_counts_of_an_outbox_that_lost_them_are_those_of_the_new_one(path):
    box = Outbox(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM totals")
        connection.commit()
    assert box.counts().records == 1


def test_an_outbox_cut_to_nothing_under_a_running_agent_is_set_aside(path, caplog):
    box = Outbox(path)
    box.append("note", Note(text="before"))
    os.truncate(path, 0)
    box.append("note", Note(text="after"))
    assert [entry.kind for entry in box.pending(0, 9)] == ["outbox-set-aside", "note"]
    assert "cut to 0 bytes" in caplog.text


def test_an_outbox_on_a_full_disk_opens_once_there_is_room(tmp_path, caplog):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "outbox.db"
        before = Outbox(path)
        sequence = before.append("note", Note(text="before"))
        before.close()
        (disk / "other").write_bytes(bytes(disk_free(disk)))
        box = Outbox(path)
        assert "outbox.db" in caplog.text
        with pytest.raises(DeviceError, match="disk"):
            box.append("note", Note(text="full"))
        (disk / "other").unlink()
        assert box.append("note", Note(text="room")) == sequence + 1
        assert box.boot == before.boot
        box.close()


def test_a_file_of_a_later_version_is_left_alone(path):
    Outbox(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DeviceError, match=r"later ferryman.*version 99"):
        Outbox(path)
    assert list(path.parent.glob("*.damaged-*")) == []


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(DeviceError, match=r"no/such/outbox\.db"):
        Outbox(tmp_path / "no" / "such" / "outbox.db")


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from ferryman.devices.agent.outbox import Outbox
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.record import Record
class Note(Record):
    text: str
box = Outbox(Path(sys.argv[1]))
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
written = 0
try:
    while written < 1000:
        box.append("note", Note(text="x" * 1000))
        written += 1
except DeviceError as error:
    assert "disk" in str(error), error
assert 0 < written < 1000, written
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
box.append("note", Note(text="space again"))
print(written + 1, box.counts().records)
"""


def test_a_full_disk_is_a_clear_error_and_loses_nothing(path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    written, counted = map(int, done.stdout.split())
    assert written == counted
    assert len(Outbox(path).pending(0, 10_000)) == written


_APPENDER = """
import sys
from pathlib import Path
from ferryman.devices.agent.outbox import Outbox
from ferryman.runtime.contracts.record import Record
class Note(Record):
    text: str
box = Outbox(Path(sys.argv[1]))
for n in range(100):
    box.append("note", Note(text=sys.argv[2] + str(n)))
"""


def test_processes_append_to_one_outbox_at_once(path):
    processes = [subprocess.Popen([sys.executable, "-c", _APPENDER, str(path), name]) for name in ("a", "b", "c")]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    entries = Outbox(path).pending(0, 1000)
    texts = [decode(entry.body, Note).text for entry in entries]
    assert sorted(texts) == sorted(f"{name}{n}" for name in "abc" for n in range(100))
    assert len({entry.boot for entry in entries}) == 1


_VERSION_1 = """
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL, kind TEXT NOT NULL, time_ns INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE totals (id TEXT NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL, dropped INTEGER NOT NULL);
CREATE TRIGGER added AFTER INSERT ON records BEGIN
    UPDATE totals SET records = records + 1, bytes = bytes + length(new.body) + 128; END;
CREATE TRIGGER removed AFTER DELETE ON records BEGIN
    UPDATE totals SET records = records - 1, bytes = bytes - length(old.body) - 128; END;
INSERT INTO totals VALUES ('0123456789abcdef', 0, 0, 3);
INSERT INTO records VALUES (4, '0123456789abcdef.before', 'slots', 7, CAST('{"a":1}' AS BLOB));
INSERT INTO records VALUES (6, '0123456789abcdef.before', 'measurement', 8, CAST('{"b":2}' AS BLOB));
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""
"""What ferryman 0.1 made, and left on devices."""


def version_1(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.executescript(_VERSION_1)
    return connection


def test_a_file_of_version_1_is_brought_up_and_loses_nothing(path):
    version_1(path).close()
    box = Outbox(path)
    assert box.id == "0123456789abcdef"
    assert box.counts() == (2, 7 + 7 + 2 * 128, 3)
    assert box.append("note", Note(text="c")) == 7
    assert [tuple(entry) for entry in box.pending(0, 9)][:2] == [
        (4, "0123456789abcdef.before", "slots", 7, b'{"a":1}', Priority.VITAL, None, False),
        (6, "0123456789abcdef.before", "measurement", 8, b'{"b":2}', Priority.NORMAL, None, False),
    ]
    box.close()
    assert Outbox(path).counts().records == 3


def test_an_agent_of_version_1_that_has_the_file_open_goes_on(path):
    with contextlib.closing(version_1(path)) as old:
        box = Outbox(path)
        old.execute("INSERT INTO records (boot, kind, time_ns, body) VALUES ('b', 'note', 1, CAST('{}' AS BLOB))")
        old.commit()
        assert box.pending(6, 9)[0].uptime_ns is None
        assert box.counts().records == 3


_MIGRATE = """
import sys
from pathlib import Path
from ferryman.devices.agent import outbox_file
from ferryman.devices.agent.outbox import Outbox
statements = outbox_file._VERSION_2.split(";\\n")
cut = int(sys.argv[2])
outbox_file._STEPS = (outbox_file._VERSION_1, ";\\n".join([*statements[:cut], "SELECT die()"]))
import os, sqlite3
from ferryman.devices import database
real = database.connect
def connect(path, **options):
    connection = real(path, **options)
    connection.create_function("die", 0, lambda: os._exit(9))
    return connection
database.connect = connect
Outbox(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_migration_that_is_killed_is_done_again(path, cut):
    version_1(path).close()
    done = subprocess.run([sys.executable, "-c", _MIGRATE, str(path), str(cut)], check=False, timeout=60)
    assert done.returncode == 9
    assert [entry.sequence for entry in Outbox(path).pending(0, 9)] == [4, 6]


def test_births_are_counted_over_the_life_of_the_file(path):
    box = Outbox(path)
    assert [box.next_birth(), box.next_birth()] == [1, 2]
    box.close()
    assert Outbox(path).next_birth() == 3


def test_every_record_carries_both_clocks(path):
    box = Outbox(path, clock=lambda: Reading(70, 30, sure=True))
    box.append("note", Note(text="a"))
    box.append("note", Note(text="b"), Reading(7, 3, sure=False))
    assert [(e.time_ns, e.uptime_ns, e.sure) for e in box.pending(0, 9)] == [(70, 30, True), (7, 3, False)]


KINDS = ("sample", "note", "update")
MAX_BYTES = 8192


class Kept(NamedTuple):
    sequence: int
    kind: str
    priority: Priority
    size: int
    body: bytes | None
    """None: a report of drops."""


class OutboxMachine(RuleBasedStateMachine):
    """The outbox does as a plain list would."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "outbox.db"
        self.box = Outbox(self.path, max_bytes=MAX_BYTES)
        self.kept: list[Kept] = []
        self.dropped: Counter[str] = Counter()
        self.unreported = 0
        self.newest = 0

    def make_room(self, newest_from: int) -> bool:
        over = self.used() - MAX_BYTES
        freed, last = 0, None
        if over <= 0:
            return False
        for one in sorted(self.kept, key=lambda kept: (kept.priority, kept.sequence)):
            slack = one.priority == last and one.sequence < newest_from and freed < over + MAX_BYTES // 16
            if freed >= over and not slack:
                break
            last = one.priority
            freed += one.size
            self.kept.remove(one)
            self.dropped[one.kind] += 1
            self.unreported += 1
        return True

    def used(self) -> int:
        return sum(one.size for one in self.kept)

    def add(self, kind: str, body: bytes | None, size: int) -> None:
        self.newest += 1
        self.kept.append(Kept(self.newest, kind, priority(kind), size, body))

    def report(self) -> None:
        if self.unreported and not any(one.body is None for one in self.kept):
            self.unreported = 0
            (entry,) = self.box.pending(self.newest, 1) or [None]
            size = len(entry.body) if entry else 0
            self.add("dropped", None, size + OVERHEAD_BYTES)
            self.make_room(self.newest)

    @rule(records=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 900)), max_size=4))
    def append(self, records: list[tuple[str, int]]) -> None:
        notes = [(kind, Note(text="x" * size)) for kind, size in records]
        first = self.newest + 1
        assert self.box.append_all(notes) == list(range(first, first + len(notes)))
        for kind, note in notes:
            self.add(kind, encode(note), len(encode(note)) + OVERHEAD_BYTES)
        if notes and self.make_room(first):
            self.report()

    @rule(chance=st.randoms(use_true_random=False), length=st.integers(0, 8))
    def forget(self, chance: random.Random, length: int) -> None:
        first = chance.randint(1, self.newest + 1)
        gone = [one for one in self.kept if first <= one.sequence <= first + length]
        assert self.box.forget(self.box.boot, [(first, first + length)]) == len(gone)
        self.kept = [one for one in self.kept if one not in gone]
        self.report()

    @rule()
    def reopen(self) -> None:
        self.box.close()
        self.box = Outbox(self.path, max_bytes=MAX_BYTES)

    @rule(chance=st.randoms(use_true_random=False), limit=st.integers(1, 5), level=st.sampled_from(Priority))
    def read_part(self, chance: random.Random, limit: int, level: Priority) -> None:
        after = chance.randint(0, self.newest)
        of_level = [one.sequence for one in self.kept if one.priority == level and one.sequence > after]
        assert [entry.sequence for entry in self.box.waiting(level, after, limit, 1 << 20)] == of_level[:limit]
        assert [entry.sequence for entry in self.box.waiting(level, after, 99, 1)] == of_level[:1]
        whole = [one.sequence for one in self.kept if one.sequence > after]
        assert [entry.sequence for entry in self.box.pending(after, limit)] == whole[:limit]
        assert [entry.sequence for entry in self.box.between(after + 1, after + limit)] == [
            sequence for sequence in whole if sequence <= after + limit
        ]

    @invariant()
    def it_is_as_the_list(self) -> None:
        entries = self.box.pending(0, 10_000)
        assert [(e.sequence, e.kind, e.priority) for e in entries] == [
            (one.sequence, one.kind, one.priority) for one in self.kept
        ]
        for entry, one in zip(entries, self.kept, strict=True):
            assert one.body in {None, entry.body}
        assert self.box.counts() == (len(self.kept), self.used(), sum(self.dropped.values()))
        assert self.used() <= MAX_BYTES
        assert self.box.newest() == self.newest
        told = Counter[str]()
        for drop in self.box.drops():
            told[drop.kind] += drop.records
        assert told == self.dropped

    @invariant()
    def reports_tell_of_what_was_dropped(self) -> None:
        for entry in self.box.pending(0, 10_000):
            if entry.kind == "dropped":
                report = decode(entry.body, Dropped)
                assert sum(report.kinds.values()) == sum(report.priorities.values()) == report.records
                assert report.total + self.unreported == sum(self.dropped.values())

    def teardown(self) -> None:
        self.box.close()
        self.folder.cleanup()


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
