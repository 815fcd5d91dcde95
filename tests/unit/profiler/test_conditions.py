from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.profiler.conditions import (
    clocks_mhz,
    cpu_model,
    device_model,
    governor,
    power_source,
    read_conditions,
    soc,
    throttled,
)
from ferryman.profiler.energy import choose_source
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.measurement import Conditions, Reading
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from tests.unit.profiler.trees import BATTERY, INA226, PI5, RAPL, write_tree

EVERYTHING = PI5 | {
    **{f"sys/class/powercap/{name}": text for name, text in RAPL.items()},
    **{f"sys/class/hwmon/{name}": text for name, text in INA226.items()},
    **{f"sys/class/power_supply/{name}": text for name, text in BATTERY.items()},
}


def test_a_raspberry_pi_5_is_described(tmp_path):
    found = read_conditions({"tflite-runtime": "2.14.0"}, write_tree(tmp_path, PI5))
    assert found.device_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.cpu_model == "4x Cortex-A76"
    assert found.isa == ("asimd", "asimdhp", "asimddp")
    assert found.governor == "ondemand"
    assert found.clocks_mhz == (2400.0,) * 4
    assert found.temperatures_c == (Reading(value=48.3, source="thermal_zone0 cpu-thermal"),)
    assert found.load_1m == 0.52
    assert found.memory_total_bytes == 8256624 * 1024
    assert found.versions["tflite-runtime"] == "2.14.0"
    assert {"ferryman", "python", "numpy"} <= set(found.versions)


def test_the_chip_is_what_the_device_tree_is_compatible_with_last(tmp_path):
    tree = {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"}
    assert soc(write_tree(tmp_path, tree)) == "brcm,bcm2712"


def test_where_proc_hides_the_device_tree_it_is_read_in_sys(tmp_path):
    base = "sys/firmware/devicetree/base"
    root = write_tree(tmp_path, {f"{base}/model": "Board\0", f"{base}/compatible": "maker,board\0maker,chip\0"})
    assert (device_model(root), soc(root)) == ("Board", "maker,chip")


def test_the_soc_bus_comes_first(tmp_path):
    bus = {"sys/devices/soc0/family": "Snapdragon\n", "sys/devices/soc0/soc_id": "SM8550\n"}
    assert soc(write_tree(tmp_path, bus)) == "Snapdragon SM8550"


@pytest.mark.parametrize(
    "file",
    [
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
    ],
)
@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("0", ()),
        ("50005\n", ("under-voltage", "throttled")),
        ("0x50000", ("under-voltage before", "throttled before")),
        ("e0002", ("frequency capped", "throttled before", "soft temperature limit before")),
    ],
)
def test_the_firmwares_flags_say_what_holds_and_what_held(tmp_path, file, text, reasons):
    assert throttled(write_tree(tmp_path, {file: text})) == reasons


def test_cooling_devices_of_processors_throttle_and_fans_do_not(tmp_path):
    tree = {
        "cooling_device0/type": "pwm-fan",
        "cooling_device0/cur_state": "4",
        "cooling_device1/type": "cpufreq-cpu0",
        "cooling_device1/cur_state": "0",
    }
    at = {f"sys/class/thermal/{name}": text for name, text in tree.items()}
    assert throttled(write_tree(tmp_path, at)) == ()
    at["sys/class/thermal/cooling_device1/cur_state"] = "2"
    assert throttled(write_tree(tmp_path, at)) == ("thermal",)


