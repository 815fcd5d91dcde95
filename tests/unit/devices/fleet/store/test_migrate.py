"""A file that ferryman 0.1 wrote becomes one of this version, or stays what it was."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from ferryman.devices.fleet.store.store import Arrived, Batch, Row, open_store
from ferryman.devices.fleet.store.tables import devices, latest, records, sources
from ferryman.runtime.contracts.errors import StoreError
from tests.support.disk import disk_free, small_disk

GOLDEN = Path(__file__).parents[4] / "golden" / "store-v1.sqlite"
BOOT = "59847469ac76d26d.5ed1cf13-3af4-4bfa-98a0-f7498931f709"
ROOT = Path(__file__).parents[5]


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copy(GOLDEN, tmp_path / "store.db"))


def swell(path: Path, rows: int) -> None:
    """More of the same into a file of version 1."""
    with closing(sqlite3.connect(path)) as connection:
        body = json.dumps({"text": "x" * 200})
        some = (("pi-7", BOOT, n, "note", n, n, body) for n in range(1000, 1000 + rows))
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", some)
        connection.commit()


@pytest.mark.parametrize("create", [True, False])
def test_everything_is_there_as_it_was(old, create):
    with closing(sqlite3.connect(old)) as connection:
        query = "SELECT device, boot, sequence, kind, time_ns, received_at_ns, body FROM records ORDER BY 1, 2, 3"
        before = connection.execute(query).fetchall()
    said = []
    store = open_store(old, create=create, on_progress=said.append)
    assert store.id == "6a1b694933944293"
    query = select(sources.c.device, sources.c.boot, records).join_from(
        records, sources, records.c.source == sources.c.id
    )
    rows = sorted(store.read(query), key=lambda row: (*row[:2], row.sequence))
    assert [(r.device, r.boot, r.sequence, r.kind, r.recorded_ns, r.received_ns, r.body) for r in rows] == before
    assert {(r.time_ns - r.recorded_ns, r.uptime_ns, r.clock) for r in rows} == {(0, None, 0)}
    assert [m.device for m in store.measurements()] == ["pi-7", "pi-7"]
    assert [(d.status.device, d.status.online) for d in store.devices()] == [("nano", False), ("pi-7", True)]
    assert store.read(select(devices.c.device, devices.c.online).order_by("device")) == [
        ("nano", False),
        ("pi-7", True),
    ]
    assert {(q.raw[:2], q.times) for q in store.quarantine()} == {(b'{"', 1), (b"\xff\x00", 2)}
    assert [(r.device, r.kind) for r in store.read(select(latest))] == [("pi-7", "slots")]
    assert "0 %" in said[0]
    store.close()
    again = open_store(old, on_progress=said.append)
    assert len(said) == 1
    same = Row(2, "slots", before[3][4], None, True, b'{"active": "a",\n "text": "\\u00fc\\u0000"}')
    assert again.insert(Batch([Arrived("pi-7", BOOT, [same], "t", b"")]), 1) == (0, 1, 0)
    again.close()


def test_a_file_without_room_for_it_stays_what_it_was(tmp_path):
    with small_disk(tmp_path / "disk", "16m") as disk:
        old = Path(shutil.copy(GOLDEN, disk / "store.db"))
        swell(old, 5000)
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(max(disk_free(disk) - 300_000, 0)))
        for _ in range(2):
            with pytest.raises(StoreError, match=r"free some space on its disk|SQLITE_IOERR"):
                open_store(old)
        (disk / "filler").unlink()
        store = open_store(old)
        assert store.totals().records == 5004
        store.close()


def test_a_damaged_status_does_not_keep_the_rest(old):
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE devices SET status = '{' WHERE device = 'nano'")
        connection.commit()
    store = open_store(old)
    assert store.totals() == (4, 2, 2)
    store.close()


@pytest.mark.slow
def test_killed_at_any_moment_the_old_or_the_new_opens(old):
    rows = 20_000
    swell(old, rows)
    code = """if True:
        import sys
        from ferryman.devices.fleet.store.store import open_store
        open_store(sys.argv[1], on_progress=lambda _: (print(flush=True), sys.stdin.read())).close()
        print(flush=True)"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def migrating(file: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, file], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        return process

    with migrating(Path(shutil.copy(old, old.with_name("whole.db")))) as process:
        begun = time.monotonic()
        process.stdin.close()
        process.wait()
        whole_s = time.monotonic() - begun
    versions = []
    for attempt in range(8):
        file = Path(shutil.copy(old, old.with_name(f"{attempt}.db")))
        with migrating(file) as process:
            if attempt:
                process.stdin.close()
                time.sleep(whole_s * attempt / 8)
            process.kill()
        with closing(sqlite3.connect(file)) as connection:
            versions.append(connection.execute("PRAGMA user_version").fetchone()[0])
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT count(*) FROM records").fetchone() == (rows + 4,)
        store = open_store(file)
        assert store.totals() == (rows + 4, 2, 2)
        store.close()
    assert versions[0] == 1
