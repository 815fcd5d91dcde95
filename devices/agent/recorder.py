"""Telemetry records on their way to the outbox: they wait while the disk is full, and measurements are made to fit."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.devices.agent.clock import Reading
from ferryman.devices.agent.outbox import BODY_MAX_BYTES, Outbox
from ferryman.runtime.contracts.energy import EnergyWindow
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.measurement import KEPT_MAX, Measurement
from ferryman.runtime.contracts.record import Record, encode
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.telemetry import priority

log = logging.getLogger(__name__)

UNRECORDED_MAX = 16
"""Records that wait in memory while the disk is full."""


class Recorder:
    """Puts records into an outbox; safe to use from several threads."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Record, Reading]] = deque()
        self.trouble = False
        """Whether the disk took nothing when it was last tried."""
        self.lost = 0
        """Records that never reached the disk."""

    @property
    def waiting(self) -> int:
        """How many are not on disk yet."""
        return len(self._waiting)

    def put(self, records: Sequence[tuple[str, Record]]) -> None:
        """Put records on disk; what a full one keeps out waits in memory and is tried again with every poll."""
        now = self._outbox.clock()
        with self._lock:
            self._waiting.extend((kind, body, now) for kind, body in records)
            while len(self._waiting) > UNRECORDED_MAX:
                del self._waiting[self._least()]
                self.lost += 1
            try:
                while self._waiting:
                    self._outbox.append(*self._waiting[0])
                    self._waiting.popleft()
            except DeviceError as error:
                if not self.trouble:
                    log.error("%s; telemetry is kept in memory, trying again", error)  # noqa: TRY400  # said in full
                self.trouble = True
            except CallerError:  # it fits no outbox, and shall not keep the others waiting
                self._waiting.popleft()
                self.lost += 1
                raise
            else:
                self.trouble = False

    def _least(self) -> int:
        """The oldest of those that matter least."""
        return min(range(len(self._waiting)), key=lambda at: (priority(self._waiting[at][0]), at))


def as_record(measurement: Measurement) -> Measurement:
    """What of a measurement fits a telemetry record: all of it, or fewer durations and no readings of joules."""
    kept, record = KEPT_MAX, measurement
    while len(encode(record)) > BODY_MAX_BYTES and kept:
        kept //= 4
        record = _thinned(measurement, kept)
    if record is not measurement:
        log.warning(
            "the measurement of %s on %s is more than a telemetry record holds: %s durations of a kind are kept there, "
            "their distributions, and no energy readings; the one who asked gets all",
            measurement.variant,
            measurement.interpreter,
            f"{kept:,}",
        )
    return record


def _thinned(measurement: Measurement, kept: int) -> Measurement:
    replace = msgspec.structs.replace

    def thin(value: Any) -> Any:  # noqa: ANN401  # whatever a record holds
        if isinstance(value, Samples):
            return value.thinned(kept)
        if isinstance(value, EnergyWindow):
            return replace(value, times_ns=(), values=())
        if isinstance(value, tuple):
            return tuple(thin(one) for one in value)
        if isinstance(value, Record):
            return replace(value, **{name: thin(getattr(value, name)) for name in value.__struct_fields__})
        return value

    thinner: Measurement = thin(measurement)
    return thinner
