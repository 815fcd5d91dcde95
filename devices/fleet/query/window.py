"""Spans of time as people write them: `2h`, `7d`, `2026-11-26`, `2026-11-26T18:00`, or nanoseconds since the epoch."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

from ferryman.devices.fleet.query.asked import check_texts, shown
from ferryman.runtime.contracts.errors import CallerError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGO = re.compile(r"(\d{1,9})\s*([smhdw])", re.ASCII)
_NANOSECONDS = re.compile(r"\d{16,19}", re.ASCII)
_LAST_NS = (1 << 63) - 1
_WORDS = "a time is 2h or 7d ago, an ISO date such as 2026-11-26 or 2026-11-26T18:00 (UTC), or nanoseconds since 1970"


class Window(NamedTuple):
    """From `since_ns` on and before `until_ns`."""

    since_ns: int
    until_ns: int


def parse_time(text: str, now_ns: int) -> int:
    """Nanoseconds since the epoch; a time without a zone is UTC.

    Raises:
        CallerError: it is no time.
    """
    text = str(text).strip()
    if found := _AGO.fullmatch(text):
        return max(0, now_ns - int(found[1]) * _UNITS_S[found[2]] * 10**9)
    if _NANOSECONDS.fullmatch(text) and int(text) <= _LAST_NS:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = moment - datetime.fromtimestamp(0, UTC)
    except (ValueError, OverflowError):
        raise CallerError(f"{text[:100]!r} is no time: {_WORDS}") from None
    found_ns = (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
    if not 0 <= found_ns <= _LAST_NS:
        raise CallerError(f"{text!r} is no time that a device can have: {_WORDS}")
    return found_ns


def parse_span(text: str) -> int:
    """Seconds of a length of time such as `15m` or `1d`.

    Raises:
        CallerError: it is none.
    """
    found = _AGO.fullmatch(str(text).strip())
    if found is None or not int(found[1]):
        raise CallerError(f"{str(text)[:100]!r} is no length of time, such as 15m, 1h or 1d")
    return int(found[1]) * _UNITS_S[found[2]]


def window(since: str | int | None, until: str | int | None, now_ns: int, default: str) -> Window:
    """Both ends; without `since` it begins `default` before its end.

    Args:
        since: as `parse_time` reads it, or nanoseconds.
        until: likewise; None: now, and what devices recorded with clocks that are ahead.
        now_ns: what `2h` is counted back from.
        default: such as `1h`; empty: from the first record on.

    Raises:
        CallerError: one is no time, or the window ends before it begins.
    """
    end = _LAST_NS if until is None else _moment("until", until, now_ns)
    if since is not None:
        begin = _moment("since", since, now_ns)
    else:
        begin = parse_time(default, min(end, now_ns)) if default else 0
    if begin >= end:
        raise CallerError(f"the window ends before it begins: since {iso(begin)}, until {iso(end)}")
    return Window(begin, end)


def _moment(name: str, given: str | int, now_ns: int) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given <= _LAST_NS:
            raise CallerError(f"{name}={shown(given)} is no time that a device can have: {_WORDS}")
        return given
    if not isinstance(given, str):
        raise CallerError(f"{name}={shown(given)} is no time: {_WORDS}")
    check_texts(**{name: given})
    return parse_time(given, now_ns)


def iso(time_ns: int) -> str:
    """UTC with nanoseconds, as RFC 3339."""
    whole = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09d}Z"
