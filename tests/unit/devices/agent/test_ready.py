"""When an update may begin: by what the device tells, and by what it does not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.ready import Limits, Readings, is_open, read_now, why_not_yet
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.rollout import Window
from tests.unit.profiler.trees import write_tree

NONE = Unavailable(reason="no sensor")
FINE = Readings(power="mains", battery=NONE, hottest_c=40.0, throttled=(), idle_s=100.0, minute=180)
NIGHT = Window(begin_minute=22 * 60, end_minute=4 * 60)


@pytest.mark.parametrize(
    ("limits", "window", "change", "reason"),
    [
        ({}, None, {}, None),
        ({}, None, {"power": NONE, "hottest_c": NONE, "throttled": NONE, "minute": NONE}, None),
        ({}, None, {"power": "battery", "battery": 0.2}, None),
        ({}, None, {"power": "battery", "battery": 0.19}, "the battery holds 19%, less than 20%"),
        ({}, None, {"power": "mains", "battery": 0.01}, None),
        ({}, None, {"power": "battery", "battery": NONE}, None),
        ({"battery_min": 0.5}, None, {"power": "battery", "battery": 0.4}, "the battery holds 40%, less than 50%"),
        ({"battery_min": 0.5}, None, {"power": "battery"}, "the battery's charge cannot be read: no sensor"),
        ({"mains": True}, None, {}, None),
        (
            {"mains": True},
            None,
            {"power": "battery", "battery": 1.0},
            "waits for mains, and power comes from the battery",
        ),
        ({"mains": True}, None, {"power": NONE}, "waits for mains, and power is not told"),
        ({}, None, {"throttled": ("thermal",)}, "the clock is held down: thermal"),
        ({}, None, {"hottest_c": 99.0}, None),
        ({"hottest_max_c": 70.0}, None, {"hottest_c": 70.1}, "the device is at 70.1 degrees, more than 70"),
        ({"hottest_max_c": 70.0}, None, {"hottest_c": NONE}, "the temperature cannot be read: no sensor"),
        ({"idle_s": 100.0}, None, {}, None),
        ({"idle_s": 101.0}, None, {}, "the last request was 100 s ago, and an update waits for 101 s without one"),
        ({}, NIGHT, {}, None),
        ({}, NIGHT, {"minute": 240}, "outside of the maintenance window, 22:00 to 04:00; it is 04:00 here"),
        ({}, NIGHT, {"minute": NONE}, "cannot be told from a clock that is wrong: no sensor"),
    ],
)
def test_what_speaks_against_an_update(limits, window, change, reason):
    found = why_not_yet(Limits(**limits), window, FINE._replace(**change))
    assert (found == "") if reason is None else (reason in found)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_a_window_and_its_opposite_share_the_day(begin, end, minute):
    here = is_open(Window(begin_minute=begin, end_minute=end), minute)
    there = is_open(Window(begin_minute=end, end_minute=begin), minute)
    assert (here and there) if begin == end else here != there


def test_a_window_over_midnight():
    assert [is_open(NIGHT, minute) for minute in (1319, 1320, 1439, 0, 239, 240)] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_a_device_without_a_battery_is_on_mains(tmp_path):
    now = read_now(5.0, root=write_tree(tmp_path / "bare", {}))
    assert now.power == "mains"
    assert all(isinstance(one, Unavailable) for one in (now.battery, now.hottest_c, now.throttled))
    assert why_not_yet(Limits(mains=True), None, now) == ""


@pytest.mark.parametrize(
    ("status", "capacity", "power", "battery"),
    [
        ("Discharging", "15", "battery", 0.15),
        ("Full", "100", "mains", 1.0),
        ("Unknown", "50", Unavailable, 0.5),
        ("Discharging", "255", "battery", Unavailable),
        ("Discharging", "", "battery", Unavailable),
    ],
)
def test_a_battery_is_read_and_a_mouses_is_not(tmp_path, status, capacity, power, battery):
    root = write_tree(
        tmp_path / "phone",
        {
            "BAT0/type": "Battery", "BAT0/status": status, "BAT0/capacity": capacity,
            "mouse/type": "Battery", "mouse/scope": "Device", "mouse/capacity": "3",
            "mouse/status": "Charging" if power == "mains" else status,
        },
        "sys/class/power_supply",
    )  # fmt: skip
    now = read_now(0.0, root=root)
    for found, expected in ((now.power, power), (now.battery, battery)):
        assert isinstance(found, Unavailable) if expected is Unavailable else found == expected


def test_what_held_the_clock_down_before_does_not_count(tmp_path):
    root = write_tree(tmp_path / "pi", {"soc:firmware/get_throttled": "50001"}, "sys/devices/platform/soc")
    assert read_now(0.0, root=root).throttled == ("under-voltage",)
    root = write_tree(tmp_path / "cool", {"soc:firmware/get_throttled": "50000"}, "sys/devices/platform/soc")
    assert read_now(0.0, root=root).throttled == ()


def test_a_clock_before_what_has_happened_is_wrong_and_the_window_stays_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        noon = 1_750_000_000 // 86400 * 86400 + 10 * 3600  # 12:00 in Berlin in summer
        read = {"root": write_tree(tmp_path / "bare", {}), "clock_ns": lambda: noon * 10**9}
        assert read_now(0.0, **read).minute == 12 * 60
        wrong = read_now(0.0, clock_floor_ns=(noon + 1) * 10**9, **read)
        assert "before what has happened already" in wrong.minute.reason
        always = Window(begin_minute=0, end_minute=0)
        assert "a clock that is wrong" in why_not_yet(Limits(), always, wrong)
        assert why_not_yet(Limits(), None, wrong) == ""
        far = read_now(0.0, root=read["root"], clock_ns=lambda: 10**30)
        assert isinstance(far.minute, Unavailable)
    finally:
        monkeypatch.undo()
        time.tzset()
