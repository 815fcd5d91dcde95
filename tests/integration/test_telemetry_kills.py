"""Broker, agent and collector killed (SIGKILL) at random moments of a stream: nothing lost, nothing twice.

The agent begins with an outbox of version 1, and is switched offline at random, too.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from ferryman.devices.agent.modes import switch
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.spending import read_account
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.devices.fleet.store.tables import sources
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import numbers
from tests.unit.devices.agent.test_outbox import version_1

ROOT = Path(__file__).parents[2]
TOTAL = 10_000


class Role:
    """One of the processes, restarted on demand."""

    def __init__(self, name: str, broker: Mosquitto, folder: Path) -> None:
        url = f"mqtt://127.0.0.1:{broker.port}"
        self._command = [
            sys.executable, "-m", "tests.support.telemetry_processes", name, url, str(folder), str(TOTAL),
        ]  # fmt: skip
        self._log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=ROOT, env=environment)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)


@contextmanager
def running(*roles: Role) -> Iterator[None]:
    for role in roles:
        role.start()
    try:
        yield
    finally:
        for role in roles:
            if role.process is not None and role.process.poll() is None:
                role.kill()


def wait_for(store: Store, records: int) -> None:
    deadline = time.monotonic() + 60
    while store.totals().records < records:
        assert time.monotonic() < deadline, f"stuck: {store.totals()}, waiting for {records}"
        time.sleep(0.005)


class Switched:
    """The agent's mode, in the place of a process: a kill takes it offline."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kill(self) -> None:
        switch(self._folder, "offline")

    def start(self) -> None:
        switch(self._folder, "full")


def version_1_of(path: Path, records: int) -> None:
    with closing(version_1(path)) as old:
        old.execute("DELETE FROM records")
        old.executemany(
            "INSERT INTO records VALUES (?, '0123456789abcdef.before', 'note', 7, CAST(? AS BLOB))",
            [(number + 1, f'{{"number":{number}}}') for number in range(records)],
        )
        old.commit()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20260], ids="seed{}".format)
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path, seed):
    chance = random.Random(seed)  # noqa: S311
    version_1_of(tmp_path / "outbox.db", 100)
    outbox, store = Outbox(tmp_path / "outbox.db"), open_store(tmp_path / "store.db")
    kills_mid_stream = 0
    with Mosquitto(tmp_path) as broker:
        agent, collector = (Role(name, broker, tmp_path) for name in ("agent", "collector"))
        with running(agent, collector):
            victims = chance.sample([broker, agent, collector, Switched(tmp_path)] * 3, k=12)
            for part, victim in enumerate(victims):
                wait_for(store, int((part + chance.random()) * TOTAL / 13))
                time.sleep(chance.uniform(0.0, 0.05))
                kills_mid_stream += store.totals().records < TOTAL
                victim.kill()
                time.sleep(chance.uniform(0.0, 0.3))
                victim.start()
            deadline = time.monotonic() + 60
            while store.totals().records < TOTAL or outbox.counts().records:
                assert time.monotonic() < deadline, (store.totals(), outbox.counts())
                assert agent.process.poll() is None
                assert collector.process.poll() is None
                time.sleep(0.1)
    assert kills_mid_stream == 12
    assert numbers(store) == list(range(TOTAL))
    assert len(store.read(select(sources.c.boot))) == 2
    assert store.totals() == (TOTAL, 0, 0)
    assert outbox.counts() == (0, 0, 3), "those that version 1 had dropped are counted still"
    assert 0 < read_account(outbox).spent_bytes < 10**9
    outbox.close()
    store.close()
