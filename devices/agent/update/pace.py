"""How fast bytes may pass, how fast they must come, and when to ask again."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from ferryman.devices.agent.update.config import UpdateConfig

BLOCK_BYTES = 1 << 17
AFTER_MAX_S = 3600.0
"""No server makes a device wait longer."""


class Retry(Exception):
    """It did not go well, and may another time."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s
        """The server asks to wait so long."""


class Rate:
    """A token bucket: bytes may pass at this rate, a tenth of a second's worth at once."""

    def __init__(self, bytes_s: int | None) -> None:
        self.block_bytes = BLOCK_BYTES if bytes_s is None else max(512, min(BLOCK_BYTES, bytes_s // 20))
        self._bytes_s = bytes_s
        self._debt_bytes = 0.0
        self._at_s = time.monotonic()

    def pass_(self, count: int) -> float:
        """Seconds to wait after so many bytes."""
        if self._bytes_s is None:
            return 0.0
        now_s = time.monotonic()
        burst = self._bytes_s / 10
        self._debt_bytes = max(-burst, self._debt_bytes - (now_s - self._at_s) * self._bytes_s) + count
        self._at_s = now_s
        return max(0.0, self._debt_bytes / self._bytes_s)


class Pace:
    """How fast bytes come, over windows of time spent waiting for them."""

    def __init__(self, config: UpdateConfig) -> None:
        self._window_s = config.timeout_s
        self._floor_bytes_s = min(config.floor_bytes_s, (config.rate_bytes_s or 1 << 40) // 4)
        self._bytes = 0
        self._seconds = 0.0

    def note(self, count: int, seconds: float) -> None:
        """Count; raises Retry where the window's bytes are too few."""
        self._bytes += count
        self._seconds += seconds
        if self._seconds > self._window_s:
            speed = self._bytes / self._seconds
            if speed < self._floor_bytes_s:
                raise Retry(f"{speed:.0f} bytes/s are fewer than {self._floor_bytes_s}")
            self._bytes, self._seconds = 0, 0.0


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long an answer asks to wait, an hour at most; 0: it does not say.

    A date counts from the answer's own, for this device's clock may never have been set (RFC 9110, 10.2.3).
    """
    asked = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,15}", asked, re.ASCII):
        return min(AFTER_MAX_S, float(asked))
    try:
        seconds = (parsedate_to_datetime(asked) - parsedate_to_datetime(headers.get("Date", ""))).total_seconds()
    except (ValueError, TypeError, OverflowError):  # none, or one with a time zone and one without
        return 0.0
    return max(0.0, min(AFTER_MAX_S, seconds))
