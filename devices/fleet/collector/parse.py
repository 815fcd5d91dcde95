"""From a message's bytes to what the store takes; pure.

One bad record does not cost its neighbours: of a batch the good ones are stored, and each bad one goes to quarantine
in an envelope of its own. Whatever has a name gets a receipt, for its bytes are kept and sending it again would
not help.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from ferryman.devices.fleet.collector.bodies import MALFORMED, check_body, check_name
from ferryman.devices.fleet.collector.status import check_device, check_size, device_of
from ferryman.devices.fleet.store.quarantine import WHOLE_MAX_BYTES, Bad
from ferryman.devices.fleet.store.store import Arrived, Row
from ferryman.runtime.contracts import envelope as wire
from ferryman.runtime.contracts.envelope import Envelope, EnvelopeV1, Item
from ferryman.runtime.contracts.record import Record, decode

UNPACKED_MAX_BYTES = 4 << 20
"""Of a compressed envelope: zlib makes 1 MiB into 1 GiB, if asked to."""
ITEMS_MAX = 10_000
ZLIB = b"x"
"""The first byte of what zlib compressed (RFC 1950: deflate, a window of 32 KiB); no JSON begins so."""

_SEQUENCE = msgspec.json.Decoder(wire.Sequence)


class Head(Record):
    """Which of the envelopes it is."""

    schema: int = 1


class _Batch(Record):
    """Schema 2 as far as a damaged one can be read."""

    device: str
    boot: wire.Boot
    items: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(max_length=ITEMS_MAX)]


class _Identity(Record):
    """The least of a schema 1 envelope, and of later ones, that a receipt needs."""

    boot: wire.Boot
    sequence: wire.Sequence


_HEAD = msgspec.json.Decoder(Head)
_BATCH = msgspec.json.Decoder(Envelope)
_DAMAGED = msgspec.json.Decoder(_Batch)
_SINGLE = msgspec.json.Decoder(EnvelopeV1)
_ITEM = msgspec.json.Decoder(Item)
_PARTS = msgspec.json.Decoder(tuple[msgspec.Raw, ...])


class Telemetry(NamedTuple):
    """What one message holds."""

    arrived: Arrived | None = None
    bad: Sequence[Bad] = ()
    device: str = ""
    boot: str = ""
    sequences: Sequence[int] = ()
    """Of (device, boot), to be receipted once `arrived` and `bad` are committed."""
    unpacked_bytes: int = 0


def parse_telemetry(topic: str, payload: bytes) -> Telemetry:
    """Read and check one message; what cannot be taken is in `bad`, with the reason."""
    try:
        device = device_of(topic)
        data = _unpack(payload)
        schema = _HEAD.decode(data).schema
        if schema == wire.SCHEMA:
            return _batch(topic, payload, data, device)
        if schema == 1:
            return _single(topic, payload, device)
        raise ValueError(f"schema {schema}, this collector knows 1 and {wire.SCHEMA}; update the collector")  # noqa: TRY301
    except MALFORMED as error:
        reason = f"not an envelope: {error}"
    except ValueError as error:
        reason = str(error)
    return _refused(topic, payload, reason)


def _unpack(payload: bytes) -> bytes:
    check_size(payload)
    if payload[:1] != ZLIB:
        return payload
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(payload, UNPACKED_MAX_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"not an envelope: zlib: {error}") from error
    if len(data) > UNPACKED_MAX_BYTES:
        raise ValueError(f"unpacks to more than the {UNPACKED_MAX_BYTES} bytes that are taken")
    if not stream.eof or stream.unused_data:
        raise ValueError(f"not an envelope: zlib: {'bytes after the end' if stream.eof else 'cut short'}")
    return data


def _batch(topic: str, payload: bytes, data: bytes, device: str) -> Telemetry:
    try:
        envelope = _BATCH.decode(data)
        if not data.isascii():
            data.decode()  # bodies are not decoded in full, so nothing else would notice
        rows = [_row(item) for item in envelope.items]
    except (*MALFORMED, ValueError):
        return _damaged(topic, payload, data, device)
    check_device(device, envelope.device, "envelope")
    if not 0 < len(rows) <= ITEMS_MAX:
        raise ValueError(f"{len(rows)} items, 1 to {ITEMS_MAX} are taken")
    boot = envelope.boot
    check_name(boot, "boot")
    return Telemetry(
        arrived=Arrived(device, boot, rows, topic, payload),
        device=device,
        boot=boot,
        sequences=[row.sequence for row in rows],
        unpacked_bytes=len(data),
    )


def _row(item: Item) -> Row:
    body = bytes(item.body)
    _check_time(item.time_ns)
    check_body(item.kind, body)
    return Row(item.sequence, item.kind, item.time_ns, item.uptime_ns, item.sure, body)


def _check_time(time_ns: int) -> None:
    if time_ns > wire.TIME_MAX_NS:
        raise ValueError(f"time_ns {time_ns} is beyond {wire.TIME_MAX_NS}, the last that is taken; set the clock")


def _damaged(topic: str, payload: bytes, data: bytes, device: str) -> Telemetry:
    """Item by item; raises what the whole fails by."""
    batch = _DAMAGED.decode(data)
    check_device(device, batch.device, "envelope")
    check_name(batch.boot, "boot")
    rows: list[Row] = []
    bad: list[Bad] = []
    sequences: list[int] = []
    for index, raw in enumerate(bytes(item) for item in batch.items):
        try:
            raw.decode()
            rows.append(_row(_ITEM.decode(raw)))
            sequences.append(rows[-1].sequence)
        except (*MALFORMED, ValueError) as error:
            bad.append(Bad(topic, _alone(batch, raw), f"item {index}: {error}"))
            if (sequence := _sequence(raw)) is not None:
                sequences.append(sequence)
    arrived = Arrived(device, batch.boot, rows, topic, payload) if rows else None
    return Telemetry(arrived, bad, device, batch.boot, sequences, len(data))


def _alone(batch: _Batch, raw: bytes) -> bytes:
    """An envelope around the very bytes of one item, so that it can be taken up again when it is understood."""
    names = msgspec.json.encode({"schema": wire.SCHEMA, "device": batch.device, "boot": batch.boot})
    return names[:-1] + b',"items":[' + raw + b"]}"


def _sequence(raw: bytes) -> int | None:
    try:
        return int(_SEQUENCE.decode(_PARTS.decode(raw)[0]))
    except (*MALFORMED, IndexError):
        return None


def _single(topic: str, payload: bytes, device: str) -> Telemetry:
    one = _SINGLE.decode(payload)
    body = bytes(one.body)
    if not body.isascii():
        body.decode()
    check_device(device, one.device, "envelope")
    check_name(one.boot, "boot")
    _check_time(one.time_ns)
    check_body(one.kind, body)
    row = Row(one.sequence, one.kind, one.time_ns, None, True, body)  # schema 1 says nothing of clocks
    arrived = Arrived(device, one.boot, (row,), topic, payload)
    return Telemetry(arrived, (), device, one.boot, (one.sequence,), len(payload))


def _refused(topic: str, payload: bytes, reason: str) -> Telemetry:
    bad = (Bad(topic, payload, reason),)
    if len(payload) > WHOLE_MAX_BYTES:  # only its head is kept: no receipt
        return Telemetry(bad=bad)
    try:
        device = device_of(topic)
        identity = decode(payload, _Identity)
    except ValueError:
        return Telemetry(bad=bad)
    return Telemetry(None, bad, device, identity.boot, (identity.sequence,))


_REASONS = (
    ("item", "record"),
    ("body", "record"),
    ("time_ns", "record"),
    ("the database", "record"),
    ("not an envelope", "malformed"),
    ("schema", "schema"),
    ("the topic", "identity"),
    ("topic", "topic"),
    ("conflict", "conflict"),
    ("unpacks", "size"),
)


def reason_class(reason: str) -> str:
    """Of a reason for quarantine, in one word for counting."""
    found = next((name for begin, name in _REASONS if reason.startswith(begin)), "other")
    return "size" if " are taken" in reason else found
