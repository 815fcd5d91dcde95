"""A batch that the database refuses as data, in ever smaller parts, until what it refuses is alone in quarantine.

What nobody foresaw in one device's record must not stop the records of all others, as a full disk does.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ferryman.devices import topics
from ferryman.devices.fleet.store.engine import RefusedError
from ferryman.devices.fleet.store.insert import Arrived, Batch, Inserted
from ferryman.devices.fleet.store.quarantine import Bad
from ferryman.runtime.contracts.envelope import Envelope, Item
from ferryman.runtime.contracts.record import encode


def in_parts(insert: Callable[[Batch, int], Inserted], batch: Batch, now_ns: int, error: RefusedError) -> Inserted:
    """Insert the parts of `batch`, which was refused whole; what is refused alone counts as a conflict.

    Raises:
        StoreError: as `insert` does; what came before it is stored.
    """
    if not (parts := _halves(batch)):
        parts = [Batch(bad=[_alone(batch, error)])]
        new, duplicates, conflicts = insert(parts[0], now_ns)
        return Inserted(new, duplicates, conflicts + 1)
    done = [insert(part, now_ns) for part in parts]
    return Inserted(*(sum(numbers) for numbers in zip(*done, strict=True)))


def _halves(batch: Batch) -> list[Batch]:
    """Two that make up `batch`, in order; none: there is nothing to take apart."""
    arrived, bad, statuses, retained = batch
    parts = [Batch(bad=bad), Batch(arrived=arrived), Batch(retained=retained), Batch(statuses=statuses)]
    if sum(map(any, parts)) > 1:
        return [part for part in parts if any(part)]
    if len(arrived) == 1 and len(rows := arrived[0].rows) > 1:
        half = len(rows) // 2
        return [Batch([arrived[0]._replace(rows=some)]) for some in (rows[:half], rows[half:])]
    half = sum(map(len, batch)) // 2
    if not half:
        return []
    return [
        Batch(arrived[:half], bad[:half], statuses[:half], retained[:half]),
        Batch(arrived[half:], bad[half:], statuses[half:], retained[half:]),
    ]


def _alone(batch: Batch, error: RefusedError) -> Bad:
    reason = f"the database refuses it: {error}"
    if batch.arrived:
        return Bad(batch.arrived[0].topic, _envelope(batch.arrived[0]), reason)
    for status in (*batch.statuses, *batch.retained):
        return Bad(topics.status(status.device), encode(status), reason)
    raise error  # quarantine itself is refused: nothing can be kept


def _envelope(one: Arrived) -> bytes:
    """Around the only record of it that is left."""
    ((sequence, kind, time_ns, uptime_ns, sure, body),) = one.rows
    if uptime_ns is None:  # schema 1, which has no more than one
        return one.raw
    item = Item(sequence=sequence, kind=kind, time_ns=time_ns, uptime_ns=uptime_ns, sure=sure, body=msgspec.Raw(body))
    try:
        return encode(Envelope(device=one.device, boot=one.boot, items=(item,)))
    except (ValueError, OverflowError):  # JSON does not take it either
        return one.raw
