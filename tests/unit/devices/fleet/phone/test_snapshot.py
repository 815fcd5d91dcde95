"""What a phone tells, taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.phone.phone import Phone
from ferryman.devices.fleet.phone.snapshot import parse, parse_cores, parse_temperatures, take
from ferryman.devices.fleet.phone.store import parse_free
from ferryman.runtime.contracts.measurement import Conditions
from ferryman.runtime.contracts.record import Unavailable
from tests.support.phone import BATTERY, WHY_NOT, AndroidSystem, DirectLink

needs_phone = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def taken(system):
    return take(Phone("phone", DirectLink(system), system.home))


@needs_phone
def test_a_phone_that_shows_nothing_has_a_reason_for_each(tmp_path):
    system = AndroidSystem(tmp_path)
    for name in ("cpuinfo", "meminfo", "loadavg", "self/status"):
        (tmp_path / "proc" / name).unlink()
    system.says("dumpsys", "exit 1")
    system.properties.clear()
    found = taken(system).conditions({})
    for field in ("device_model", "soc", "cpu_model", "temperatures_c", "throttled", "power_source", "load_1m"):
        assert isinstance(getattr(found, field), Unavailable), field


@needs_phone
def test_a_charger_is_mains(tmp_path):
    system = AndroidSystem(tmp_path)
    system.battery(ac="true", status=2)
    found = taken(system)
    assert found.power_source == "mains"
    assert (found.battery_percent, found.battery_c) == (83.0, 31.5)


def test_voltages_are_no_temperatures_and_kept_ones_do_where_there_are_no_current_ones():
    text = (
        "Temperature{mValue=40.0, mType=0, mName=CPU0, mStatus=0}\nTemperature{mValue=4.1, mType=6, mName=v, mStatus=0}"
    )
    assert [(one.value, one.source) for one in parse_temperatures(text)] == [(40.0, "thermalservice CPU0")]


def test_cores():
    assert parse_cores("0-2,5") == (0, 1, 2, 5)
    assert parse_cores("all") == ()


@pytest.mark.parametrize(
    ("said", "free"),
    [
        ("/dev/block/dm-5 100 90 10 91% /data\n", 10240),
        ("/dev/fuse 100 90 10 91% /storage/a b\n4\tslots/a\n", 14336),
        ("df: /x: No such file or directory\n", None),
        ("", None),
    ],
)
def test_free_space(said, free):
    assert parse_free(said) == free


_WORDS = (
    "--ferryman--\n",
    "/proc/cpuinfo:processor\t: 0\n",
    "Thermal Status: 9\n",
    "level: x\n",
    "0-4\n",
    "/sys/a/../b:1\n",
)


@given(st.text() | st.lists(st.sampled_from(_WORDS)).map("".join))
def test_garbage_is_conditions_all_the_same(text):
    snapshot = parse(text)
    assert isinstance(snapshot.conditions({}), Conditions)
    assert all(".." not in path for path in snapshot.files)


@given(st.text() | st.lists(st.sampled_from(["1", "9%", "/data", "\n"])).map(" ".join))
def test_garbage_of_df_is_a_number_or_nothing(text):
    assert parse_free(text) is None or parse_free(text) >= 0


@pytest.mark.parametrize("said", ["9" * 5000, "9" * 26, "-1"])
def test_memory_that_no_device_has_is_none(said):
    memory = parse(f"/proc/meminfo:MemTotal: {said} kB\n").conditions({}).memory_total_bytes
    assert isinstance(memory, Unavailable)


def test_a_battery_that_cannot_be_is_none():
    text = BATTERY.format(ac="true", status=2).replace("level: 83", "level: 99999").replace("315", "-99999")
    snapshot = parse("--ferryman--\n" * 9 + text)
    assert snapshot.power_source == "mains"
    assert isinstance(snapshot.battery_percent, Unavailable)
    assert isinstance(snapshot.battery_c, Unavailable)
