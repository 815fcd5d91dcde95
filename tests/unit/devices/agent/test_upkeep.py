from __future__ import annotations

from ferryman.devices.agent.clock import Reading, kernel_boot
from ferryman.devices.agent.outbox import Dropped, Outbox
from ferryman.devices.agent.upkeep import EXPIRE_EVERY_S, NOTE, Upkeep
from ferryman.runtime.contracts.record import Record, decode
from ferryman.runtime.contracts.telemetry import ClockFix

S = 10**9
DAY = 86_400 * S
NOW = 1_795_000_000 * S


class Note(Record):
    text: str = "x"


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.reading = Reading(NOW, 50 * S, sure=True)

    def __call__(self) -> Reading:
        return self.reading

    def pass_(self, ns: int) -> None:
        self.reading = self.reading._replace(time_ns=self.reading.time_ns + ns, uptime_ns=self.reading.uptime_ns + ns)


def kinds(box: Outbox) -> list[str]:
    return [entry.kind for entry in box.pending(0, 100)]


def test_the_clock_goes_on_record_when_it_becomes_sure_and_when_it_is_stepped(tmp_path):
    hands = Hands()
    hands.reading = Reading(5 * S, 3 * S, sure=False)
    box = Outbox(tmp_path / "o", clock=hands)
    upkeep = Upkeep(box)
    upkeep.look(0)
    assert kinds(box) == []
    hands.reading = Reading(NOW, 50 * S, sure=True)
    upkeep.look(1)
    hands.pass_(9 * S)
    upkeep.look(2)
    Upkeep(box).look(3)  # a restart is no news
    hands.reading = hands.reading._replace(time_ns=NOW - DAY)
    upkeep.look(4)
    fixes = [decode(entry.body, ClockFix) for entry in box.pending(0, 9)]
    assert fixes == [
        ClockFix(kernel_boot=kernel_boot(), offset_ns=NOW - 50 * S),
        ClockFix(kernel_boot=kernel_boot(), offset_ns=NOW - DAY - 59 * S),
    ]


def test_a_damaged_note_means_one_more_record(tmp_path):
    box = Outbox(tmp_path / "o", clock=Hands())
    box.keep_note(NOTE, b"{")
    Upkeep(box).look(0)
    assert kinds(box) == ["clock"]


def test_bulk_that_is_too_old_goes_and_is_reported(tmp_path):
    hands = Hands()
    box = Outbox(tmp_path / "o", keep_days=2, clock=hands)
    upkeep = Upkeep(box)
    upkeep.look(0)
    for kind in ("sample", "log", "note"):
        box.append(kind, Note())
    hands.pass_(DAY)
    box.append("sample", Note())
    upkeep.look(EXPIRE_EVERY_S)
    assert kinds(box) == ["clock", "sample", "log", "note", "sample"]
    hands.pass_(DAY + 1)
    upkeep.look(EXPIRE_EVERY_S + 1)
    assert "log" in kinds(box)
    upkeep.look(2 * EXPIRE_EVERY_S)
    assert kinds(box) == ["clock", "note", "sample", "dropped"]
    report = decode(box.pending(0, 9)[-1].body, Dropped)
    assert (report.records, report.aged, report.first, report.last) == (2, 2, 2, 3)
    assert report.kinds == {"sample": 1, "log": 1}
    assert {(drop.kind, drop.aged) for drop in box.drops()} == {("sample", True), ("log", True)}


def test_a_jump_of_the_clock_makes_nothing_old(tmp_path):
    hands = Hands()
    box = Outbox(tmp_path / "o", keep_days=2, clock=hands)
    box.append("sample", Note())
    for jump in (30 * DAY, -90 * DAY):
        hands.reading = hands.reading._replace(time_ns=hands.reading.time_ns + jump)
        box.expire()
        assert kinds(box) == ["sample"]


def test_records_of_an_earlier_boot_age_by_the_wall_clock_where_it_was_and_is_sure(tmp_path):
    hands = Hands()
    box = Outbox(tmp_path / "o", keep_days=2, clock=hands)
    now_boot = box._kernel_boot
    box._kernel_boot = "earlier"
    box.append("sample", Note(), Reading(5 * S, 9 * S, sure=False))
    box.append("sample", Note(), Reading(NOW - 3 * DAY, 9 * S, sure=True))
    box.append("sample", Note(), Reading(5 * S, 10 * S, sure=False))
    box._kernel_boot = now_boot
    hands.reading = hands.reading._replace(sure=False)
    box.expire()
    assert len(kinds(box)) == 3
    hands.reading = hands.reading._replace(sure=True)
    box.expire()  # the first came before the second, and is as old at least; of the third nobody knows
    assert [entry.sequence for entry in box.pending(0, 1)] == [3]


def test_a_new_file_is_told_of_the_clock_too(tmp_path):
    box = Outbox(tmp_path / "o", clock=Hands())
    upkeep = Upkeep(box)
    upkeep.look(0)
    for part in tmp_path.glob("o*"):
        part.unlink()
    box.append("note", Note())
    upkeep.look(1)
    assert kinds(box) == ["note", "clock"]
