"""The store in a real PostgreSQL: several processes, a server that goes, a disk that is full, who is let in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from ferryman.devices.fleet.store import engine, postgresql
from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, Store, open_store
from ferryman.devices.fleet.store.tables import dirty, records, rollups, sources
from ferryman.runtime.contracts.errors import CallerError, StoreError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import Sample
from tests.support import postgresql as servers
from tests.support.disk import small_disk

NOW = 1_700_000_000 * 10**9
DAY = 86_400 * 10**9


@pytest.fixture
def url() -> Iterator[str]:
    with servers.new_database() as found:
        yield found


@pytest.fixture
def store(url) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def server() -> Iterator[servers.PostgreSQL]:
    with servers.running(durable=True) as found:
        yield found


def message(first: int, last: int, device: str = "pi", **changed) -> Arrived:
    rows = [
        Row(n, "sample", NOW + n, n, True, encode(Sample(period_s=1, values={"x": float(n)})))._replace(**changed)
        for n in range(first, last + 1)
    ]
    return Arrived(device, "outbox.kernel", rows, f"ferryman/v1/{device}/telemetry", b"raw")


def put(store: Store, *messages: Arrived, now_ns: int = NOW):
    return store.insert(Batch(messages, statuses=[Status(device=m.device, online=True) for m in messages]), now_ns)


def test_records_are_cut_by_source_and_a_message_falls_into_one_part(store):
    for n in range(40):
        put(store, message(1, 5, f"d{n}"))
    parts = store.read(
        select(text("tableoid::regclass::text"), func.count(records.c.source.distinct()))
        .select_from(records)
        .group_by(text("1"))
    )
    assert 5 < len(parts) <= postgresql.PARTS
    assert sum(number for _, number in parts) == 40


def test_many_at_once_into_the_same_sources_lose_and_double_nothing(url, store):
    """In opposite orders, which is how deadlocks come about."""
    stores = [open_store(url) for _ in range(4)]
    results: list[tuple[int, int, int]] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for n in range(15):
                names = [f"d{m}" for m in range(12)]
                messages = [message(n * 5 + 1, n * 5 + 5, name) for name in (names if number % 2 else reversed(names))]
                results.append(put(stores[number], *messages, now_ns=NOW + n))
        except BaseException as error:  # noqa: BLE001  # shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in stores:
        one.close()
    assert failures == []
    assert (sum(r[0] for r in results), sum(r[1] for r in results), sum(r[2] for r in results)) == (900, 2700, 0)
    assert store.totals() == (900, 0, 12)
    assert len(store.read(select(sources))) == 12


def test_a_deadlock_is_tried_again(store):
    put(store, message(1, 1, "a"), message(1, 1, "b"))
    both_hold = threading.Barrier(2, timeout=60)
    calls: list[str] = []

    def work(first: str, second: str) -> None:
        def update(connection) -> None:
            calls.append(first)
            connection.execute(text("UPDATE devices SET seen_ns = 1 WHERE device = :d"), {"d": first})
            if len(calls) <= 2:
                both_hold.wait()
            connection.execute(text("UPDATE devices SET seen_ns = 2 WHERE device = :d"), {"d": second})

        store.write(update)

    threads = [threading.Thread(target=work, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 3


def test_a_sample_that_is_about_to_be_committed_is_in_the_next_roll_up(url, store):
    """The roll-up leaves an hour alone while somebody inserts into it; afterwards it is still marked."""
    put(store, message(1, 1))
    other = open_store(url)
    inserting = engine.Database(url, read_only=False)
    rolled = []

    def insert_slowly(connection) -> None:
        from ferryman.devices.fleet.store.insert import Insertion, Memory

        Insertion(Batch([message(2, 2)]), NOW, Memory()).work(connection)
        rolled.append(roll_up(other, NOW + DAY * 2))

    inserting.write(insert_slowly)
    assert rolled == [0]
    assert roll_up(other, NOW + DAY * 2) == 2
    assert {row[0] for row in store.read(select(rollups.c["count"]))} == {2}
    inserting.close()
    other.close()


def test_two_roll_ups_at_once_share_the_work(url, store):
    put(store, *(message(1, 5, f"d{n}") for n in range(40)))
    others = [open_store(url) for _ in range(2)]
    made: list[int] = []
    threads = [threading.Thread(target=lambda one=one: made.append(roll_up(one, NOW + 2 * DAY))) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in others:
        one.close()
    roll_up(store, NOW + 2 * DAY)
    assert sum(made) >= 40
    found = store.read(select(rollups.c.span_s, func.count(), func.sum(rollups.c["count"])).group_by("span_s"))
    assert sorted(tuple(row) for row in found) == [(3600, 40, 200), (86400, 40, 200)]
    assert store.read(select(dirty)) == []


def test_a_server_that_goes_in_the_middle_is_an_error_and_the_same_again_is_stored_once(server):
    store = open_store(server.url())
    put(store, message(1, 100))
    cut = []

    def work(connection) -> None:
        from ferryman.devices.fleet.store.insert import Insertion, Memory

        Insertion(Batch([message(101, 200)]), NOW, Memory()).work(connection)
        if not cut:
            cut.append(server.kill())

    with pytest.raises(StoreError, match=r"not known whether this was committed.*do it again"):
        store.write(work)
    with pytest.raises(StoreError, match="see that the server runs"):
        put(store, message(101, 200))
    server.start()
    assert put(store, message(101, 200)) == (100, 0, 0)
    assert put(store, message(101, 200)) == (0, 100, 0)
    assert store.totals().records == 200
    store.close()


def test_a_connection_that_the_server_ends_is_made_again(server):
    store = open_store(server.url())
    put(store, message(1, 1))
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ferryman'")
    assert put(store, message(2, 2)).new == 1
    store.close()


def test_a_full_disk_is_said_and_nothing_of_the_batch_is_there(server):
    """The tables' disk. Where that of its log is full, PostgreSQL ends: then it is a lost connection."""
    place = Path(tempfile.mkdtemp(prefix="ferryman-disk-"))
    try:
        place.chmod(0o755)
        with small_disk(place / "disk", "16m") as disk:
            server.own(disk)
            server.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            fill = "CREATE TABLE filler TABLESPACE small AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)"
            server.execute(fill, "template1")
            store = open_store(f"{server.url()}?options=-cdefault_tablespace%3Dsmall")
            body = b'"%s"' % os.urandom(100_000).hex().encode()
            full = r"No space left on device.*free some space on the server's disk"
            with pytest.raises(StoreError, match=full):  # noqa: PT012  # one of them
                for first in range(1, 1000, 10):
                    put(store, message(first, first + 9, body=body, kind="note"))
            count = store.totals().records
            assert count % 10 == 0
            server.execute("DROP TABLE filler", "template1")
            server.execute("CHECKPOINT")  # which gives the files back
            assert put(store, message(count + 1, count + 10, body=body, kind="note")).new == 10
            assert store.totals().records == count + 10
            store.close()
            server.kill()
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"password": "wr0ng-word"}, "password authentication failed.*password and database in the URL are right"),
        ({"user": "nobody-here"}, "password authentication failed"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
    ],
)
def test_who_is_not_let_in_is_told_why_and_the_password_never(change, expected, caplog):
    server = servers.shared()
    with pytest.raises(StoreError, match=expected) as caught:
        open_store(server.url(**change))
    for secret in ("wr0ng-word", servers.PASSWORD):
        assert secret not in f"{caught.value} {caught.value!r} {caplog.text}"


