"""Records into messages: many in one, compressed where that pays, never more than broker and collector take. Pure."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ferryman.devices.agent.outbox import Entry
from ferryman.runtime.contracts.envelope import Envelope, EnvelopeV1, Item
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import Priority

RECORDS_MAX = 1000
BYTES_MAX = 256 << 10
"""Of one message before it is compressed; a record that is larger goes alone."""
PACKET_BYTES = 8
"""What MQTT adds to topic and payload (5.0, section 3.3): the head and a topic alias."""
HEAD_BYTES = 640
"""At most, of a message beside its items: the envelope, and topic and all that MQTT adds."""
_ITEM_BYTES = 80
"""At most, of an item beside its kind and body."""
_COMPRESS_FROM = 256
_PAYS = 0.9
_LEVEL = 1


def item_bytes(entry: Entry) -> int:
    """How long an item is in a message, at most."""
    return len(entry.body) + 6 * len(entry.kind) + _ITEM_BYTES


def plain_bytes(entries: Iterable[Entry]) -> int:
    """How long a message is before it is compressed, with all around it, at most."""
    return HEAD_BYTES + sum(map(item_bytes, entries))


def in_order(levels: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Merge what waits of each priority by sequence."""
    return list(heapq.merge(*levels, key=lambda entry: entry.sequence))


def is_old(entry: Entry, floors: Mapping[Priority, int]) -> bool:
    """Whether it waited while its priority could not be sent."""
    return entry.sequence <= floors[entry.priority]


def take(entries: Sequence[Entry], max_bytes: int, floors: Mapping[Priority, int]) -> list[Entry]:
    """The first of `entries` that may go in one message: of one boot, and all old or none.

    Always at least one, however large; an entry of an earlier version (no `uptime_ns`) goes alone.
    """
    taken: list[Entry] = []
    size = HEAD_BYTES
    for entry in entries[:RECORDS_MAX]:
        size += item_bytes(entry)
        if taken and (
            size > max_bytes
            or entry.boot != taken[0].boot
            or is_old(entry, floors) != is_old(taken[0], floors)
            or entry.uptime_ns is None
            or taken[0].uptime_ns is None
        ):
            break
        taken.append(entry)
    return taken


def pack(device: str, entries: Sequence[Entry], *, historical: bool) -> bytes:
    """One message of what `take` took."""
    first = entries[0]
    if first.uptime_ns is None:
        return encode(
            EnvelopeV1(
                device=device,
                boot=first.boot,
                sequence=first.sequence,
                time_ns=first.time_ns,
                kind=first.kind,
                body=msgspec.Raw(first.body),
            )
        )
    items = tuple(
        Item(
            sequence=entry.sequence,
            kind=entry.kind,
            time_ns=entry.time_ns,
            uptime_ns=entry.uptime_ns or 0,  # `take` lets none without it in
            sure=entry.sure,
            body=msgspec.Raw(entry.body),
        )
        for entry in entries
    )
    plain = encode(Envelope(device=device, boot=first.boot, historical=historical, items=items))
    if len(plain) < _COMPRESS_FROM:
        return plain
    small = zlib.compress(plain, _LEVEL)
    return small if len(small) < _PAYS * len(plain) else plain
