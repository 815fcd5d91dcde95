"""Devices as a list shows them: from the devices file, and from what is known of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from ferryman.devices.fleet.facts.known import Known, recall
from ferryman.devices.fleet.facts.ways import ways_of
from ferryman.devices.fleet.inventory import Device
from ferryman.devices.fleet.rollout.query import Target
from ferryman.profiler.conditions import kind_of, named_cores
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.record import Record, Unavailable

_NS_PER_S = 10**9
_ARM = ("aarch64", "arm")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


class Row(Record):
    """One device."""

    name: str
    address: str
    ways: tuple[str, ...]
    labels: dict[str, str]
    known: Known | None
    """None: it was never probed at this address."""


def target_of(device: Device) -> Target:
    """A device, as queries see it; `model` is known once it was probed."""
    known = recall(device)
    return Target(name=device.name, model=_kind(known.facts) if known else "", labels=device.labels)


def _kind(facts: DeviceFacts) -> str:
    """What an agent there says of itself as its model: board and processor."""
    processor: str | Unavailable = Unavailable(reason="not told")
    if isinstance(facts.cores, tuple) and facts.cores:
        counts = Counter[str]()
        for core in facts.cores:
            counts[core.kind] += core.count
        processor = named_cores(counts, arm=facts.machine.startswith(_ARM))
    return kind_of(facts.model, processor, facts.machine, facts.emulated)


def rows(devices: Iterable[Device]) -> list[Row]:
    """One a device, in their order."""
    return [
        Row(
            name=device.name,
            address=device.address,
            ways=tuple(name for name, _ in ways_of(device)),
            labels=dict(device.labels),
            known=recall(device),
        )
        for device in devices
    ]


def age(probed_at_ns: int, now_ns: int | None = None) -> str:
    """How long ago, for people; a clock that was turned back makes it `just now`."""
    seconds = ((time.time_ns() if now_ns is None else now_ns) - probed_at_ns) // _NS_PER_S
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "just now"