def test_the_password_is_not_in_the_name_nor_in_errors_of_statements(url, store):
    assert servers.PASSWORD not in store.name
    assert store.name.startswith("postgresql://ferryman:***@127.0.0.1:")
    with pytest.raises(StoreError) as caught:
        store.write(lambda connection: connection.execute(text("SELECT :a / 0"), {"a": "secret-value"}))
    assert "secret-value" not in str(caught.value) or "invalid input" in str(caught.value)
    with pytest.raises(CallerError, match="is not postgresql://") as error:
        open_store(f"postgresql://u:{servers.PASSWORD}@host:port/x")
    assert servers.PASSWORD not in str(error.value)


def test_nobody_listens(tmp_path):
    with pytest.raises(StoreError, match=r"Connection refused.*see that the server runs"):
        open_store("postgresql://u:p@127.0.0.1:1/x")


def test_a_store_of_a_later_version_is_refused(url, store):
    store.write(lambda connection: connection.execute(text("UPDATE store SET version = 99")))
    for create in (True, False):
        with pytest.raises(StoreError, match=r"later ferryman .*version 99"):
            open_store(url, create=create)


def tables_of(url: str) -> set[str]:
    with closing(engine.Database(url, read_only=True)) as database, database.reading() as connection:
        return postgresql.tables(connection)


