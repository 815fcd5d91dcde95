from __future__ import annotations

import numpy as np
import pytest

from ferryman.devices.fleet.alerts.looks import Found, Look
from ferryman.devices.fleet.alerts.patience import FORGET_S, Patience
from ferryman.devices.fleet.alerts.rules import FullDisk

RULE = FullDisk(for_s=10, clear_s=20)
ALL = np.ones(2, bool)


def seen(holds: bool | None, since_s: float | None = None) -> Look:
    """Of the first of two devices; the other is well."""
    return Look(
        np.array([holds is True, False]), np.array([holds is False, True]), lambda _: Found("it holds", since_s=since_s)
    )


@pytest.fixture
def patience() -> Patience:
    return Patience()


def raised(patience, look, now_s, applies=ALL):
    return patience.step(RULE, look, applies, {}, [], now_s)[0]


def over(patience, look, now_s, applies=ALL):
    return patience.step(RULE, look, applies, {0}, [0], now_s)[1]


def test_it_is_raised_once_it_held_long_enough(patience):
    assert raised(patience, seen(True), 100.0) == []
    assert raised(patience, seen(True), 109.9) == []
    assert raised(patience, seen(True), 110.0) == [(0, 100.0)]


def test_what_stops_in_between_begins_anew(patience):
    raised(patience, seen(True), 100.0)
    raised(patience, seen(False), 105.0)
    assert raised(patience, seen(True), 111.0) == []
    assert raised(patience, seen(True), 121.0) == [(0, 111.0)]


def test_what_the_store_dates_counts_from_there(patience):
    assert raised(patience, seen(True, since_s=80.0), 100.0) == [(0, 80.0)]


def test_it_is_over_once_it_was_clear_long_enough(patience):
    assert over(patience, seen(False), 100.0) == []
    assert over(patience, seen(True), 110.0) == []
    assert over(patience, seen(False), 115.0) == []
    assert over(patience, seen(False), 134.9) == []
    assert over(patience, seen(False), 135.0) == [0]


def test_what_cannot_be_told_stays_for_a_day(patience):
    assert over(patience, seen(None), 100.0) == []
    assert over(patience, seen(None), 99.0 + FORGET_S) == []
    assert over(patience, seen(None), 100.0 + FORGET_S) == [0]


def test_a_device_that_the_rule_no_longer_means_is_over_at_once(patience):
    assert over(patience, seen(True), 100.0, np.zeros(2, bool)) == [0]


def test_a_clock_that_jumps_back_raises_nothing_too_early(patience):
    raised(patience, seen(True), 100.0)
    assert raised(patience, seen(True), 50.0) == []
    assert raised(patience, seen(True, since_s=1e9), 60.0) == []
