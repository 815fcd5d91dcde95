"""Several collectors on one PostgreSQL store share the load; any of them, and the server, may die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.fleet.collector.leader import ALERTS, STORE, Leader
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.runtime.contracts.errors import StoreError
from tests.support import mqtt_load, postgresql
from tests.support.mosquitto import Mosquitto
from tests.support.receivers import Receiver, receiver
from tests.support.telemetry import agent, fill, until

BROKER = "max_inflight_messages 0\nmax_queued_messages 0\n"


@pytest.fixture
def url() -> Iterator[str]:
    with postgresql.new_database() as one:
        yield one


@pytest.fixture
def store(url) -> Iterator[Store]:
    database = open_store(url)
    yield database
    database.close()


def started(
    stack: ExitStack, broker: Mosquitto, url: str, folder: Path, count: int, version: str = ""
) -> list[Receiver]:
    where = f"mqtt://127.0.0.1:{broker.port}{version}"
    return [stack.enter_context(receiver("collector", where, url, log=folder / f"log{n}")) for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", "?version=3.1.1"], ids=["5", "3.1.1"])
def test_two_share_the_load_and_nothing_is_lost_or_doubled(tmp_path, url, store, version):
    count = mqtt_load.write(tmp_path / "load", mqtt_load.messages(20, 100, 5))
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(tmp_path, BROKER))
        two = started(stack, broker, url, tmp_path, 2, version)
        sender = stack.enter_context(mqtt_load.sender(broker.port, tmp_path / "load", count))
        sender.go()
        until(lambda: sum(one.last.new for one in two) == 5 * count, 60)
        assert [one.last.duplicates for one in two] == [0, 0]
        assert min(one.last.new for one in two) > 0.35 * 5 * count
    assert store.totals().records == 5 * count


@pytest.mark.slow
def test_what_one_that_was_killed_had_not_committed_comes_to_the_other(tmp_path, url, store):
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(tmp_path, BROKER))
        first, _ = started(stack, broker, url, tmp_path, 2)
        boxes = [Outbox(tmp_path / f"outbox{n}.db") for n in range(6)]
        for n, box in enumerate(boxes):
            stack.callback(box.close)
            fill(box, 500)
            stack.enter_context(agent(broker.config, box, f"d{n}"))
        until(lambda: store.totals().records > 300, 60)
        first.process.kill()
        for box in boxes:
            fill(box, 500)
        until(lambda: sum(box.counts().records for box in boxes) == 0, 60)
    assert store.totals()[:2] == (6 * 1000, 0)


@pytest.mark.slow
def test_a_server_that_is_killed_costs_nothing(tmp_path):
    count = mqtt_load.write(tmp_path / "load", mqtt_load.messages(20, 200, 2))
    with ExitStack() as stack:
        server = stack.enter_context(postgresql.running(durable=True))
        url = server.url()
        broker = stack.enter_context(Mosquitto(tmp_path, BROKER))
        (one,) = started(stack, broker, url, tmp_path, 1)
        sender = stack.enter_context(mqtt_load.sender(broker.port, tmp_path / "load", count, 800))
        sender.go()
        until(lambda: one.last.new > count // 4, 60)
        server.kill()
        time.sleep(3)
        server.start()
        until(lambda: one.last.new + one.last.duplicates >= 2 * count, 60)
        store = open_store(url, create=False)
        assert store.totals()[:2] == (2 * count, 0)
        store.close()
    assert (tmp_path / "log0").read_text().count("nothing is acknowledged") <= 6  # each reason once, not each try


@pytest.mark.slow
def test_one_of_several_leads_and_another_after_it(url, store):
    other = open_store(url)
    first, second, elsewhere = Leader(store, STORE), Leader(other, STORE), Leader(other, ALERTS)
    try:
        assert first.leads()
        assert not second.leads()
        assert elsewhere.leads(), "each lock is a matter of its own"
        with postgresql.new_database() as another, closing(open_store(another)) as neighbour:
            alone = Leader(neighbour, STORE)
            assert alone.leads(), "and so is each store of a database"
            alone.release()
        assert first.leads()
        first.release()
        assert second.leads()
        assert not first.leads()
        statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ferryman'"
        postgresql.shared().execute(statement)
        with pytest.raises(StoreError):
            second.leads()
        assert first.leads()
        assert not second.leads()
    finally:
        for leader in (first, second, elsewhere):
            leader.release()
        other.close()


def test_the_only_one_of_a_file_leads(tmp_path):
    database = open_store(tmp_path / "store.db")
    assert Leader(database, STORE).leads()
    database.close()
