"""What agents logged."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ferryman.devices.fleet.query.asked import check_texts
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.reading import Stored, decoded, newest, stored
from ferryman.devices.fleet.query.records import CLOCKS, LogRow, Logs
from ferryman.devices.fleet.query.who import who
from ferryman.devices.fleet.query.window import Window, window
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.telemetry import LogLine

LIMIT = 100
LEVELS = ("WARNING", "ERROR", "CRITICAL")
LATE_NS = 3600 * 10**9
"""Who follows logs is not shown what comes later than this after it was logged."""
_UNORDERED_NS = 30 * 10**9
"""Collectors commit in another order than they take in, by less than this."""


class LogFilter:
    """Which lines are meant."""

    def __init__(self, level: str | None, grep: str | None) -> None:
        """Take what is asked for.

        Args:
            level: this or worse; None: all.
            grep: a regular expression that the message or the logger's name holds; None: any.

        Raises:
            CallerError: there is no such level, or it is no regular expression.
        """
        check_texts(level=level, grep=grep)
        if level is not None and level.upper() not in LEVELS:
            raise CallerError(f"no level {level[:100]!r}; there are: {', '.join(LEVELS)}")
        self._least = 0 if level is None else LEVELS.index(level.upper())
        try:
            self._grep = None if grep is None else re.compile(grep)
        except (re.error, RecursionError, OverflowError) as error:
            raise CallerError(f"{grep!r:.100} is no regular expression: {error}") from error

    def takes(self, line: LogLine) -> bool:
        """Whether it is one of them."""
        if LEVELS.index(line.level) < self._least:
            return False
        return self._grep is None or any(map(self._grep.search, (line.message, line.logger)))


def logs(
    store: Store,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    level: str | None = None,
    grep: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    limit: int | None = LIMIT,
) -> Logs:
    """Give the newest lines that match, the newest last.

    Args:
        store: where.
        now_ns: the present.
        query: only of these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only of this one.
        level: see `LogFilter`.
        grep: see `LogFilter`.
        since: only from then on; None: all.
        until: only before.
        limit: so many at most; None: all.

    Raises:
        CallerError: an argument is none of its kind, or there is no such device.
        StoreError: the database cannot be read.
    """
    left_out = LeftOut()
    wanted = LogFilter(level, grep)
    devices = who(store, query, device, left_out)
    within = window(since, until, now_ns, "")

    def read(one: Stored) -> LogRow | None:
        line = decoded(one, "log line", LogLine, left_out)
        return log_row(one, line) if line is not None and wanted.takes(line) else None

    rows, more = newest(store, "log", within, devices, limit, read)
    if more:
        left_out.say(f"lines older than these {len(rows):,}; raise the limit, or narrow them down")
    return Logs(rows=tuple(reversed(rows)), total=None if more else len(rows), left_out=left_out.words())


def log_row(one: Stored, line: LogLine) -> LogRow:
    """With where it comes from."""
    return LogRow(
        device=one.device,
        boot=one.boot,
        sequence=one.sequence,
        time_ns=one.time_ns,
        clock=CLOCKS[one.clock],
        received_ns=one.received_ns,
        level=line.level,
        logger=line.logger,
        message=line.message,
        times=line.times,
    )


class Following:
    """Lines as they arrive: call it again and again."""

    def __init__(
        self,
        store: Store,
        *,
        from_ns: int,
        query: str | None = None,
        device: str | None = None,
        level: str | None = None,
        grep: str | None = None,
    ) -> None:
        """Begin with what is received from `from_ns` on; the others are those of `logs`."""
        self._store, self._query, self._device = store, query, device
        self._wanted = LogFilter(level, grep)
        self._from_ns = from_ns
        self._seen: dict[tuple[str, str, int], int] = {}

    def seen(self, found: Logs) -> None:
        """Take these as told already."""
        self._seen |= {(row.device, row.boot, row.sequence): row.received_ns for row in found.rows}

    def __call__(self) -> Iterator[LogRow]:
        """What has come since the last call, in order of time.

        Raises:
            StoreError: the database cannot be read; the next call goes on.
        """
        left_out = LeftOut()
        devices = who(self._store, self._query, self._device, left_out, nobody=True)
        heard_ns = self._from_ns - _UNORDERED_NS
        within = Window(max(0, self._from_ns - LATE_NS), (1 << 63) - 1)
        for one in stored(self._store, "log", within, devices):
            name = one.device, one.boot, one.sequence
            if one.received_ns < heard_ns or name in self._seen:
                continue
            self._seen[name] = one.received_ns
            self._from_ns = max(self._from_ns, one.received_ns)
            line = decoded(one, "log line", LogLine, left_out)
            if line is not None and self._wanted.takes(line):
                yield log_row(one, line)
        old = self._from_ns - 2 * _UNORDERED_NS
        self._seen = {name: received_ns for name, received_ns in self._seen.items() if received_ns >= old}
