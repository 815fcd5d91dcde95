"""Two processes insert the same, two roll up and delete; each, and the server, is killed at random moments."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from ferryman.devices.fleet.store.retain import retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S, dirty, records, rollups
from tests.support import postgresql
from tests.support.store_processes import DEVICES, LATER, POLICY, ROWS

ROOT = Path(__file__).parents[2]
TOTAL = 40
KILLS = 5


class Role:
    def __init__(self, folder: Path, number: int, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "tests.support.store_processes", *arguments]
        self.log = folder / f"{arguments[0]}-{number}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=ROOT, env=environment)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


def check(where: str) -> None:
    store = open_store(where)
    # Once more: what a killed process had not done.
    for _ in range(2):
        roll_up(store, LATER)
        retain(store, POLICY, LATER)
    # Each batch, marked by when it came, is there as a whole: its notes are kept.
    notes = store.read(
        select(records.c.received_ns, records.c.source, records.c.sequence).where(records.c.kind == "note")
    )
    assert Counter(came for came, _, _ in notes) == Counter(
        dict.fromkeys({came for came, _, _ in notes}, DEVICES * ROWS // 2)
    )
    sequences = range(1, TOTAL * ROWS + 1)
    assert Counter((source, sequence) for _, source, sequence in notes) == Counter(
        (source, sequence) for source in {source for _, source, _ in notes} for sequence in sequences if sequence % 2
    )
    assert len({source for _, source, _ in notes}) == DEVICES
    # Every sample counts once in the days, and is gone.
    samples = [float(sequence) for sequence in sequences if sequence % 2 == 0]
    query = select(rollups.c.device, func.sum(rollups.c.count), func.sum(rollups.c.total), func.min(rollups.c.least))
    days = store.read(query.where(rollups.c.span_s == DAY_S).group_by(rollups.c.device).order_by(rollups.c.device))
    assert [tuple(row) for row in days] == [(f"d{n}", len(samples), sum(samples), min(samples)) for n in range(DEVICES)]
    for table, condition in (
        (records, records.c.kind == "sample"),
        (dirty, True),
        (rollups, rollups.c.span_s == HOUR_S),
    ):
        assert store.read(select(func.count()).select_from(table).where(condition))[0][0] == 0
    assert store.totals().quarantined == 0
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_whoever_is_killed_every_record_is_there_once_and_counts_once(dialect, tmp_path):
    if dialect == "sqlite":
        run(str(tmp_path / "store.db"), tmp_path, None)
    else:
        with postgresql.running(durable=True) as server:
            run(server.url(), tmp_path, server)


def run(where: str, folder: Path, server: postgresql.PostgreSQL | None) -> None:
    chance = random.Random(20261)  # noqa: S311
    open_store(where).close()
    done = [folder / f"done-{n}" for n in range(2)]
    inserters = [Role(folder, n, "insert", where, str(TOTAL), str(n), str(done[n])) for n in range(2)]
    keepers = [Role(folder, n, "keep", where) for n in range(2)]
    roles = [*inserters, *keepers]

    def progress() -> int:
        return sum(int(file.read_text()) for file in done if file.exists())

    for role in roles:
        role.start()
    try:
        deadline = time.monotonic() + 600
        for kill in range(KILLS):
            while progress() < 2 * TOTAL * (kill + chance.random()) / (KILLS + 1):
                assert time.monotonic() < deadline, [role.log.read_text()[-2000:] for role in roles]
                time.sleep(0.005)
            victims = [*roles, *([server] * 2 if server else [])]
            victim = chance.choice(victims)
            victim.kill()
            victim.start()
        while progress() < 2 * TOTAL:
            assert time.monotonic() < deadline, [role.log.read_text()[-2000:] for role in roles]
            time.sleep(0.05)
    finally:
        for role in roles:
            role.kill()
    for role in roles:
        assert "Traceback" not in role.log.read_text()
    check(where)
