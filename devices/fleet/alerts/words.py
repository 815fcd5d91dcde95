"""What devices, webhooks and plug-ins say, made fit for a notice and a log: short, printable, and without secrets."""

from __future__ import annotations

import logging
import re
import threading
from datetime import UTC, datetime
from urllib.parse import unquote

from ferryman.runtime.contracts.alert import Alert

TEXT_MAX_CHARS = 500
"""Of what one alert says."""
NAME_MAX_CHARS = 100
"""Of a label, a subject or an answer's reason."""
_PIECE_MIN_CHARS = 4
_SEPARATORS = re.compile(r"[:/?#\[\]@!$&'()*+,;=\s]+")


def cut(text: str, most_chars: int) -> str:
    """The text on one line, no longer than that, and with ? in the place of what cannot be printed."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text[: most_chars + 1])
    return shown if len(shown) <= most_chars else f"{shown[: most_chars - 3]}..."


def in_a_line(alert: Alert) -> str:
    """For a log: rule, device, what was found against the bound, since when, and until when."""
    found = "" if alert.value is None else f" ({alert.value:.4g}"
    if found:
        found += ")" if alert.bound is None else f", bound {alert.bound:.4g})"
    until = "" if alert.until_ns is None else f", until {utc(alert.until_ns)}"
    text = f"{cut(alert.text, TEXT_MAX_CHARS)}{found}"
    return f"{alert.rule}, {alert.device}, {alert.severity}: {text}, since {utc(alert.since_ns)}{until}"


def utc(time_ns: int) -> str:
    """To the second."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Redaction(logging.Filter):
    """Takes the pieces of URLs out of what is logged: a password may be any of them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def hide(self, url: str) -> None:
        """No piece of this one is logged from now on, as it stands or with its %-sequences read."""
        rest, _, query = url.partition("://")[2].partition("?")
        values = [option.partition("=")[2] for option in query.split("&")]
        pieces = {one for part in (rest, *values) for one in _SEPARATORS.split(part) if len(one) >= _PIECE_MIN_CHARS}
        with self._lock:
            self._secrets |= {url, *pieces, *(unquote(piece) for piece in pieces)}
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite it; what cannot be told is not logged."""
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            return False
        record.msg, record.args = cut(said if self._pattern is None else self._pattern.sub("***", said), 500), ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True
