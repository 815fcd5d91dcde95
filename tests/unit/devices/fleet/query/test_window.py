"""Times as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.query.window import iso, parse_span, parse_time, window
from ferryman.runtime.contracts.errors import CallerError

NOW_NS = 1_795_492_336 * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", NOW_NS - 7200 * 10**9),
        (" 7d ", NOW_NS - 7 * 86400 * 10**9),
        ("0s", NOW_NS),
        ("999999999w", 0),
        ("2026-11-24", 1_795_478_400 * 10**9),
        ("2026-11-24T03:52:16", NOW_NS),
        ("2026-11-24 04:52:16+01:00", NOW_NS),
        ("2026-11-24T03:52:16.000001Z", NOW_NS + 1000),
        (str(NOW_NS + 1), NOW_NS + 1),
    ],
)
def test_a_time(text, expected):
    assert parse_time(text, NOW_NS) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2 hours", "-1h", "1e9", "1969-01-01", "9999-01-01", "2026-13-01", "1" * 400, "٢h"]
)
def test_no_time(text):
    with pytest.raises(CallerError, match="is no time"):
        parse_time(text, NOW_NS)


@given(st.text())
def test_whatever_is_typed_is_a_time_or_an_error(text):
    with contextlib.suppress(CallerError):
        assert 0 <= parse_time(text, NOW_NS) < 1 << 63


@given(st.integers(0, (1 << 63) - 1))
def test_what_is_shown_can_be_typed(time_ns):
    assert parse_time(iso(time_ns), NOW_NS) == time_ns // 1000 * 1000


def test_a_window_ends_after_it_begins():
    assert window(None, None, NOW_NS, "1h").since_ns == NOW_NS - 3600 * 10**9
    assert window(None, "2d", NOW_NS, "1h") == (NOW_NS - 2 * 86400 * 10**9 - 3600 * 10**9, NOW_NS - 2 * 86400 * 10**9)
    assert window(None, None, NOW_NS, "").since_ns == 0
    with pytest.raises(CallerError, match="ends before it begins: since 2026"):
        window("1h", "2h", NOW_NS, "1h")


def test_a_span():
    assert (parse_span("15m"), parse_span("1d")) == (900, 86400)
    for text in ("", "0h", "1", "h"):
        with pytest.raises(CallerError, match="no length of time"):
            parse_span(text)
