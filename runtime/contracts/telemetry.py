"""What a device records of itself while it serves, and how much each kind of record matters when room is short."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.envelope import BOOT_MAX_CHARS, Nanoseconds
from ferryman.runtime.contracts.record import Record

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*\Z")]
VALUES_MAX = 64
LATENCIES_MAX = 64
LOG_MAX_CHARS = 2000
VALUE_MAX = 1e15
"""So many can be added up without losing whole units, whatever they are."""
PRINTABLE = r"^[^\x00-\x1f\x7f]*\Z"
"""No control characters; databases refuse some of them."""
Value = Annotated[float, msgspec.Meta(ge=-VALUE_MAX, le=VALUE_MAX)]
Duration = Annotated[float, msgspec.Meta(ge=0, le=VALUE_MAX)]
Sha256 = Annotated[str, msgspec.Meta(max_length=64, pattern=PRINTABLE)]
COUNTED = ("inferences", "errors")
"""Names in `Sample.values` that are never below 0."""


class Priority(IntEnum):
    """Which records are dropped last, and sent first where a link is metered."""

    BULK = 0
    """Regular readings and logs: the first to make room; not sent on a metered link."""
    NORMAL = 1
    """What somebody asked for: measurements, drift."""
    VITAL = 2
    """What the fleet is run by: updates, slots, what was dropped."""


_PRIORITIES = {
    "sample": Priority.BULK,
    "log": Priority.BULK,
    "update": Priority.VITAL,
    "slots": Priority.VITAL,
    "clock": Priority.VITAL,
    "dropped": Priority.VITAL,
    "outbox-set-aside": Priority.VITAL,
}


def priority(kind: str) -> Priority:
    """Of a kind of record; one that is not listed is NORMAL."""
    return _PRIORITIES.get(kind, Priority.NORMAL)


class Sample(Record):
    """Body of kind `sample`: how the device did over one period."""

    period_s: Duration
    values: Annotated[dict[Name, Value], msgspec.Meta(max_length=VALUES_MAX)]
    """Metric -> value; the unit is the end of the name: see METRICS."""
    unavailable: Annotated[dict[Name, str], msgspec.Meta(max_length=VALUES_MAX)] = msgspec.field(default_factory=dict)
    """Metric -> why there is no value."""
    latencies_ms: Annotated[tuple[Duration, ...], msgspec.Meta(max_length=LATENCIES_MAX)] = ()
    """Of the inferences served in the period, ascending: all, or so many evenly spaced order statistics."""
    package_sha256: Sha256 | None = None
    """What served."""

    def __post_init__(self) -> None:
        """Raise ValueError where what is counted is below 0."""
        for name in COUNTED:
            if self.values.get(name, 0.0) < 0:
                raise ValueError(f"`{name}` is {self.values[name]:g}, below 0")


METRICS: dict[str, str] = {
    "inferences": "answered in the period",
    "errors": "inferences that failed in the period",
    "latency_ms": "median of those in `latencies_ms`",
    "cpu_percent": "of all processors, over the period",
    "memory_used_mb": "of the whole device, 10^6 bytes",
    "agent_memory_mb": "resident, of the agent and its workers",
    "disk_free_mb": "where the slots are",
    "temperature_c": "the hottest zone",
    "clock_mhz": "mean over processors",
    "throttled": "1 while the device holds its clock down, else 0",
    "power_w": "mean over the period, where a meter is named",
    "energy_mj": "of one inference over the period, where a meter is named",
    "battery_percent": "",
    "outbox_records": "waiting",
    "outbox_mb": "waiting",
}
"""Names in `Sample.values` that ferryman itself uses."""


class LogLine(Record):
    """Body of kind `log`: something the agent logged, warning or worse."""

    level: Literal["WARNING", "ERROR", "CRITICAL"]
    logger: Annotated[str, msgspec.Meta(max_length=128)]
    message: Annotated[str, msgspec.Meta(max_length=LOG_MAX_CHARS)]
    times: Annotated[int, msgspec.Meta(ge=1, le=2**53)] = 1
    """How often it was said since it was last recorded."""


class ClockFix(Record):
    """Body of kind `clock`: what to add to an `uptime_ns` of this kernel boot to have the true time.

    Written when the clock becomes synchronised, and when it is stepped afterwards. A record of this boot whose clock
    was not sure is corrected by it, whether it came before or comes later.
    """

    kernel_boot: Annotated[str, msgspec.Meta(max_length=BOOT_MAX_CHARS, pattern=PRINTABLE)]
    """/proc/sys/kernel/random/boot_id: the second part of `Envelope.boot`."""
    offset_ns: Nanoseconds
    """Wall clock minus CLOCK_BOOTTIME, both read at once."""
