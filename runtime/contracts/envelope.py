"""The telemetry envelope (JSON on the wire, so that any MQTT consumer can read it)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.record import Record

SCHEMA = 2
BOOT_MAX_CHARS = 256
KIND_MAX_CHARS = 256
_INTEGER_MAX = (1 << 63) - 1
TIME_MAX_NS = _INTEGER_MAX - 7 * 86400 * 10**9
"""What a collector takes: a week before the end of 64 bits (April 2262), so that the end of a day can be told."""
Sequence = Annotated[int, msgspec.Meta(ge=1, le=_INTEGER_MAX)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=_INTEGER_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_INTEGER_MAX)]
Boot = Annotated[str, msgspec.Meta(min_length=1, max_length=BOOT_MAX_CHARS)]
Kind = Annotated[str, msgspec.Meta(min_length=1, max_length=KIND_MAX_CHARS)]


class Item(Record, array_like=True):
    """One record of a batch, as the array [sequence, kind, time_ns, uptime_ns, sure, body]."""

    sequence: Sequence
    kind: Kind
    time_ns: Nanoseconds
    """The device's wall clock when it was recorded, Unix epoch; never changed afterwards."""
    uptime_ns: Nanoseconds
    """CLOCK_BOOTTIME then; with the kernel boot in `boot`, what a wrong clock is corrected by (`ClockFix`)."""
    sure: bool
    """Whether the wall clock was synchronised then."""
    body: msgspec.Raw


class Envelope(Record, kw_only=True):
    """Schema 2: records of one device and boot, in order of sequence; (device, boot, sequence) names each for ever.

    On the wire it may be compressed with zlib (RFC 1950), which its first byte tells: `{` is plain JSON, 0x78 is zlib.
    """

    schema: int = SCHEMA
    device: str
    boot: Boot
    """Identifies one run of numbers: the outbox's own id, a dot, the kernel's boot id."""
    historical: bool = False
    """What was waiting while there was no link, or is sent again: it must not overwrite what is known to be newer."""
    items: tuple[Item, ...]


class EnvelopeV1(Record, kw_only=True):
    """Schema 1: one record. Written by ferryman 0.1; read for ever."""

    schema: int = 1
    device: str
    boot: Boot
    sequence: Sequence
    time_ns: Nanoseconds
    kind: Kind
    body: msgspec.Raw


class Receipt(Record):
    """Collector -> device: these sequences of this boot are committed; forget them."""

    boot: str
    ranges: tuple[tuple[int, int], ...]
    """First and last, both included."""
