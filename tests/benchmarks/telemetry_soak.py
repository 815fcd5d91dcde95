"""Memory of the collector over a soak: FERRYMAN_SOAK_S seconds, 600 unless told otherwise."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.benchmarks.telemetry_receive import BROKER, DEVICES, check_whole, load
from tests.support import mosquitto, mqtt_load
from tests.support.receivers import receiver

SOAK_S = float(os.environ.get("FERRYMAN_SOAK_S", "600"))
SAMPLES_PER_S = 5_000
SAMPLES = 20
FLAT = Goal(f"collector: memory at the end of {SOAK_S:g} s, over that after a fifth", "<=", 1.1)


def measure() -> Iterator[Bar | Figure]:
    """At a steady rate, so that nothing waits anywhere."""
    if mosquitto.BINARY is None:
        raise CannotRun("mosquitto is not installed: apt-get install mosquitto")
    messages = max(1, int(SOAK_S * SAMPLES_PER_S / SAMPLES / DEVICES))
    progress(f"{SOAK_S:g} s of {SAMPLES_PER_S:,} samples/s")
    with load(messages=messages, samples=SAMPLES) as what, tempfile.TemporaryDirectory() as name:
        database = Path(name) / "store.sqlite"
        with mosquitto.Mosquitto(Path(name), BROKER) as broker:
            url = f"mqtt://127.0.0.1:{broker.port}"
            with (
                receiver("collector", url, str(database), log=Path(name) / "log") as collector,
                mqtt_load.sender(broker.port, what.path, what.total, SAMPLES_PER_S / SAMPLES) as sender,
            ):
                sender.go()
                held = []
                while collector.last.new < what.total * SAMPLES:
                    time.sleep(0.5)
                    held.append(collector.last.rss_bytes)
                    if len(held) > 4 * SOAK_S + 240:
                        raise AssertionError(f"{collector.last}, waiting for {what.total * SAMPLES}")
        check_whole(database, DEVICES, messages * SAMPLES)
    fifth = len(held) // 5
    yield FLAT.measured([np.median(held[-fifth:]) / np.median(held[fifth : 2 * fifth])])
    yield figure("  memory of the collector", np.array(held[fifth:]) / 1e6, "MB")
    yield figure("  samples stored", [what.total * SAMPLES])


PARTS = (Part((FLAT,), measure),)
