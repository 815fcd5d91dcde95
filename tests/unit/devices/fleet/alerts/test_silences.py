"""Silences in the store: bounded, ended early, kept for whoever looks back."""

from __future__ import annotations

import contextlib

import pytest

from ferryman.devices.fleet.alerts import silences
from ferryman.devices.fleet.query.alerts import alerts
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import open_store
from ferryman.runtime.contracts.errors import CallerError
from tests.support.postgresql import new_database
from tests.support.seeded import NOW_NS, alert, join, status

HOUR_NS = 3600 * 10**9


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def where(request, tmp_path):
    with contextlib.ExitStack() as stack:
        yield tmp_path / "store.db" if request.param == "sqlite" else stack.enter_context(new_database())


@pytest.fixture
def store(where):
    with contextlib.closing(open_store(where)) as opened:
        yield opened


def add(store, devices="all", *rules, for_s=3600.0, by="eve@host", why="a new roof", now_ns=NOW_NS):
    return silences.add(store, devices, rules, for_s=for_s, by=by, why=why, now_ns=now_ns)


def test_it_is_in_force_until_its_end_and_kept_afterwards(store):
    first, second = add(store, "site=lab", "offline", "disk"), add(store, for_s=60)
    assert first.rules == ("offline", "disk")
    assert (first.by, first.why, first.ends_ns - first.since_ns) == ("eve@host", "a new roof", HOUR_NS)
    assert silences.read(store, now_ns=NOW_NS) == [second, first]
    assert silences.read(store, now_ns=NOW_NS + 60 * 10**9) == [first]
    assert silences.read(store, now_ns=NOW_NS + HOUR_NS) == []
    assert silences.read(store) == [second, first]
    silences.forget(store, NOW_NS + HOUR_NS)
    assert silences.read(store) == [first]


def test_it_is_ended_once_and_says_by_whom(store):
    made = add(store)
    ended = silences.end(store, made.id, "mallory@other", NOW_NS + 5)
    assert (ended.ended_by, ended.ends_ns, ended.until_ns) == ("mallory@other", NOW_NS + 5, made.until_ns)
    assert silences.read(store, now_ns=NOW_NS + 5) == []
    other = add(store, now_ns=NOW_NS + 6)
    for which in (made.id, -1, 1 << 80):
        with pytest.raises(CallerError, match=f"no silence {which} is in force; there are: {other.id}"):
            silences.end(store, which, "x", NOW_NS + 7)
    assert silences.read(store)[1] == ended


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"devices": "site=="}, "query, character 6"),
        ({"for_s": 0}, "no longer than 30 days"),
        ({"for_s": float("nan")}, "no longer than 30 days"),
        ({"for_s": 31 * 86_400}, "no longer than 30 days"),
        ({"why": " "}, "say why in 1 to 500 characters"),
        ({"why": "x" * 501}, "say why in 1 to 500 characters"),
    ],
)
def test_what_is_out_of_bounds_is_refused(store, more, message):
    with pytest.raises(CallerError, match=message):
        add(store, **more)
    for rules in (["a,b"], [""], ["x" * 65], ["x"] * 51):
        with pytest.raises(CallerError, match="name at most 50 rules"):
            add(store, "all", *rules)
    assert silences.read(store) == []


def test_so_many_at_once_and_no_more(store, monkeypatch):
    monkeypatch.setattr(silences, "MOST", 2)
    first = add(store)
    add(store, for_s=10)
    with pytest.raises(CallerError, match="2 silences are in force; end one"):
        add(store)
    silences.end(store, first.id, "x", NOW_NS + 1)
    add(store, now_ns=NOW_NS + 2)


def test_a_store_of_before_silences_is_read_and_gets_them_from_who_writes(where):
    with contextlib.closing(open_store(where)) as store:
        alert(store, "pi")
        store.write(tables.silences.drop)
    with contextlib.closing(open_store(where, create=False)) as store:
        assert silences.read(store) == []
        assert [row.silence for row in alerts(store, now_ns=NOW_NS).rows] == [None]
        assert not store.has(tables.silences)
    with contextlib.closing(open_store(where)) as store:
        assert add(store).id == 1


def test_alerts_tell_which_of_them_are_silenced_longest_by_what(store):
    join(store, status("lab-1", labels={"site": "lab"}), status("barn-1"))
    for device, rule in (("lab-1", "offline"), ("lab-1", "disk"), ("barn-1", "disk"), ("unknown", "disk")):
        alert(store, device, rule)
    alert(store, "lab-1", "clock", until_ns=NOW_NS)
    add(store, "site=lab")
    longest = add(store, "site=lab", "disk", for_s=7200)
    unknown = add(store, "unknown", for_s=60)
    found = {(row.device, row.rule): row for row in alerts(store, now_ns=NOW_NS, past=True).rows}
    numbers = {key: row.silence for key, row in found.items()}
    assert numbers == {
        ("lab-1", "offline"): longest.id - 1,
        ("lab-1", "disk"): longest.id,
        ("barn-1", "disk"): None,
        ("unknown", "disk"): unknown.id,
        ("lab-1", "clock"): None,
    }
    assert found["lab-1", "disk"].silenced_until_ns == longest.until_ns
    later = alerts(store, now_ns=NOW_NS + 2 * HOUR_NS).rows
    assert {row.silence for row in later} == {None}
