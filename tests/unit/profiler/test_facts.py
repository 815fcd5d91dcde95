from __future__ import annotations

import os

import pytest

from ferryman.profiler.facts import Told, cores_of, facts_of, os_name, read_facts
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.facts import Core, DeviceFacts, Interpreter
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from tests.support.boards import BOARDS, X86
from tests.unit.profiler.trees import RAPL, write_tree

TOLD = Told(
    machine="aarch64",
    kernel="6.6",
    userland_bits=64,
    libc="glibc 2.36",
    python="3.11.2",
    ferryman="0.2.0",
    kernels="neon",
    operators=4,
    interpreters=(Interpreter(name="executorch", version="1.5.1"),),
    root="/var/lib/ferryman",
    free_bytes=10**9,
    root_writable=True,
    clock_synchronized=True,
)


@pytest.mark.parametrize(
    ("board", "model", "soc", "cores", "isa"),
    [
        ("pi 3", "Raspberry Pi 3 Model B Plus Rev 1.3", "brcm,bcm2837", [(4, "Cortex-A53", 1400)], ("asimd",)),
        ("zero 2 w", "Raspberry Pi Zero 2 W Rev 1.0", "brcm,bcm2837", [(4, "Cortex-A53", 1000)], ("asimd",)),
        ("pi 4", "Raspberry Pi 4 Model B Rev 1.4", "brcm,bcm2711", [(4, "Cortex-A72", 1800)], ("asimd",)),
        (
            "pi 5",
            "Raspberry Pi 5 Model B Rev 1.0",
            "brcm,bcm2712",
            [(4, "Cortex-A76", 2400)],
            ("asimd", "asimdhp", "asimddp"),
        ),
        (
            "jetson-like",
            "NVIDIA Jetson TX2 Developer Kit",
            "nvidia,tegra186",
            [(4, "Cortex-A57", 2035.2), (2, "implementer 0x4e part 0x3", 2035.2)],
            ("asimd",),
        ),
        (
            "big.LITTLE",
            "Radxa ROCK 5B",
            "rockchip,rk3588",
            [(4, "Cortex-A55", 1800), (4, "Cortex-A76", 2400)],
            ("asimd", "asimdhp", "asimddp"),
        ),
        (
            "x86",
            "Mini PC",
            None,
            [(4, "Intel(R) N100", 3400)],
            ("popcnt", "ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
        ),
    ],
)
def test_a_board_is_described(tmp_path, board, model, soc, cores, isa):
    found = facts_of(write_tree(tmp_path, BOARDS[board]), TOLD)
    assert found.model == model
    assert found.soc == soc if soc else isinstance(found.soc, Unavailable)
    assert found.cores == tuple(Core(count=count, kind=kind, max_mhz=mhz) for count, kind, mhz in cores)
    assert found.isa == isa
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert isinstance(found.memory_bytes, int)
    assert decode(encode(found), DeviceFacts) == found


def test_of_a_tree_that_holds_nothing_everything_is_unavailable_with_a_reason(tmp_path):
    found = facts_of(tmp_path, TOLD)
    for value in (found.model, found.soc, found.cores, found.memory_bytes, found.memory_available_bytes, found.os):
        assert isinstance(value, Unavailable)
        assert value.reason
    assert found.isa == ()
    assert found.sensors
    assert not any(sensor.available for sensor in found.sensors)
    assert all(sensor.detail for sensor in found.sensors)


def test_cores_without_cpufreq_are_counted_and_have_no_clock(tmp_path):
    (core,) = cores_of(tmp_path, X86["proc/cpuinfo"])
    assert core.count == 4
    assert isinstance(core.max_mhz, Unavailable)


def test_sensors_are_told_by_the_names_of_the_profiler(tmp_path):
    tree = X86 | {f"sys/class/powercap/{name}": text for name, text in RAPL.items()}
    energy = {one.name: one for one in facts_of(write_tree(tmp_path, tree), TOLD).sensors if one.measures == "energy"}
    assert list(energy) == ["hwmon_ina", "pi_pmic", "odpm", "rapl", "power_supply"]
    assert [name for name, one in energy.items() if one.available] == ["rapl"]
    assert "package-0" in energy["rapl"].detail


@pytest.mark.parametrize("text", ["", "ID=x\n", "PRETTY_NAME=\n", "garbage"])
def test_a_system_without_a_name_is_none(tmp_path, text):
    with pytest.raises(SensorError):
        os_name(write_tree(tmp_path, {"etc/os-release": text}))


def test_the_system_is_named_by_the_second_file_too(tmp_path):
    assert os_name(write_tree(tmp_path, {"usr/lib/os-release": "NAME='Thing'\n"})) == "Thing"


def test_this_machine_tells_of_itself(tmp_path):
    found = read_facts(tmp_path / "not" / "there" / "yet", synchronized=False)
    assert found.machine == os.uname().machine
    assert found.userland_bits == 64
    assert found.root_writable is True
    assert isinstance(found.free_bytes, int)
    assert found.free_bytes > 0
    assert found.clock_synchronized is False
    assert "executorch" in {one.name for one in found.interpreters}
    assert isinstance(found.libc, str)


def test_of_a_root_that_is_not_there_the_folder_that_is_counts(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(path) or False)
    assert read_facts(tmp_path / "a" / "b", synchronized=True).root_writable is False
    assert tmp_path in asked
