from __future__ import annotations

import ctypes
import errno

import pytest

from ferryman.runtime import synchronized
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.synchronized import clock_synchronized


def answering(answer, *, status=0, number=0):
    def adjtimex(pointer):
        assert pointer._obj.modes == 0, "it must only be read"
        pointer._obj.status = status
        ctypes.set_errno(number)
        return answer

    return type("Libc", (), {"adjtimex": staticmethod(adjtimex)})


@pytest.fixture
def note(monkeypatch, tmp_path):
    monkeypatch.setattr(synchronized, "_TIMESYNCD", tmp_path / "synchronized")
    return tmp_path / "synchronized"


@pytest.mark.usefixtures("note")
@pytest.mark.parametrize(("status", "answer", "found"), [(0x2001, 0, True), (0x40, 5, False), (0x41, 0, False)])
def test_the_kernel_says(monkeypatch, status, answer, found):
    monkeypatch.setattr(synchronized, "_libc", answering(answer, status=status))
    assert clock_synchronized() is found


@pytest.mark.parametrize(
    ("libc", "says"),
    [(answering(-1, number=errno.EPERM), "adjtimex: Operation not permitted"), (object(), "the C library has no")],
)
def test_where_it_may_not_be_asked_the_note_of_timesyncd_counts_and_without_one_nobody_knows(
    monkeypatch, note, libc, says
):
    monkeypatch.setattr(synchronized, "_libc", libc)
    found = clock_synchronized()
    assert isinstance(found, Unavailable)
    assert says in found.reason
    note.touch()
    assert clock_synchronized() is True


def test_the_real_kernel_answers_or_says_why_not():
    found = clock_synchronized()
    assert isinstance(found, bool) or "adjtimex" in found.reason
