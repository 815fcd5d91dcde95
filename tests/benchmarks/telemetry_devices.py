"""5,000 devices, each with a connection of its own: all they send is stored, and all of it receipted."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import func, select

from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.fleet.store.tables import devices as present
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.telemetry_receive import BROKER, check_whole
from tests.support import mosquitto
from tests.support.connected import EVERY_S, MESSAGES, SAMPLES, raise_limit
from tests.support.receivers import ROOT, receiver

DEVICES = 5000
PROCESSES = 2
CONNECTED = Goal("fleet: connected devices with receipts for all they sent", ">=", DEVICES, "devices")
ONLINE = Goal("fleet: of them online in the store", ">=", DEVICES, "devices")
TIMEOUT_S = 300


def measure() -> Iterator[Bar | Figure]:
    """Once; it takes a minute or two."""
    if mosquitto.BINARY is None:
        raise CannotRun("mosquitto is not installed: apt-get install mosquitto")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < DEVICES + 100:
        raise CannotRun(f"open files are limited: raise `ulimit -Hn` to {DEVICES + 100}")
    raise_limit()  # for mosquitto, which inherits it
    progress(f"{DEVICES:,} connected devices, each {MESSAGES} messages of {SAMPLES} samples, one every {EVERY_S:g} s")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto.Mosquitto(folder, BROKER))
        database = folder / "store.sqlite"
        url = f"mqtt://127.0.0.1:{broker.port}"
        collector = stack.enter_context(receiver("collector", url, str(database), log=folder / "log"))
        began = time.monotonic()
        fleets = [stack.enter_context(_fleet(broker.port, number)) for number in range(PROCESSES)]
        ends = [fleet.stdout.readline().split() for fleet in fleets if fleet.stdout is not None]
        seconds = time.monotonic() - began
        if any(len(end) != 2 for end in ends):
            raise AssertionError("a fleet broke, see above")
        line = collector.last
        store = open_store(database, create=False)
        online = store.read(select(func.count()).where(present.c.online))[0][0]
        store.close()
        check_whole(database, DEVICES, MESSAGES * SAMPLES)
        for fleet in fleets:
            fleet.kill()
    yield CONNECTED.measured([sum(int(count) for count, _ in ends)])
    yield ONLINE.measured([online])
    yield figure("  from the first connection to the last receipt", [seconds], "s")
    yield figure("  messages sent again for want of a receipt", [sum(int(again) for _, again in ends)])
    yield figure("  records that came again and were not stored twice", [line.duplicates])
    yield figure("  CPU of the collector, a sample", [line.cpu_s / DEVICES / MESSAGES / SAMPLES * 1e6], "us")
    yield figure("  memory of the collector", [line.rss_bytes / 1e6], "MB")


def _fleet(port: int, number: int) -> subprocess.Popen[str]:
    each = DEVICES // PROCESSES
    command = [sys.executable, "-m", "tests.support.connected", str(port), str(number * each), str(each)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


PARTS = (Part((CONNECTED, ONLINE), measure),)
