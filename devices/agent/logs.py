"""What the agent logs, from warnings on, as telemetry records: equal ones as one, so many a minute, without secrets."""

from __future__ import annotations

import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple
from urllib.parse import quote

from ferryman.runtime.contracts.telemetry import LOG_MAX_CHARS, LogLine

PER_MINUTE = 30
"""Records; what is said beyond waits and is counted."""
WAITING_MAX = 100
"""Different messages that wait; of more, only how many there were is told."""
LOGGER = "ferryman"
_NAME_CHARS = 128
_TRACE_CHARS = 1200
_CREDENTIALS = re.compile(r"(\w+://[^\s/@:]*:)[^\s/@]+@")
_HIDDEN = "***"
Level = Literal["WARNING", "ERROR", "CRITICAL"]


class _Key(NamedTuple):
    level: Level
    logger: str
    message: str


class LogRecords(logging.Handler):
    """Gathers what is logged until `take`; safe to use from several threads. It never logs, and never raises."""

    def __init__(self, secrets: Iterable[str | None] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is gathered yet; see `listening`.

        Args:
            secrets: texts that must not be told; as they stand in a URL, neither.
            clock: a monotonic one, in seconds.
        """
        super().__init__(logging.WARNING)
        known = {one for secret in secrets if secret for one in (secret, quote(secret, safe=""))}
        self._secrets = sorted(known, key=len, reverse=True)
        self._clock = clock
        self._guard = threading.Lock()
        self._waiting: dict[_Key, int] = {}
        self._left_out = 0
        self._tokens = float(PER_MINUTE)
        self._filled = clock()
        self._quiet = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Count it; nothing else happens in the thread that logs."""
        if getattr(self._quiet, "on", False):
            return
        try:
            key = _Key(_level(record.levelno), record.name[:_NAME_CHARS], self._text(record))
            with self._guard:
                if key in self._waiting or len(self._waiting) < WAITING_MAX:
                    self._waiting[key] = self._waiting.get(key, 0) + 1
                else:
                    self._left_out += 1
        except Exception:  # noqa: BLE001  # a message that does not fit its arguments, for one
            self.handleError(record)

    def take(self) -> list[LogLine]:
        """What may become records now, in the order it was first said."""
        with self._guard:
            now = self._clock()
            self._tokens = min(PER_MINUTE, self._tokens + (now - self._filled) * PER_MINUTE / 60)
            self._filled = now
            keys = list(self._waiting)[: int(self._tokens)]
            lines = [_line(key, self._waiting.pop(key)) for key in keys]
            self._tokens -= len(lines)
            if self._left_out and not self._waiting and self._tokens >= 1:
                self._tokens -= 1
                lines.append(_line(_Key("WARNING", __name__, "more messages than are kept"), self._left_out))
                self._left_out = 0
        return lines

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What this thread logs meanwhile becomes no record: that of a record that cannot be kept would be the next."""
        self._quiet.on = True
        try:
            yield
        finally:
            self._quiet.on = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Gather what ferryman logs."""
        logger = logging.getLogger(LOGGER)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)

    def _text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            text += "\n" + trace[-_TRACE_CHARS:]
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        text = _CREDENTIALS.sub(rf"\g<1>{_HIDDEN}@", text)
        # Databases take neither NUL nor half a character.
        text = "".join(one if one.isprintable() or one in "\n\t" else "?" for one in text)
        return text[: LOG_MAX_CHARS - 1] + "…" if len(text) > LOG_MAX_CHARS else text


def _line(key: _Key, times: int) -> LogLine:
    return LogLine(level=key.level, logger=key.logger, message=key.message, times=times)


def _level(number: int) -> Level:
    if number >= logging.CRITICAL:
        return "CRITICAL"
    return "ERROR" if number >= logging.ERROR else "WARNING"
