"""What an outbox needs done now and then: records that are too old go, and the clock's corrections go on record."""

from __future__ import annotations

from ferryman.devices.agent.clock import fix_for, kernel_boot
from ferryman.devices.agent.outbox import Outbox
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.telemetry import ClockFix

NOTE = "clock"
EXPIRE_EVERY_S = 60.0


class Upkeep:
    """Of one outbox; one thread of one process does it."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._boot = kernel_boot()
        self._expire_at = 0.0
        self._read_from = ""
        self._fix: ClockFix | None = None

    def look(self, now: float) -> None:
        """Do what is due at a monotonic time.

        Raises:
            DeviceError: the disk is full or broken; tried again with the next call.
        """
        if self._read_from != self._outbox.id:  # at first, and when the file was replaced
            self._fix = _kept(self._outbox.note(NOTE))
            self._read_from = self._outbox.id
        fix = fix_for(self._outbox.clock(), self._boot, self._fix)
        if fix is not None:
            self._outbox.append("clock", fix)
            self._outbox.keep_note(NOTE, encode(fix))
            self._fix = fix
        if now >= self._expire_at:
            self._outbox.expire()
            self._expire_at = now + EXPIRE_EVERY_S


def _kept(note: bytes | None) -> ClockFix | None:
    try:
        return decode(note, ClockFix) if note is not None else None
    except ValueError:
        return None  # it is put on record once more
