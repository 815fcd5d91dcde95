from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from ferryman.devices.fleet.alerts.book import GIVE_UP_S, SHOWN_MAX, Book
from ferryman.devices.fleet.alerts.chosen import Chosen
from ferryman.devices.fleet.alerts.config import Config, Grouping, Silence, Tell
from ferryman.devices.fleet.alerts.kept import Kept
from ferryman.devices.fleet.rollout.query import Target
from ferryman.runtime.contracts.alert import Alert

SECOND = 10**9
A, B = "tell[0]", "tell[1]"


def row(number: int, device: str, rule: str = "offline", *, until_s: int | None = None, severity="critical") -> Kept:
    until_ns = None if until_s is None else until_s * SECOND
    alert = Alert(
        device=device, rule=rule, severity=severity, text="is offline", since_ns=90 * SECOND, until_ns=until_ns
    )
    return Kept(number, told=False, alert=alert)


def target(device: str) -> Target:
    return Target(name=device, labels={"site": device.partition("-")[0]} if "-" in device else {})


def book_of(*tells: Tell, silences=(), board=None, **group) -> Book:
    book = Book(board)
    grouping = Grouping(**{"wait_s": 30, "every_s": 300, **group})
    book.configure(Config(group=grouping, tells=tells or (Tell(url="json://x"),), silences=tuple(silences)))
    return book


def titles(book: Book, now_s: float, sink: str = A, wall_s: float = 0) -> list[str]:
    return [due.notice.title for due in book.due(sink, now_s, wall_s)]


def tell(book: Book, now_s: float, sink: str = A) -> list[str]:
    found = book.due(sink, now_s, 0)
    for due in found:
        book.done(sink, due, now_s)
    return [due.notice.title for due in found]


def test_a_site_that_goes_dark_is_one_notice():
    book = book_of()
    book.update([row(n, f"lab-{n}") for n in range(200)] + [row(999, "barn-1")], target, 0)
    assert titles(book, 29) == []
    assert titles(book, 30) == ["critical: offline: 200 devices at site=lab", "critical: offline: barn-1 at site=barn"]
    text = book.due(A, 30, 0)[0].notice.text.splitlines()
    assert len(text) == SHOWN_MAX + 1
    assert text[0] == "lab-0: is offline (since 1970-01-01 00:01:30 UTC)"
    assert text[-1] == "and 180 more"
    assert len(book.due(A, 30, 0)[0].notice.alerts) == 200


def test_stragglers_are_one_more_notice_and_not_one_each():
    book = book_of()
    rows = [row(0, "lab-0")]
    book.update(rows, target, 0)
    assert tell(book, 30) == ["critical: offline: lab-0 at site=lab"]
    for n in range(1, 20):
        rows.append(row(n, f"lab-{n}"))
        book.update(rows, target, 30 + n)
        assert tell(book, 31 + n) == []
    assert tell(book, 330) == ["critical: offline: 19 devices at site=lab"]
    assert tell(book, 10_000) == []


def test_what_everybody_was_told_is_given_back_once_and_not_told_again():
    book = book_of(Tell(url="json://x"), Tell(url="json://y"), board="mqtt")
    book.update([row(1, "pi")], target, 0)
    tell(book, 30, A)
    tell(book, 30, B)
    assert book.take_told() == []
    book.posted(1, over=False)
    assert book.take_told() == [(1, False)]
    book.update([row(1, "pi")], target, 31)  # the store does not know yet
    assert titles(book, 999) == []
    book.forget_told([(1, False)])
    book.update([], target, 32)
    assert book.take_told() == []


def test_an_alert_that_ends_is_told_anew_and_whoever_was_not_reached_hears_only_of_the_end():
    book = book_of(Tell(url="json://x"), Tell(url="json://y"))
    book.update([row(1, "pi")], target, 0)
    tell(book, 30, A)
    book.update([row(1, "pi", until_s=150)], target, 60)
    assert tell(book, 90, A) == ["resolved: offline: pi"]
    (due,) = book.due(B, 90, 0)
    assert due.notice.resolved
    assert due.notice.text == ("pi: is over: is offline (1970-01-01 00:01:30 UTC to 1970-01-01 00:02:30 UTC)")


def test_a_notice_that_is_taken_after_its_alert_ended_does_not_tell_of_the_end():
    book = book_of()
    book.update([row(1, "pi")], target, 0)
    (due,) = book.due(A, 30, 0)
    book.update([row(1, "pi", until_s=150)], target, 31)
    book.done(A, due, 32)
    assert book.take_told() == []
    assert titles(book, 90) == ["resolved: offline: pi"]


