"""The newest sample of each device, as the store keeps it beside the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import select

from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.sane import read
from ferryman.devices.fleet.query.who import IN_MAX
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.telemetry import Sample


class Newest(NamedTuple):
    """A device's last word on how it does."""

    time_ns: int
    sample: Sample


def newest_samples(store: Store, names: Sequence[str] | None, left_out: LeftOut) -> dict[str, Newest]:
    """By device; None: of all.

    Raises:
        StoreError: the database cannot be read.
    """
    table = tables.latest
    wanted = select(table.c.device, table.c.time_ns, table.c.body).where(table.c.kind == "sample")
    statements = [wanted]
    if names is not None:
        statements = [
            wanted.where(table.c.device.in_(names[begin : begin + IN_MAX])) for begin in range(0, len(names), IN_MAX)
        ]
    found = {}
    for statement in statements:
        for device, time_ns, body in store.read(statement):
            try:
                found[str(device)] = Newest(time_ns, read(str(body), Sample))
            except ValueError as error:
                left_out.damaged("newest sample", str(device), error)
    return found


def error_percent(sample: Sample) -> float | None:
    """Of the inferences of its period that were asked for; None: there were none, or it does not tell."""
    errors, answered = sample.values.get("errors"), sample.values.get("inferences")
    if errors is None or answered is None or errors + answered <= 0:
        return None
    return 100 * errors / (errors + answered)
