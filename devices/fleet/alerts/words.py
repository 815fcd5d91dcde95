"""What devices, webhooks and plug-ins say, made fit for a notice and a log: short, printable, and without secrets."""

from __future__ import annotations

import logging
import re
import threading
from urllib.parse import unquote

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
