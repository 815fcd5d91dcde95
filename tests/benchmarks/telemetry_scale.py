"""Two collectors on one PostgreSQL store, through a shared subscription, beside one alone."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress
from tests.benchmarks.telemetry_receive import BROKER, DEVICES, Load, check_whole, load
from tests.support import mosquitto, mqtt_load, postgresql
from tests.support.receivers import Receiver, receiver

EVEN = Goal("two collectors on PostgreSQL: the larger share of the messages", "<=", 0.55)
WHOLE = Goal("two collectors on PostgreSQL: records lost or doubled", "<=", 0, "records")
FASTER = Goal("two collectors on PostgreSQL, over one (from 4 cores up)", ">=", 1.6)
CORES_MIN = 4
ROUNDS = 3
TIMEOUT_S = 300
_numbers = itertools.count(1)


def stored_per_s(server: postgresql.PostgreSQL, what: Load, collectors: int, shares: list[float]) -> float:
    """Samples a second; what each collector stored, as the larger share, into `shares`."""
    name = f"fleet_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    database = server.url(name)
    total = what.total * what.samples
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto.Mosquitto(folder, BROKER))
        url = f"mqtt://127.0.0.1:{broker.port}"
        receivers = [
            stack.enter_context(receiver("collector", url, database, log=folder / f"log{number}"))
            for number in range(collectors)
        ]
        sender = stack.enter_context(mqtt_load.sender(broker.port, what.path, what.total))
        began = time.monotonic()
        sender.go()
        seconds = _all_stored(receivers, total, folder) - began
        stored = [one.last.new for one in receivers]
        shares.append(max(stored) / total)
        if sum(stored) != total:
            raise AssertionError(f"{stored} records stored, {total} sent")
    check_whole(database, DEVICES, what.messages * what.samples)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    return total / seconds


def _all_stored(receivers: list[Receiver], total: int, folder: Path) -> float:
    """When the last record was."""
    deadline = time.monotonic() + TIMEOUT_S
    while sum(one.last.new for one in receivers) < total:
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-1000:] for path in folder.glob("log*"))
            raise AssertionError(f"{[one.last for one in receivers]}, waiting for {total}: {logs}")
        threading.Event().wait(0.01)
    return max(one.last.at_s for one in receivers)


def measure() -> Iterator[Bar | Figure]:
    """One and two in turn."""
    with ExitStack() as stack:
        what = stack.enter_context(load(messages=4, samples=100))
        try:
            server = stack.enter_context(postgresql.running(durable=True))
        except pytest.skip.Exception as error:
            raise CannotRun(str(error)) from error
        progress(f"{what.total:,} messages of 100 samples into PostgreSQL, by one collector and two, {ROUNDS} times")
        shares: list[float] = []
        one, two = interleave(
            ROUNDS, lambda: stored_per_s(server, what, 1, []), lambda: stored_per_s(server, what, 2, shares)
        )
    yield EVEN.measured(shares)
    yield WHOLE.measured([0])  # or it would not have come to here
    cores = os.cpu_count() or 1
    if cores >= CORES_MIN:
        yield FASTER.measured(two / one)
    else:
        yield FASTER.not_run(f"{cores} cores; measured {np.median(two / one):.2f}")
    yield figure("  one collector on PostgreSQL", one, "samples/s")
    yield figure("  two", two, "samples/s")


PARTS = (Part((EVEN, WHOLE, FASTER), measure),)
