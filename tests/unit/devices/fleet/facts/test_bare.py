from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet.facts.bare import bare_command, parse_bare
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.facts import Core, DeviceFacts
from ferryman.runtime.contracts.record import Unavailable
from tests.support.boards import ANSWERS, BOARDS, PI_4, X86, said

STORE = Path("/var/lib/ferryman")
MARK = "@@0011223344556677"
SHELLS = [[name] for name in ("sh", "bash", "dash") if shutil.which(name)] + (
    [["busybox", "sh"]] if shutil.which("busybox") else []
)


def parsed(files, **answers):
    return parse_bare(said(files, MARK, ANSWERS | answers), MARK, STORE, "no ferryman there")


def test_a_bare_pi_tells_what_ferryman_would(tmp_path):
    found = parsed(PI_4)
    assert found.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert found.soc == "brcm,bcm2711"
    assert found.cores == (Core(kind="Cortex-A72", count=4, max_mhz=1800.0),)
    assert found.isa == ("asimd",)
    assert found.memory_bytes == 3_885_000 * 1024
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert found.libc == "glibc 2.36"
    assert found.python == "3.11.2"
    assert found.free_bytes == 24_000_000 * 1024
    assert found.root_writable is False
    assert found.clock_synchronized is True
    assert found.userland_bits == 64
    assert found.interpreters == ()
    assert found.ferryman == Unavailable(reason="no ferryman there")
    assert "thermal_zone0 cpu-thermal" in {sensor.name for sensor in found.sensors if sensor.available}


@pytest.mark.parametrize("board", BOARDS)
def test_every_board_can_be_told_through_a_shell(board):
    assert parsed(BOARDS[board]).cores


def test_no_reason_speaks_of_the_folder_things_were_laid_out_in():
    found = parsed({})
    assert isinstance(found.memory_bytes, Unavailable)
    assert found.memory_bytes.reason.startswith("/proc/meminfo: ")


def test_what_is_closed_to_the_user_is_told():
    closed = "closed:/sys/class/powercap/intel-rapl:0/energy_uj"
    found = parsed(X86 | {"sys/class/powercap/intel-rapl:0/name": "package-0"}, **{closed: ""})
    (rapl,) = (one for one in found.sensors if one.name == "rapl")
    assert not rapl.available
    assert rapl.detail.endswith("its counters are there, and closed to pi")
    (pmic,) = (one for one in parsed(PI_4, vcio="/dev/vcio").sensors if one.name == "pi_pmic")
    assert "only ferryman on the device can ask it" in pmic.detail


def test_a_phone_tells_by_its_properties():
    found = parsed(
        {}, bits="", libc="", python="", sdk="34", release="14", model="Pixel 8", maker="Google", soc="Tensor G3",
        abi="arm64-v8a",
    )  # fmt: skip
    assert (found.os, found.model, found.soc) == ("Android 14 (API 34)", "Google Pixel 8", "Tensor G3")
    assert found.libc == "bionic"
    assert found.userland_bits == 64
    assert isinstance(found.python, Unavailable)


@pytest.mark.parametrize(
    ("systemd", "chrony", "synchronized"),
    [
        ("yes", "", True),
        ("no", "", False),
        ("no", "Normal", True),
        ("", "Normal", True),
        ("", "Not synchronised", False),
    ],
)
def test_the_clock_is_synchronized_where_systemd_or_chrony_say_so(systemd, chrony, synchronized):
    assert parsed(PI_4, synchronized=systemd, chrony=chrony).clock_synchronized is synchronized


def test_where_nobody_tells_of_the_clock_it_is_not_known():
    assert isinstance(parsed(PI_4, synchronized="").clock_synchronized, Unavailable)


@pytest.mark.parametrize(
    "garbage", [b"", b"Welcome!\n", b"\n" + MARK.encode() + b" machine\naarch64\n", b"\n@@other end\n"]
)
def test_what_is_no_whole_output_is_the_devices_fault(garbage):
    with pytest.raises(DeviceError, match="did not answer as a shell does"):
        parse_bare(garbage, MARK, STORE, "")


@pytest.mark.parametrize(
    "name",
    [
        "/proc/../../../../tmp/escaped",
        "/etc/../../escaped",
        "/tmp/escaped",
        "../escaped",
        "/proc//x",
        "/sys/" + "a" * 500,
    ],
)
def test_no_path_leaves_the_folder(tmp_path, name, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    answers = dict(ANSWERS)
    text = said({}, MARK, answers).replace(f"\n{MARK} end".encode(), f"\n{MARK} {name}\nhello\n{MARK} end".encode())
    parse_bare(text, MARK, STORE, "")
    assert not Path("/tmp/escaped").exists()
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [*PI_4, "proc", "proc/cpuinfo/x", "sys/class/hwmon/hwmon0/name", "sys/class/power_supply/b/type"]
        ),
        st.text(max_size=60),
    ),
    st.dictionaries(st.sampled_from([*ANSWERS, "sdk", "abi", "release"]), st.text(max_size=40)),
)
def test_whatever_a_device_prints_is_facts_or_its_fault(files, answers):
    try:
        found = parse_bare(said(files, MARK, {"machine": "x"} | answers).replace(b"\xed", b""), MARK, STORE, "")
    except DeviceError:
        return
    except UnicodeEncodeError:
        return
    assert isinstance(found, DeviceFacts)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_are_no_facts(data):
    with pytest.raises(DeviceError):
        parse_bare(data, MARK, STORE, "")


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_script_runs_in_any_shell_and_writes_nothing(shell, tmp_path):
    (_, *argv), mark = bare_command(tmp_path / "not there")
    done = subprocess.run([*shell, *argv], capture_output=True, cwd=tmp_path, check=False, timeout=60)
    found = parse_bare(done.stdout, mark, tmp_path / "not there", "none")
    assert found.machine == os.uname().machine
    assert found.kernel == os.uname().release
    assert isinstance(found.cores, tuple)
    assert isinstance(found.free_bytes, int)
    assert found.root_writable is True
    assert found.userland_bits == 64
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == b""


def test_each_call_has_a_mark_of_its_own():
    assert bare_command(STORE)[1] != bare_command(STORE)[1]
