"""One collector process into SQLite: samples a second in batches, messages a second, beside a bare client."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sqlalchemy import func, select

from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.fleet.store.tables import records, sources
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress
from tests.support import mosquitto, mqtt_load
from tests.support.receivers import Line, receiver

BATCHED = Goal("collector: samples/s stored in SQLite, 100 a message", ">=", 50_000, "samples/s")
SINGLE = Goal("collector: messages/s stored in SQLite, one sample each", ">=", 10_000, "messages/s")
RATIO = Goal("collector: messages/s stored, over those a bare client (paho) receives", ">=", 0.9)
BROKER = "max_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n"
"""What is not for one collector that takes all is mosquitto's default."""
DEVICES = 500
ROUNDS = 3
TIMEOUT_S = 300


class Load(NamedTuple):
    """Encoded beforehand: each of DEVICES sends `messages` messages of `samples` samples."""

    path: Path
    messages: int
    samples: int

    @property
    def total(self) -> int:
        return DEVICES * self.messages


@contextmanager
def load(messages: int, samples: int) -> Iterator[Load]:
    if mosquitto.BINARY is None:
        raise CannotRun("mosquitto is not installed: apt-get install mosquitto")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load"
        mqtt_load.write(path, mqtt_load.messages(DEVICES, messages, samples))
        yield Load(path, messages, samples)


def check_whole(store_at: str | Path, devices: int, samples_each: int) -> None:
    """Of each device every sample is there, once, and nothing else."""
    store = open_store(store_at, create=False)
    columns = (func.count(), func.min(records.c.sequence), func.max(records.c.sequence))
    query = select(sources.c.device, *columns).join(records, records.c.source == sources.c.id)
    found = store.read(query.group_by(sources.c.device))
    totals = store.totals()
    store.close()
    if totals.quarantined or len(found) != devices or {row[1:] for row in found} != {(samples_each, 1, samples_each)}:
        raise AssertionError(f"{len(found)} devices, {totals}, and such as {found[:3]}; each sent 1 to {samples_each}")


def stored_per_s(what: Load, cpu: list[float]) -> float:
    """Messages a second of the whole way, from the first byte sent to the last commit."""
    with tempfile.TemporaryDirectory() as name, mosquitto.Mosquitto(Path(name), BROKER) as broker:
        database = Path(name) / "store.sqlite"
        url = f"mqtt://127.0.0.1:{broker.port}"
        with (
            receiver("collector", url, str(database), log=Path(name) / "log") as collector,
            mqtt_load.sender(broker.port, what.path, what.total) as sender,
        ):
            line, seconds = timed(sender, lambda: collector.wait(what.total * what.samples, TIMEOUT_S))
            cpu.append((line.cpu_s - collector.ready_cpu_s) / what.total * 1e6)
            if line.duplicates:
                raise AssertionError(f"{line.duplicates} records came twice")
        check_whole(database, DEVICES, what.messages * what.samples)
    return what.total / seconds


def received_per_s(what: Load, client: str, cpu: list[float]) -> float:
    """The same of a client that stores nothing."""
    with tempfile.TemporaryDirectory() as name, mosquitto.Mosquitto(Path(name), BROKER) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        with (
            receiver(f"bare-{client}", url, str(what.total), log=Path(name) / "log") as bare,
            mqtt_load.sender(broker.port, what.path, what.total) as sender,
        ):
            line, seconds = timed(sender, lambda: bare.wait(what.total, TIMEOUT_S))
            cpu.append((line.cpu_s - bare.ready_cpu_s) / what.total * 1e6)
    return what.total / seconds


def timed(sender: mqtt_load.Sender, wait: Callable[[], Line]) -> tuple[Line, float]:
    began = time.monotonic()
    sender.go()
    line = wait()
    return line, line.at_s - began


def batched() -> Iterator[Bar | Figure]:
    with load(messages=8, samples=100) as what:
        progress(f"{what.total:,} messages of 100 samples, {ROUNDS} times")
        cpu: list[float] = []
        rates = np.array([stored_per_s(what, cpu) for _ in range(ROUNDS)])
        yield BATCHED.measured(rates * what.samples)
        yield figure("  CPU of the collector, a sample", np.array(cpu) / what.samples, "us")
        yield figure("  bytes a sample on the wire", [what.path.stat().st_size / what.total / what.samples], "bytes")


def single() -> Iterator[Bar | Figure]:
    with load(messages=100, samples=1) as what:
        progress(f"{what.total:,} messages of one sample, stored and only received in turn, {ROUNDS} times")
        stored_cpu: list[float] = []
        bare_cpu: list[float] = []
        stored, bare = interleave(
            ROUNDS, lambda: stored_per_s(what, stored_cpu), lambda: received_per_s(what, "paho", bare_cpu)
        )
        yield SINGLE.measured(stored)
        yield RATIO.measured(stored / bare)
        yield figure("  the bare client", bare, "messages/s")
        yield figure("  CPU of the collector, a message", stored_cpu, "us")
        yield figure("  CPU of the bare client, a message", bare_cpu, "us")


PARTS = (Part((BATCHED,), batched), Part((SINGLE, RATIO), single))