def test_a_database_of_another_application_is_refused_and_left_as_it_is(url):
    with closing(engine.Database(url, read_only=False)) as database:
        database.write(lambda connection: connection.execute(text("CREATE TABLE bookmarks (url text)")))
    for create in (True, False):
        with pytest.raises(StoreError, match=r"is no store of ferryman.*found bookmarks"):
            open_store(url, create=create)
    assert tables_of(url) == {"bookmarks"}


def test_an_empty_database_is_not_made_a_store_by_reading(url):
    with pytest.raises(StoreError, match=r"is no store of ferryman.*found none"):
        open_store(url, create=False)
    assert tables_of(url) == set()


def test_a_store_opened_for_reading_takes_nothing(url, store):
    reader = open_store(url, create=False)
    assert reader.id == store.id
    with pytest.raises(StoreError, match="read-only transaction"):
        put(reader, message(1, 1))
    reader.close()


def test_who_may_not_make_tables_is_told(url):
    server = servers.shared()
    server.execute("DROP ROLE IF EXISTS guest")
    server.execute(f"CREATE ROLE guest LOGIN PASSWORD '{servers.PASSWORD}'")
    with pytest.raises(StoreError, match=r"permission denied.*grant this user|no schema has been selected"):
        open_store(url.replace("ferryman:", "guest:", 1))


def test_two_processes_make_one_store(url):
    made = []
    threads = [threading.Thread(target=lambda: made.append(open_store(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.id for one in made}) == 1
    assert len(made) == 4
    for one in made:
        one.close()


TIMESCALE = """
CREATE TABLE calls (what text);
CREATE FUNCTION create_hypertable(relation regclass, time_column name, chunk_time_interval bigint) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO calls VALUES (format('create_hypertable %s %s %s', $1, $2, $3)) $$;
CREATE FUNCTION drop_chunks(relation regclass, older_than bigint) RETURNS SETOF text
    LANGUAGE sql AS $$ INSERT INTO calls VALUES (format('drop_chunks %s %s', $1, $2)) RETURNING what $$;
"""


@pytest.fixture
def stand_in() -> Iterator[None]:
    """An extension of this name and with these functions, which only record what they are called with."""
    pg_config = shutil.which("pg_config", path="/usr/lib/postgresql/15/bin:/usr/bin:/bin")
    if pg_config is None:
        pytest.skip("pg_config is not installed (apt-get install postgresql)")
    shared = subprocess.run([pg_config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    folder = Path(shared) / "extension"
    if (folder / "timescaledb.control").exists() or not os.access(folder, os.W_OK):
        pytest.skip("the server's folder of extensions has a TimescaleDB, or may not be written")
    files = {"timescaledb.control": "default_version = '1'\nrelocatable = true\n", "timescaledb--1.sql": TIMESCALE}
    try:
        for name, content in files.items():
            (folder / name).write_text(content)
        yield
    finally:
        for name in files:
            (folder / name).unlink(missing_ok=True)


def test_with_timescale_records_become_a_hypertable_and_only_emptied_chunks_are_dropped(stand_in, server):
    """Against a stand-in: that our SQL is accepted and asks for the right thing, not what TimescaleDB makes of it."""
    store = open_store(server.url())
    key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'records'::regclass"
    assert server.execute(key) == [("PRIMARY KEY (source, sequence, recorded_ns)",)]
    week = 7 * DAY
    assert server.execute("SELECT what FROM calls") == [(f"create_hypertable records recorded_ns {week}",)]
    assert put(store, message(1, 4)) == (4, 0, 0)
    assert put(store, message(1, 4), message(4, 4, body=b"2")) == (0, 4, 1)
    roll_up(store, NOW + 2 * DAY)
    put(store, message(9, 9, kind="note"))
    assert retain(store, Policy(), NOW + 40 * DAY).samples == 4
    assert server.execute("SELECT what FROM calls")[1:] == [(f"drop_chunks records {NOW + 9}",)]
    # What the other tests say of conflicts is not so here: the time is part of the name.
    assert put(store, message(9, 9, kind="note", time_ns=NOW)) == (1, 0, 0)
    store.close()


def test_a_timescale_that_cannot_be_made_is_left_out_and_said(stand_in, server, caplog):
    folder = Path(
        subprocess.run(["pg_config", "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    )
    (folder / "extension" / "timescaledb--1.sql").write_text("SELECT no_such_function();")
    store = open_store(server.url())
    assert put(store, message(1, 4)) == (4, 0, 0)
    assert "TimescaleDB is there and not used" in caplog.text
    store.close()
