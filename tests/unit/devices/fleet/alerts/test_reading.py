"""What is new is read once, in order, and by the key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ferryman.devices.fleet.alerts import reading
from ferryman.devices.fleet.alerts.reading import Reader
from ferryman.devices.fleet.store.store import Store, open_store
from tests.support.alerts import SECOND, Note, Scene
from tests.support.postgresql import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path: Path) -> Iterator[Store]:
    with contextlib.ExitStack() as stack:
        where = tmp_path / "store.db" if request.param == "sqlite" else stack.enter_context(new_database())
        yield stack.enter_context(contextlib.closing(open_store(where)))


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


def numbered(*numbers: int, kind: str = "sample") -> list[Note]:
    return [Note(kind, {"n": number}) for number in numbers]


def read(reader: Reader, scene: Scene, *devices: str) -> list[str]:
    scene.wait(5)
    return [news.body for news in reader.read(scene.store, devices, scene.now_ns)]


def bodies(*numbers: int) -> list[str]:
    return [f'{{"n": {number}}}' for number in numbers]


def test_each_record_comes_once_and_in_order(scene):
    reader = Reader()
    assert read(reader, scene) == []
    scene.send("pi", *numbered(1, 2))
    scene.send("other", *numbered(3))
    assert read(reader, scene, "pi", "other") == bodies(1, 2, 3)
    assert read(reader, scene, "pi", "other") == []
    scene.send("pi", *numbered(4), boot="another.boot")
    assert read(reader, scene) == bodies(4)  # a new run of numbers is seen by itself


def test_other_kinds_are_not_read(scene):
    reader = Reader()
    read(reader, scene)
    scene.send("pi", *numbered(1, kind="measurement"), *numbered(2, kind="dropped"), *numbered(3, kind="drift"))
    assert read(reader, scene, "pi") == bodies(2, 3)


def test_what_is_too_fresh_waits_with_all_that_follows_it(scene):
    reader = Reader()
    read(reader, scene)
    scene.send("pi", *numbered(1))
    found = reader.read(scene.store, ["pi"], scene.now_ns + reading.SETTLE_NS - 1)
    assert list(found) == []
    assert read(reader, scene) == bodies(1)  # it need not speak again


def test_a_reader_begins_with_the_last_minute(scene):
    scene.send("pi", *numbered(*range(50)))
    scene.wait(120)
    scene.send("pi", *numbered(*range(50, 80)))
    reader = Reader()
    assert read(reader, scene, "pi") == bodies(*range(60, 80))
    assert read(reader, scene, "pi") == []


def test_what_is_more_than_one_reading_holds_is_read_in_the_next(scene, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 3)
    queries = {name: query.replace("LIMIT 20000", "LIMIT 3") for name, query in reading._QUERIES.items()}
    monkeypatch.setattr(reading, "_QUERIES", queries)
    reader = Reader()
    read(reader, scene)
    scene.send("pi", *numbered(*range(8)))
    assert [read(reader, scene) for _ in range(4)] == [bodies(0, 1, 2), bodies(3, 4, 5), bodies(6, 7), []]


def test_a_run_that_is_over_is_no_longer_followed(scene):
    reader = Reader()
    read(reader, scene)
    scene.send("pi", *numbered(1), boot="old.boot")
    read(reader, scene)
    scene.wait(2 * reading.QUIET_NS / SECOND)
    scene.send("pi", *numbered(2), boot="new.boot")
    read(reader, scene)
    assert len(reader._of["pi"]) == 1


def test_a_long_table_is_not_read_for_what_is_new_in_it(store):
    filled = """INSERT INTO records (source, sequence, kind, time_ns, recorded_ns, uptime_ns, clock, received_ns, body)
                VALUES (:source, :sequence, 'sample', 1, 1, 1, 0, 1, '{}')"""
    rows = [{"source": source, "sequence": number} for source in range(40) for number in range(100)]
    store.write(lambda connection: connection.execute(text(filled), rows) and None)
    query = reading._QUERIES[store.dialect].format(asked="(1, 99), (2, 99)", not_before_ns=0)
    explain = "EXPLAIN QUERY PLAN" if store.dialect == "sqlite" else "EXPLAIN"
    plan = "\n".join(str(tuple(row)) for row in store.read(text(f"{explain} {query}")))
    assert "Seq Scan" not in plan
    assert "SCAN records" not in plan
    assert ("SEARCH records USING" if store.dialect == "sqlite" else "_pkey") in plan
