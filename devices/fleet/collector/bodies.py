"""The kinds of record that queries read, and whether a body is one of its kind."""

from __future__ import annotations

import msgspec

from ferryman.devices.agent.outbox import Dropped, SetAside
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.rollout import Reported
from ferryman.runtime.contracts.slot import SlotState
from ferryman.runtime.contracts.telemetry import (
    COUNTED,
    LATENCIES_MAX,
    METRICS,
    ClockFix,
    Duration,
    LogLine,
    Sample,
    Sha256,
    Value,
)

BODIES: dict[str, type[Record]] = {
    "measurement": Measurement,
    "drift": Drift,
    "sample": Sample,
    "log": LogLine,
    "clock": ClockFix,
    "update": Reported,
    "slots": SlotState,
    "dropped": Dropped,
    "outbox-set-aside": SetAside,
}
"""A body that is not one is quarantined. Of other kinds any JSON is stored as it is."""

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises."""


class _PlainSample(Record):
    """A sample but for some of its bounds: the patterns of its names cost more than all the rest of it."""

    period_s: Duration
    values: dict[str, Value]
    unavailable: dict[str, str] = msgspec.field(default_factory=dict)
    latencies_ms: tuple[Duration, ...] = ()
    package_sha256: Sha256 | None = None


_ANY = msgspec.json.Decoder()
_PLAIN_SAMPLE = msgspec.json.Decoder(_PlainSample)
_DECODERS = {kind: msgspec.json.Decoder(body) for kind, body in BODIES.items()}
_NAMES = METRICS.keys()


def check_body(kind: str, body: bytes) -> None:
    """Refuse what is not JSON, or no body of its kind.

    Raises:
        ValueError: it is; says where.
        msgspec.MsgspecError, RecursionError: it is not JSON.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        check_name(kind, "kind")
        _ANY.decode(body)  # what is stored can be read by whoever comes later
        return
    try:
        if kind != "sample" or not _is_plain(_PLAIN_SAMPLE.decode(body)):
            decoder.decode(body)
    except MALFORMED as error:
        raise ValueError(f"body is no {kind}: {error}") from error


def _is_plain(sample: _PlainSample) -> bool:
    """Whether it is surely a `Sample`: nearly all are."""
    return (
        sample.values.keys() <= _NAMES
        and sample.unavailable.keys() <= _NAMES
        and len(sample.latencies_ms) <= LATENCIES_MAX
        and all(sample.values.get(name, 0) >= 0 for name in COUNTED)
    )


def check_name(name: str, what: str) -> None:
    """Refuse what no database takes.

    Raises:
        ValueError: there is a NUL in it.
    """
    if "\0" in name:
        # PostgreSQL has no text for it, and a commit that fails is tried for ever.
        raise ValueError(f"{what} {name!r} holds a NUL character")
