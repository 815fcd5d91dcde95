from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.logs import PER_MINUTE, WAITING_MAX, LogRecords
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.recorder import UNRECORDED_MAX, Recorder
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.telemetry import LOG_MAX_CHARS, LogLine, Sample

log = logging.getLogger("ferryman.tests.logs")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def logs(clock):
    one = LogRecords(["hunter/2", None, ""], clock)
    with one.listening():
        yield one


def test_warnings_and_worse_are_told_equal_ones_once(logs):
    log.info("fine")
    for _ in range(3):
        log.warning("low on %s", "disk")
    log.error("broken")
    log.critical("gone")
    assert logs.take() == [
        LogLine(level="WARNING", logger="ferryman.tests.logs", message="low on disk", times=3),
        LogLine(level="ERROR", logger="ferryman.tests.logs", message="broken"),
        LogLine(level="CRITICAL", logger="ferryman.tests.logs", message="gone"),
    ]
    assert logs.take() == []


def test_so_many_a_minute_become_records_and_what_waits_is_counted(logs, clock):
    for n in range(PER_MINUTE + 5):
        log.warning("message %d", n)
    assert len(logs.take()) == PER_MINUTE
    log.warning("message %d", PER_MINUTE)
    assert logs.take() == []
    clock.now = 4.0
    assert [(one.message, one.times) for one in logs.take()] == [
        (f"message {PER_MINUTE}", 2),
        (f"message {PER_MINUTE + 1}", 1),
    ]
    clock.now = 10_000.0
    assert len(logs.take()) == 3
    clock.now = 20_000.0
    for n in range(PER_MINUTE + 5):  # an hour of silence does not allow more at once
        log.warning("again %d", n)
    assert len(logs.take()) == PER_MINUTE


def test_what_waits_is_bounded_and_the_rest_a_number(logs, clock):
    for n in range(WAITING_MAX + 7):
        log.warning("message %d", n)
    lines = []
    while not lines or lines[-1].message != "more messages than are kept":
        clock.now += 60
        lines += logs.take()
    assert len(lines) == WAITING_MAX + 1
    assert lines[-1].times == 7


def test_no_secret_is_told(logs):
    log.warning("cannot reach mqtt://me:hunter/2@host")
    log.warning("nor mqtts://me:hunter%%2F2@host nor %s", "https://user:other@host/x")
    log.error("refused", exc_info=ValueError("hunter/2 is wrong"))
    told = [one.message for one in logs.take()]
    assert not [text for text in told if "hunter" in text or "other" in text]
    assert told[0] == "cannot reach mqtt://me:***@host"
    assert "https://user:***@host/x" in told[1]
    assert told[2].startswith("refused\n")
    assert "ValueError: *** is wrong" in told[2]


@given(st.text(max_size=3 * LOG_MAX_CHARS))
def test_whatever_is_logged_makes_a_record_that_can_be_read(text):
    logs = LogRecords()
    logs.emit(logging.LogRecord("ferryman" * 40, logging.ERROR, "", 0, "%s", (text,), None))
    (line,) = logs.take()
    assert decode(encode(line), LogLine) == line
    assert "\0" not in line.message


def emit(logs, message, *arguments):
    """Past pytest's own handlers."""
    logs.emit(logging.LogRecord("ferryman.x", logging.ERROR, "", 0, message, arguments, None))


def test_half_a_character_is_none():
    logs = LogRecords()
    emit(logs, "no file %s", b"\xff".decode(errors="surrogateescape"))
    (line,) = logs.take()
    assert encode(line)
    assert line.message == "no file ?"


def test_a_message_that_does_not_fit_its_arguments_harms_nobody(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logs = LogRecords()
    emit(logs, "%d", "x")
    emit(logs, "next")
    assert [one.message for one in logs.take()] == ["next"]


def test_a_record_that_cannot_be_kept_makes_no_next_one(logs, tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox.sqlite")

    def full(*_):
        log.warning("trying")
        raise DeviceError("full")

    monkeypatch.setattr(outbox, "append", full)
    recorder = Recorder(outbox)
    log.warning("first")
    with logs.quiet():
        recorder.put([("log", line) for line in logs.take()])
    assert logs.take() == []
    log.warning("heard again")
    assert [one.message for one in logs.take()] == ["heard again"]
    outbox.close()


def test_while_the_disk_is_full_readings_make_room_for_what_matters_more(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox.sqlite")
    append = outbox.append

    def full(*_):
        raise DeviceError("full")

    monkeypatch.setattr(outbox, "append", full)
    recorder = Recorder(outbox)
    sample = Sample(period_s=1, values={})
    recorder.put([("update", sample), ("measurement", sample)])
    recorder.put([("sample", sample)] * 3 * UNRECORDED_MAX)
    assert recorder.lost == 2 * UNRECORDED_MAX + 2
    monkeypatch.setattr(outbox, "append", append)
    recorder.put([])
    kinds = [entry.kind for entry in outbox.pending(0, 100)]
    assert kinds == ["update", "measurement", *["sample"] * (UNRECORDED_MAX - 2)]
    outbox.close()
