from __future__ import annotations

import contextlib
import sqlite3

import pytest

from ferryman.devices.fleet.rollout.records import Changes, Entry, Found, Progress, Row
from ferryman.devices.fleet.rollout.start import make_plan
from ferryman.devices.fleet.rollout.store import RolloutStore
from ferryman.runtime.contracts.errors import CallerError, StoreError
from tests.support.disk import disk_free, small_disk
from tests.support.rollouts import NEW, FakeDevice, measured

ENTRY = Entry(at_ns=1, who="me", what="start")


@pytest.fixture
def store(tmp_path):
    opened = RolloutStore(tmp_path / "r.sqlite")
    yield opened
    opened.close()


def added(store, seconds=0):
    plan = make_plan("net/2", NEW, "all", now_ns=(1_800_000_000 + seconds) * 10**9)
    store.add(plan, Progress(rings=2), [Row(device="b", ring=0), Row(device="a", ring=1)], ENTRY)
    return plan


def test_what_was_committed_is_there_after_opening_again(store):
    plan = added(store)
    device = FakeDevice("a")
    changes = Changes(
        progress=Progress(rings=2, ring=1, phase="paused"),
        rows=(Row(device="a", ring=1, state="asked", version=7, report=device.first()),),
        entries=(Entry(at_ns=2, who="me", what="pause", why="lunch"),),
        found=(Found(device="a", kind="pi4", measured=(measured("50", 3.0),)),),
    )
    store.ask(plan.id, "pause", "me", "lunch")
    store.ask(plan.id, "resume", "me")
    store.commit(plan, changes, store.requests(plan.id)[:1])
    store.close()
    again = RolloutStore(store.path, create=False)
    assert again.find(plan.id) == (plan, changes.progress)
    assert again.rows(plan.id) == [Row(device="b", ring=0), changes.rows[0]]
    assert [one.what for one in again.log(plan.id)] == ["start", "pause"]
    assert again.found(NEW) == list(changes.found)
    assert again.found("other") == []
    assert [one.verb for one in again.requests(plan.id)] == ["resume"]
    assert again.versions() == {"a": 7, "b": 0}
    again.close()


def test_a_rollout_is_found_by_how_its_id_begins(store):
    first, second = added(store), added(store, 100_000)
    assert store.find(None)[0] == second
    assert store.find(first.id[:9])[0] == first
    assert store.find(first.id[-4:])[0] == first
    assert store.ids() == [first.id, second.id]
    with pytest.raises(CallerError, match="several rollouts begin or end with 2"):
        store.find("2")
    with pytest.raises(CallerError, match=r"no rollout x in .*r\.sqlite"):
        store.find("x")


def test_one_process_drives(store):
    plan = added(store)
    other = RolloutStore(store.path)
    with store.driving(plan.id) as alone:
        assert alone
        with other.driving(plan.id) as too:
            assert not too
        with other.driving("another") as free:
            assert free
    with other.driving(plan.id) as free:
        assert free
    other.close()


def test_other_files_are_not_touched(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"hello" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        RolloutStore(text)
    assert text.read_bytes() == b"hello" * 1000
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE records (id)")
    connection.close()
    with pytest.raises(StoreError, match="is no file of rollouts"):
        RolloutStore(other)
    with pytest.raises(CallerError, match="no rollouts in"):
        RolloutStore(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_later_version_and_a_damaged_row_are_told(store):
    plan = added(store)
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE rollout_devices SET row = '{}'")
    with pytest.raises(StoreError, match=r"is damaged: .* restore it"):
        store.rows(plan.id)
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="later ferryman"):
        RolloutStore(store.path)


def test_a_full_disk_loses_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as place:
        store = RolloutStore(place / "r.sqlite")
        plan = added(store)
        with contextlib.suppress(OSError):
            (place / "filler").write_bytes(bytes(disk_free(place)))
        entries = tuple(Entry(at_ns=n, who="me", what="x" * 1000) for n in range(1000))
        changes = Changes(progress=Progress(rings=2, ring=1), entries=entries)
        with pytest.raises(StoreError, match="free some space"):
            store.commit(plan, changes)
        assert store.find(plan.id)[1] == Progress(rings=2)
        (place / "filler").unlink()
        store.commit(plan, Changes(progress=Progress(rings=2, ring=1)))
        assert store.find(plan.id)[1].ring == 1
        store.close()