@pytest.mark.parametrize("text", ["", "garbage", "0x", "-"])
def test_flags_that_are_none_are_no_answer(tmp_path, text):
    root = write_tree(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": text})
    with pytest.raises(SensorError):
        throttled(root)


@pytest.mark.parametrize(
    ("supplies", "source"),
    [
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging", "AC/type": "Mains", "AC/online": "0"}, "battery"),
        ({"BAT0/type": "Battery", "BAT0/status": "Charging"}, "mains"),
        ({"usb/type": "USB", "usb/online": "1"}, "mains"),
    ],
)
def test_the_power_source_is_the_battery_where_one_discharges(tmp_path, supplies, source):
    tree = {f"sys/class/power_supply/{name}": f"{text}\n" for name, text in supplies.items()}
    assert power_source(write_tree(tmp_path, tree)) == source


def test_a_board_without_a_power_supply_class_has_no_power_source(tmp_path):
    with pytest.raises(SensorError, match="no power supply"):
        power_source(tmp_path)


def test_an_x86_machine_names_its_processor_and_clocks():
    cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2445.428\n" * 2
    assert cpu_model(cpuinfo) == "AMD EPYC"
    assert clocks_mhz(Path("/nowhere"), cpuinfo) == (2445.428, 2445.428)


def test_cores_of_several_kinds_are_counted_apart():
    core = "CPU implementer\t: {}\nCPU part\t: {}\n"
    cpuinfo = core.format("0x41", "0xd05") * 4 + core.format("0x41", "0xd0b") * 2 + core.format("0x61", "0x22")
    assert cpu_model(cpuinfo) == "4x Cortex-A55 + 2x Cortex-A76 + 1x implementer 0x61 part 0x22"


def test_governors_that_differ_are_all_named(tmp_path):
    name = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    root = write_tree(tmp_path, {name.format(0): "powersave\n", name.format(1): "performance\n"})
    assert governor(root) == "powersave+performance"


def test_a_device_that_shows_nothing_gives_reasons_and_no_zeros(tmp_path):
    found = read_conditions({}, tmp_path)
    for name in ("device_model", "cpu_model", "governor", "clocks_mhz", "temperatures_c", "load_1m"):
        value = getattr(found, name)
        assert isinstance(value, Unavailable), name
        assert value.reason, name
    assert isinstance(found.memory_total_bytes, Unavailable)


def test_a_sleeping_sensor_is_left_out_and_the_others_stay(tmp_path):
    zone = "sys/class/thermal/thermal_zone1"
    root = write_tree(tmp_path, PI5 | {f"{zone}/type": "modem\n", f"{zone}/temp": "-274000\n"})
    assert read_conditions({}, root).temperatures_c == (Reading(value=48.3, source="thermal_zone0 cpu-thermal"),)


def test_a_sensor_with_an_io_error_says_so(tmp_path):
    root = write_tree(tmp_path, PI5)
    sensor = root / "sys/class/thermal/thermal_zone0/temp"
    sensor.unlink()
    sensor.symlink_to("/proc/self/mem")  # reading its first page gives EIO
    found = read_conditions({}, root).temperatures_c
    assert isinstance(found, Unavailable)
    assert "Input/output error" in found.reason


def test_temperatures_come_from_hwmon_where_there_are_no_zones(tmp_path):
    root = write_tree(tmp_path, {"hwmon3/name": "k10temp\n", "hwmon3/temp1_input": "51000\n"}, "sys/class/hwmon")
    assert read_conditions({}, root).temperatures_c == (Reading(value=51.0, source="hwmon3 k10temp"),)


@pytest.mark.parametrize("text", ["", "processor : 0\n", "CPU part : 0xd0b\n", "model name :\n"])
def test_a_processor_without_a_name_is_an_error(text):
    with pytest.raises(SensorError, match="names no processor"):
        cpu_model(text)


HOSTILE = st.sampled_from([b"", b"\0", b"-1", b"nan\n", b"1e999 1", b"99999999999999999999", b"\xff\xfe", b":\n:"])


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(EVERYTHING)), HOSTILE | st.binary(max_size=60) | st.none(), max_size=20))
def test_no_tree_however_hostile_breaks_a_reader(changes):
    root = Path(tempfile.mkdtemp())
    try:
        write_tree(root, EVERYTHING)
        for name, content in changes.items():
            (root / name).unlink()
            if content is not None:
                (root / name).write_bytes(content)
        found = read_conditions({}, root)
        assert decode(encode(found), Conditions) == found
        choose_source(root)
    finally:
        shutil.rmtree(root)
