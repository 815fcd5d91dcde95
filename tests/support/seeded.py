"""A store with a small fleet in it, as the collector would have written it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import insert

from ferryman.devices.fleet.query.parts import empty
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Arrived, Batch, Row, Store
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S
from ferryman.runtime.contracts.messages import Status

HOUR_NS = HOUR_S * 10**9
NOW_NS = 1_795_492_336 * 10**9  # 2026-11-24T03:52:16Z
HOUR_BEGIN_NS = NOW_NS // HOUR_NS * HOUR_NS
SHA = {"one": "1" * 64, "two": "2" * 64}


def put(
    store: Store,
    device: str,
    kind: str,
    bodies: Mapping[int, Any],
    *,
    boot: str = "b.k",
    sure: bool = True,
    received_ns: int = NOW_NS,
) -> None:
    """Records of a kind by their time; numbered on from what the device has sent."""
    rows = []
    for time_ns, body in bodies.items():
        _NUMBERS[store.id, device, boot] = sequence = _NUMBERS.get((store.id, device, boot), 0) + 1
        encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
        rows.append(Row(sequence, kind, time_ns, time_ns, sure, encoded))
    store.insert(Batch([Arrived(device, boot, rows, "t", b"")], [], []), received_ns)


_NUMBERS: dict[tuple[str, str, str], int] = {}


def sample(
    latencies_ms: Iterable[float] = (), package: str | None = None, inferences: int | None = None, **values: float
) -> dict[str, Any]:
    """Body of a sample."""
    latencies = sorted(latencies_ms)
    if latencies:
        values = {"latency_ms": latencies[len(latencies) // 2], **values}
    if latencies or inferences is not None:
        values = {"inferences": len(latencies) if inferences is None else inferences, "errors": 0, **values}
    return {"period_s": 60.0, "values": values, "latencies_ms": latencies, "package_sha256": package}


def join(store: Store, *statuses: Status, now_ns: int = NOW_NS) -> None:
    """Devices say something of themselves."""
    store.insert(Batch([], [], list(statuses)), now_ns)


def status(device: str, *, online: bool = True, package: str | None = "one", **fields: Any) -> Status:
    """Of a device that serves a package."""
    return Status(
        device=device,
        online=online,
        birth=fields.pop("birth", 1),
        ferryman=fields.pop("ferryman", "0.2.0"),
        package_sha256=SHA.get(package) if package else None,
        package_name=package,
        **fields,
    )


def roll_up(store: Store, device: str, metric: str, start_s: int, values: Sequence[float], **row: Any) -> None:
    """A rollup; the hour is then no longer one that was not rolled up."""
    sketch = empty()
    sketch.update(np.asarray(values, np.float32))
    made = {
        "device": device, "metric": metric, "package": "", "span_s": HOUR_S, "start_s": start_s,
        "count": len(values), "total": sum(values), "least": min(values), "most": max(values),
        "sketch": bytes(sketch.serialize()), "sealed": 0, **row,
    }  # fmt: skip
    store.write(lambda connection: connection.execute(insert(tables.rollups).values(**made)))
    length = made["span_s"]
    rolled = (
        tables.dirty.c.device == device,
        tables.dirty.c.start_s >= start_s,
        tables.dirty.c.start_s < start_s + length,
    )
    store.write(lambda connection: connection.execute(tables.dirty.delete().where(*rolled)))
    assert length in {HOUR_S, DAY_S}


def alert(store: Store, device: str, rule: str = "offline", **row: Any) -> None:
    """An alert that holds."""
    made = {
        "device": device, "rule": rule, "subject": "", "severity": "warning", "text": f"{device} {rule}",
        "since_ns": NOW_NS - HOUR_NS, "until_ns": None, **row,
    }  # fmt: skip
    store.write(lambda connection: connection.execute(insert(tables.alerts).values(**made)))
