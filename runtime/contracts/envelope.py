"""The telemetry envelope (JSON on the wire, so that any MQTT consumer can read it)."""

from __future__ import annotations

import msgspec

from ferryman.runtime.contracts.record import Record

SCHEMA = 1


class Envelope(Record, kw_only=True):
    """One record from one device; (device, boot, sequence) names it for ever."""

    schema: int = SCHEMA
    device: str
    boot: str
    """Identifies one run of numbers: the outbox's own id joined with the kernel's boot id."""
    sequence: int
    time_ns: int
    """Device wall clock, Unix epoch."""
    kind: str
    body: msgspec.Raw


class Receipt(Record):
    """Collector -> device: these sequences of this boot are committed; forget them."""

    boot: str
    ranges: tuple[tuple[int, int], ...]
    """First and last, both included."""
