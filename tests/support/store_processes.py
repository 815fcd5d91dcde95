"""Processes that insert into a store and keep it in order, to be killed: `python -m` this, a role, its arguments."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from ferryman.devices.fleet.store.retain import Policy, retain
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, Store, open_store
from ferryman.runtime.contracts.errors import StoreError
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import Sample

NOON = 20_000 * 86_400 * 10**9 + 43_200 * 10**9
DAY = 86_400 * 10**9
DEVICES = 5
ROWS = 8
POLICY = Policy(samples_days=1, others_days=None, hours_days=2)
LATER = NOON + 50 * DAY
"""When everything is so old that it goes as soon as it is rolled up."""


def batch(number: int) -> Batch:
    """The one of this number: of each device as many notes as samples, over three days."""
    arrived = []
    for device in range(DEVICES):
        rows = []
        for n in range(ROWS):
            sequence = number * ROWS + n + 1
            time_ns = NOON + random.Random(sequence).randrange(3 * DAY)  # noqa: S311
            if sequence % 2:
                rows.append(Row(sequence, "note", time_ns, sequence, True, b"%d" % sequence))
            else:
                body = encode(Sample(period_s=10, values={"x": float(sequence)}))
                rows.append(Row(sequence, "sample", time_ns, sequence, True, body))
        arrived.append(Arrived(f"d{device}", "outbox.kernel", rows, f"ferryman/v1/d{device}/telemetry", b"raw"))
    return Batch(arrived)


def opened(where: str) -> Store:
    while True:
        try:
            return open_store(where)
        except StoreError as error:
            print(error, flush=True)
            time.sleep(0.1)


def insert(where: str, total: int, seed: int, done: Path) -> None:
    """All batches in turn, again from where the file says; some of those before come again, as after a lost receipt."""
    store, chance = opened(where), random.Random(seed)  # noqa: S311
    number = int(done.read_text() or 0) if done.exists() else 0
    while number < total:
        try:
            store.insert(batch(number), NOON + number)
            again = chance.randrange(number + 1)
            store.insert(batch(again), NOON + again)
        except StoreError as error:
            print(error, flush=True)
            time.sleep(0.05)
            continue
        number += 1
        done.with_suffix(".new").write_text(str(number))
        done.with_suffix(".new").replace(done)


def keep_in_order(where: str) -> None:
    store = opened(where)
    while True:
        try:
            roll_up(store, LATER)
            retain(store, POLICY, LATER)
            time.sleep(0.05)
        except StoreError as error:
            print(error, flush=True)
            time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1] == "insert":
        insert(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        keep_in_order(sys.argv[2])
