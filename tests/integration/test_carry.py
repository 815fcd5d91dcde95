"""A store of SQLite carried to a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import insert, select, text

from ferryman.cli import main
from ferryman.devices.fleet.alerts import silences
from ferryman.devices.fleet.collector import carry as carrying
from ferryman.devices.fleet.collector.carry import TABLES, carry
from ferryman.devices.fleet.collector.instance import only_one
from ferryman.devices.fleet.collector.leader import ALERTS, Leader
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.quarantine import Bad
from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import Batch, Store, open_store
from ferryman.runtime.contracts.errors import CallerError, StoreError
from tests.support.postgresql import new_database
from tests.support.seeded import HOUR_NS, NOW_NS, alert, join, put, sample, status

DAY_NS = 24 * HOUR_NS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One that has been at work for two months: rollups, sealed hours, sequences that are gone, quarantine, alerts."""
    path = tmp_path / "store.sqlite"
    with closing(open_store(path)) as store:
        join(store, status("a", labels={"site": "lab"}), status("b", online=False))
        for device in "ab":
            for time_ns in range(NOW_NS - 40 * DAY_NS, NOW_NS, 3 * DAY_NS):
                put(store, device, "sample", {time_ns: sample([1.5, 2.5], SHA)}, received_ns=time_ns)
            put(store, device, "sample", {NOW_NS - n * 60 * 10**9: sample([1.5, n]) for n in range(7)}, sure=False)
            put(store, device, "slots", {NOW_NS: {"active": None}})
        put(store, "a", "log", {NOW_NS: {"message": "tab\t, line\n, \\ and ö"}})
        put(store, "a", "clock", {NOW_NS: {"kernel_boot": "k", "offset_ns": 5 * 10**9}})
        store.insert(Batch(bad=[Bad("ferryman/v1/a/telemetry", b"\x00\xff\n", "no envelope")]), NOW_NS)
        silences.add(store, "site=lab", ("disk",), for_s=3600, by="eve", why="a new disk", now_ns=NOW_NS)
        alert(store, "a")
        alert(store, "b", until_ns=NOW_NS, told_ns=NOW_NS)
        reference = insert(tables.references).values(device="a", serves="x", made_ns=1, body="{}")
        store.write(lambda connection: connection.execute(reference) and None)
        roll_up(store, NOW_NS)
        retain(store, Policy(), NOW_NS)
        assert [table.name for table in TABLES if not store.read(select(table).limit(1))] == []
    return path


SHA = "1" * 64


@pytest.fixture
def target():
    with new_database() as url:
        yield url


def content(where: str | Path) -> dict[str, list[tuple]]:
    with closing(open_store(where, create=False)) as store:
        return {table.name: sorted(map(tuple, store.read(select(table))), key=repr) for table in TABLES}


def test_everything_is_there_and_goes_on_there(source, target):
    found = carry(source, target)
    assert content(target) == content(source)
    assert {one.table: one.rows for one in found} == {name: len(rows) for name, rows in content(source).items()}
    with closing(open_store(target)) as store:
        put(store, "c", "log", {NOW_NS: {"message": "new"}})
        alert(store, "c")
        assert silences.add(store, "all", (), for_s=60, by="eve", why="x", now_ns=NOW_NS).id == 2
        assert store.totals().devices == 2
        ids = [number for (number,) in store.read(select(tables.sources.c.id))]
        assert len(ids) == len(set(ids)) == len(content(source)["sources"]) + 1
    with pytest.raises(CallerError, match="holds something already"):
        carry(source, target)


def test_a_source_of_before_silences_is_carried_too(source, target):
    with closing(open_store(source)) as store:
        store.write(tables.silences.drop)
    assert {one.table: one.rows for one in carry(source, target)}["silences"] == 0
    with closing(open_store(target)) as store:
        assert store.totals().devices == 2


@pytest.mark.parametrize("broken_off", [1, 4, 9])
def test_what_was_broken_off_goes_on_where_it_was_and_nobody_comes_in_between(source, target, monkeypatch, broken_off):
    monkeypatch.setattr(carrying, "ROWS_AT_ONCE", 5)
    steps = []

    def told(table: str, done: int, total: int) -> None:
        assert done <= total
        steps.append((table, done))
        if len(steps) == broken_off:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry(source, target, told)
    with pytest.raises(StoreError, match="run `ferryman fleet copy` again"):
        open_store(target)
    carry(source, target, told)
    assert len(steps) == len(set(steps))  # nothing was carried twice
    assert content(target) == content(source)


KILLED = """
import os, sys
from ferryman.devices.fleet.collector import carry as carrying
carrying.ROWS_AT_ONCE = 5
left = int(sys.argv[3])
def told(*_):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), 9)
carrying.carry(sys.argv[1], sys.argv[2], told)
"""


@pytest.mark.slow
def test_kills_at_many_steps_lose_nothing_and_double_nothing(source, target):
    for kills in range(100):
        done = subprocess.run([sys.executable, "-c", KILLED, source, target, str(3 + kills % 4)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -9
    assert kills > 3
    assert content(target) == content(source)


def test_a_source_that_was_written_to_in_between_is_told(source, target, monkeypatch):
    monkeypatch.setattr(carrying, "ROWS_AT_ONCE", 5)

    def told(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry(source, target, told)
    with closing(open_store(source)) as store:
        put(store, "a", "log", {NOW_NS: {"message": "meanwhile"}})
    with pytest.raises(StoreError, match="written to since"):
        carry(source, target)


def test_a_row_that_postgresql_refuses_keeps_no_other_back(source, target, caplog):
    with closing(open_store(source)) as store:
        store.write(
            lambda connection: (
                connection.execute(text("UPDATE records SET body = 'a' || char(0) WHERE kind = 'log'")) and None
            )
        )
    found = {one.table: one for one in carry(source, target)}
    assert found["records"].refused == 1
    assert sum(one.refused for one in found.values()) == 1
    assert len(content(target)["records"]) == found["records"].rows - 1
    assert "of table records is not carried" in caplog.text


def test_no_collector_may_run_on_either(source, target):
    with only_one(source), pytest.raises(StoreError, match="another collector writes to it"):
        carry(source, target)
    with ExitStack() as stack:
        store: Store = stack.enter_context(closing(open_store(target)))
        leader = Leader(store, ALERTS)
        stack.callback(leader.release)
        assert leader.leads()
        with pytest.raises(StoreError, match="a collector runs on it"):
            carry(source, target)
    carry(source, target)


def test_the_command_says_what_is_on_both_sides(source, target, tmp_path):
    done = CliRunner().invoke(main, ["fleet", "copy", str(source), target, "--json"])
    assert done.exit_code == 0, done.output
    told = {one["table"]: one["rows"] for one in json.loads(done.output)["tables"]}
    assert told == {name: len(rows) for name, rows in content(source).items()}
    for words, said in (
        ((target, target), "pg_dump"),
        ((str(source), str(tmp_path / "other")), "expected|carried to postgresql"),
        ((str(tmp_path / "none"), target), "no such file"),
    ):
        refused = CliRunner().invoke(main, ["fleet", "copy", *words])
        assert refused.exit_code != 0
        assert any(one in refused.output for one in said.split("|")), refused.output
        assert "s3cret" not in refused.output