def test_each_hears_only_of_what_it_asked_for():
    book = book_of(
        Tell(url="json://x", severity="critical"), Tell(url="json://y", devices="site=lab", rules=("offline",))
    )
    rows = [row(1, "lab-1", severity="warning"), row(2, "barn-1"), row(3, "lab-2", "disk", severity="warning")]
    book.update(rows, target, 0)
    assert titles(book, 30, A) == ["critical: offline: barn-1 at site=barn"]
    assert titles(book, 30, B) == ["warning: offline: lab-1 at site=lab"]
    assert book.take_told() == [(3, False)]  # nobody asked


def test_silenced_until_a_time_then_told_if_it_still_holds():
    silence = Silence(until=datetime.fromtimestamp(1000, UTC), devices="site=lab", rules=("offline",))
    book = book_of(silences=[silence])
    book.update([row(1, "lab-1"), row(2, "lab-2", "disk"), row(3, "barn-1")], target, 0)
    assert titles(book, 30, wall_s=999) == [
        "critical: disk: lab-2 at site=lab",
        "critical: offline: barn-1 at site=barn",
    ]
    assert "critical: offline: lab-1 at site=lab" in titles(book, 30, wall_s=1000)


def test_what_ends_while_it_is_silenced_is_not_told():
    book = book_of(silences=[Silence(until=datetime.fromtimestamp(1000, UTC))])
    book.update([row(1, "lab-1", until_s=150)], target, 0)
    assert titles(book, 30, wall_s=999) == []
    assert book.take_told() == [(1, True)]


def test_silences_of_the_store_stand_beside_those_of_the_file():
    book = book_of(silences=[Silence(until=datetime.fromtimestamp(1000, UTC), devices="site=lab")])
    book.update([row(1, "lab-1"), row(2, "barn-1")], target, 0)
    book.silence([(500.0, Chosen("barn-*", ("offline",)))])
    assert titles(book, 30, wall_s=499) == []
    assert titles(book, 30, wall_s=500) == ["critical: offline: barn-1 at site=barn"]
    book.silence([(500.0, Chosen("barn-*", ("disk",)))])
    assert titles(book, 30, wall_s=499) == ["critical: offline: barn-1 at site=barn"]


def test_other_silences_tell_nobody_twice():
    tells = (Tell(url="json://x"), Tell(url="json://y"))
    book = book_of(*tells)
    book.update([row(1, "pi")], target, 0)
    tell(book, 30, A)
    silence = Silence(until=datetime.fromtimestamp(1000, UTC), devices="site=barn")
    book.configure(Config(group=Grouping(wait_s=30, every_s=300), tells=tells, silences=(silence,)))
    assert titles(book, 999, A) == []
    assert titles(book, 999, B) == ["critical: offline: pi"]


def test_who_cannot_be_told_for_a_day_is_not_told():
    book = book_of()
    book.update([row(1, "pi")], target, 0)
    assert titles(book, 30 + GIVE_UP_S) == ["critical: offline: pi"]
    assert titles(book, 31 + GIVE_UP_S) == []
    assert book.take_told() == [(1, False)]


def test_neither_a_long_silence_nor_a_long_wait_counts_as_not_being_told():
    book = book_of(silences=[Silence(until=datetime.fromtimestamp(2 * GIVE_UP_S, UTC))])
    book.update([row(1, "pi")], target, 0)
    assert titles(book, 2 * GIVE_UP_S - 1, wall_s=2 * GIVE_UP_S - 1) == []
    assert titles(book, 2 * GIVE_UP_S + 60, wall_s=2 * GIVE_UP_S + 60) == ["critical: offline: pi"]
    book = book_of(wait_s=GIVE_UP_S)
    book.update([row(1, "pi")], target, 0)
    assert titles(book, GIVE_UP_S - 1) == []
    assert titles(book, GIVE_UP_S + 5) == ["critical: offline: pi"]


@pytest.mark.parametrize("gone", ["told", "forgotten"])
def test_what_the_store_has_no_more_is_not_told(gone):
    book = book_of()
    book.update([row(1, "pi")], target, 0)
    book.update([], target, 1) if gone == "told" else book.forget()
    assert titles(book, 30) == []


def test_what_a_device_says_of_itself_makes_no_long_notice():
    book = book_of(wait_s=0)
    long = row(1, "pi")._replace(alert=msgspec.structs.replace(row(1, "pi").alert, text="\x1b" + "x" * 10**6))
    book.update([long], lambda device: Target(name=device, labels={"site": "a\nb" + "x" * 10**6}), 0)
    (due,) = book.due(A, 0, 0)
    assert len(due.notice.title) < 200
    assert len(due.notice.group) < 200
    assert len(due.notice.text) < 1000
    assert (due.notice.title + due.notice.text).isprintable()
