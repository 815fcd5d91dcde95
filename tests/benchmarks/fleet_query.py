"""How long questions take on a store of 10,000 devices and 1,000,000 samples.

`python -m tests.benchmarks.fleet_query [FILE|URL]` makes the store where there is none, and prints medians in seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from ferryman.devices.fleet.exports.export import export
from ferryman.devices.fleet.query.compare import compare
from ferryman.devices.fleet.query.devices import device_rows
from ferryman.devices.fleet.query.logs import logs
from ferryman.devices.fleet.query.series import series
from ferryman.devices.fleet.query.status import fleet_status
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, Store, open_store
from ferryman.runtime.contracts.messages import Status

DEVICES, SAMPLES = 10_000, 100
PERIOD_NS = 60 * 10**9
NOW_NS = 1_795_492_336 * 10**9
SHA = ("1" * 64, "2" * 64)
_AT_ONCE = 200


def make(store: Store) -> None:
    """Write it as a collector would have, then roll up."""
    rng = np.random.default_rng(0)
    for begin in range(0, DEVICES, _AT_ONCE):
        names = [f"device-{n:05}" for n in range(begin, begin + _AT_ONCE)]
        statuses = [_status(name, n) for n, name in enumerate(names)]
        arrived = [Arrived(name, "box.boot", _rows(rng, n), "topic", b"") for n, name in enumerate(names)]
        store.insert(Batch(arrived, [], statuses), NOW_NS)
    roll_up(store, NOW_NS)


def _status(name: str, n: int) -> Status:
    serves = {"package_sha256": SHA[n % 2], "package_name": "digits", "ferryman": "0.2.0"}
    return Status(
        device=name, online=True, birth=1, labels={"site": f"site-{n % 20}"}, model=f"Pi {4 + n % 2}", **serves
    )


def _rows(rng: np.random.Generator, n: int) -> list[Row]:
    latencies = np.sort(rng.lognormal(2.3 + 0.1 * (n % 2), 0.2, (SAMPLES, 16)), axis=1).round(4).tolist()
    rows = []
    for at in range(SAMPLES):
        values = {
            "inferences": 16.0, "errors": 0.0, "latency_ms": latencies[at][8], "cpu_percent": 40.0,
            "memory_used_mb": 900.0, "agent_memory_mb": 120.0, "disk_free_mb": 9000.0, "temperature_c": 60.0 + at % 9,
            "clock_mhz": 1500.0, "throttled": 0.0, "outbox_records": 1.0, "outbox_mb": 0.1,
        }  # fmt: skip
        body = {"period_s": 60.0, "values": values, "latencies_ms": latencies[at], "package_sha256": SHA[n % 2]}
        time_ns = NOW_NS - (SAMPLES - at) * PERIOD_NS
        rows.append(Row(at + 1, "sample", time_ns, at * PERIOD_NS, True, msgspec.json.encode(body)))
    rows.append(Row(SAMPLES + 1, "log", NOW_NS - 1, 1, True, b'{"level":"ERROR","logger":"x","message":"disk"}'))
    return rows


def questions(store: Store, folder: Path) -> dict[str, Callable[[], Any]]:
    """By name."""
    one = "device-04321"
    return {
        "status": lambda: fleet_status(store, now_ns=NOW_NS),
        "status, one site of 20": lambda: fleet_status(store, now_ns=NOW_NS, query="site=site-3"),
        "devices, a page of 50": lambda: device_rows(store, now_ns=NOW_NS),
        "devices, 50 hottest": lambda: device_rows(store, now_ns=NOW_NS, sort="temperature"),
        "devices, 50 slowest": lambda: device_rows(store, now_ns=NOW_NS, sort="latency"),
        "devices, all": lambda: device_rows(store, now_ns=NOW_NS, limit=None),
        "devices, one": lambda: device_rows(store, now_ns=NOW_NS, device=one),
        "series of one device": lambda: series(store, one, "temperature_c", now_ns=NOW_NS),
        "logs, the newest 100": lambda: logs(store, now_ns=NOW_NS),
        "logs of one device": lambda: logs(store, now_ns=NOW_NS, device=one),
        "compare models": lambda: compare(store, now_ns=NOW_NS, by="model", metrics=("latency_ms",)),
        "export 1,000,000 as csv": lambda: export(store, "samples", folder / "s.csv", now_ns=NOW_NS),
        "export 1,000,000 as lp": lambda: export(store, "samples", folder / "s.lp", now_ns=NOW_NS),
        "export 1,000,000 as parquet": lambda: export(store, "samples", folder / "s.parquet", now_ns=NOW_NS),
    }


def main() -> None:
    """Make the store, ask, print."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(sys.argv[1] if len(sys.argv) > 1 else Path(folder, "store.sqlite"))
        if not store.devices():
            began = time.perf_counter()
            make(store)
            print(f"made in {time.perf_counter() - began:.0f} s")
        for name, ask in questions(store, Path(folder)).items():
            took = []
            for _ in range(1 if name.startswith("export") else 5):
                began = time.perf_counter(), time.process_time()
                ask()
                took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            wall, processor = (median(column) for column in zip(*took, strict=True))
            print(f"{name:30} {wall:8.3f} s, of which {processor:.3f} s of a processor", flush=True)
        store.close()


if __name__ == "__main__":
    main()
