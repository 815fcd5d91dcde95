from __future__ import annotations

import time

import pytest

from ferryman.devices.agent import clock
from ferryman.devices.agent.clock import NEVER_SET_NS, STEP_NS, Reading, fix_for, kernel_boot, read_clock
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.telemetry import ClockFix

S = 10**9
NOW = 1_795_000_000 * S


def test_both_clocks_are_read():
    before, uptime = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    reading = read_clock()
    assert before <= reading.time_ns <= time.time_ns()
    assert uptime <= reading.uptime_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize(
    ("wall_ns", "kernel_says", "sure"),
    [
        (NOW, True, True),
        (NOW, False, False),
        (NOW, Unavailable(reason="nobody knows"), False),
        (NEVER_SET_NS - 1, True, False),
        (-5, True, False),
    ],
)
def test_a_clock_is_sure_where_the_kernel_says_so_and_it_was_ever_set(monkeypatch, wall_ns, kernel_says, sure):
    monkeypatch.setattr(clock, "clock_synchronized", lambda: kernel_says)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns)
    assert read_clock().sure is sure
    assert read_clock().time_ns >= 0


def test_a_reading_that_was_torn_apart_is_taken_again(monkeypatch):
    uptimes = iter([0, 60 * S, 61 * S, 61 * S + 1000])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(uptimes))
    assert read_clock().uptime_ns == 61 * S + 1000


def test_a_correction_is_due_once_a_boot_and_when_the_clock_is_stepped():
    fix = fix_for(Reading(NOW, 50 * S, sure=True), "boot", None)
    assert fix == ClockFix(kernel_boot="boot", offset_ns=NOW - 50 * S)
    assert fix_for(Reading(NOW + S, 51 * S, sure=True), "boot", fix) is None
    assert fix_for(Reading(NOW + S + STEP_NS, 51 * S, sure=True), "boot", fix) is None
    for jump in (2 * S, -2 * S, 86400 * S):
        stepped = fix_for(Reading(NOW + S + jump, 51 * S, sure=True), "boot", fix)
        assert stepped == ClockFix(kernel_boot="boot", offset_ns=NOW - 50 * S + jump)
    assert fix_for(Reading(NOW + S, 51 * S, sure=True), "another", fix) is not None


def test_a_clock_that_is_not_sure_corrects_nothing():
    assert fix_for(Reading(NOW, 50 * S, sure=False), "boot", None) is None
    assert fix_for(Reading(5, 50 * S, sure=True), "boot", None) is None


def test_the_kernel_boot_has_a_name():
    assert kernel_boot() == kernel_boot() != ""
