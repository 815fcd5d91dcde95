from __future__ import annotations

import errno
import gc
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.samplers import pi_pmic
from ferryman.profiler.samplers.pi_pmic import PmicSampler, parse_rails_w
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import PMIC_TEXT, write_tree, write_vcgencmd


def test_the_recorded_text_adds_up_to_its_watts():
    watts = parse_rails_w(PMIC_TEXT)
    assert len(watts) == 12
    assert sum(watts.values()) == pytest.approx(7.141522, abs=5e-7)
    assert watts["VDD_CORE"] == pytest.approx(5.368738, abs=5e-7)
    assert watts["DDR_VDD2"] + watts["DDR_VDDQ"] == pytest.approx(0.263490, abs=5e-7)


def test_rails_without_a_current_are_left_out():
    assert not {"EXT5V", "BATT"} & set(parse_rails_w(PMIC_TEXT))


def test_the_dialect_without_channels_is_understood():
    assert parse_rails_w("VDD_CORE_V=0.8750V\nVDD_CORE_A=2.0A\n") == {"VDD_CORE": pytest.approx(1.75)}


@pytest.mark.parametrize(
    "text", ["", "VDD_CORE_A current(7)=6.2A\n", 'error=1 error_msg="Command not registered"', "VDD_CORE_A x=1V"]
)
def test_text_without_a_whole_rail_is_refused_and_quoted(text):
    with pytest.raises(SensorError, match="no rail with current and voltage"):
        parse_rails_w(text)


@given(
    st.text() | st.lists(st.sampled_from([*PMIC_TEXT.splitlines(), "_A=", "nanA", "X_A=1A", "X_V=-1V"])).map("\n".join)
)
def test_garbage_is_watts_or_a_sensor_error(text):
    try:
        watts = parse_rails_w(text)
    except SensorError:
        return
    assert watts
    assert all(isinstance(w, float) and abs(w) < 1e20 for w in watts.values())


def vcgencmd(root: Path) -> Path:
    return write_vcgencmd(root, f"cat <<'END'\n{PMIC_TEXT}END")


class Firmware:
    """Answers the property call as the kernel hands it over."""

    def __init__(self, text: str, *, code: int = 0x80000000, failure: int = 0) -> None:
        self.text, self.code, self.failure, self.error = text.encode(), code, failure, 0

    def __call__(self, descriptor: int, message: bytearray) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        size, code, tag, room, _, _ = struct.unpack_from("<6I", message)
        assert (size, code, tag, room) == (len(message), 0, 0x00030080, 1024)
        assert message[24:].rstrip(b"\0") == b"pmic_read_adc"
        struct.pack_into("<6I", message, 0, size, self.code, tag, room, 0x80000000 | len(self.text), self.failure)
        message[24 : 24 + len(self.text) + 1] = self.text + b"\0"


def with_device(root: Path) -> Path:
    return write_tree(root, {"dev/vcio": ""})


def watts(sampler: PmicSampler) -> float:
    ((_, value),) = sampler.read()
    return value


def test_the_mailbox_is_asked_first_for_it_starts_no_program(tmp_path):
    sampler = pi_pmic.open_source(vcgencmd(with_device(tmp_path)), Firmware(PMIC_TEXT))
    assert isinstance(sampler, PmicSampler), sampler
    assert sampler.source.name == "Raspberry Pi PMIC (mailbox)"
    assert watts(sampler) == pytest.approx(7.141522, abs=5e-7)
    gc.collect()  # what other tests left
    before = len(list(Path("/proc/self/fd").iterdir()))
    sampler.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def test_nul_separators_are_line_ends(tmp_path):
    sampler = pi_pmic.open_source(
        with_device(tmp_path), Firmware("VDD_CORE_A current(7)=2A\0VDD_CORE_V volt(15)=0.5V\0")
    )
    assert isinstance(sampler, PmicSampler), sampler
    assert watts(sampler) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("firmware", "reason"),
    [
        (Firmware('error=1 error_msg="Command not registered"'), "Command not registered"),
        (Firmware("whatever", code=0x80000001), "the firmware answers 0x80000001"),
        (Firmware("denied", failure=1), "error 1: 'denied'"),
        (Firmware("", code=0), "the firmware answers 0x0"),
    ],
)
def test_a_mailbox_that_refuses_is_unavailable_in_its_own_words(tmp_path, firmware, reason):
    found = pi_pmic.open_source(with_device(tmp_path), firmware)
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_where_the_mailbox_fails_the_program_may_do(tmp_path):
    sampler = pi_pmic.open_source(vcgencmd(with_device(tmp_path)), Firmware("", code=0))
    assert isinstance(sampler, PmicSampler), sampler
    assert sampler.source.name == "Raspberry Pi PMIC (vcgencmd pmic_read_adc)"


def test_a_device_file_that_is_no_mailbox_is_unavailable_by_the_real_call(tmp_path):
    found = pi_pmic.open_source(with_device(tmp_path))
    assert found == Unavailable(reason="Raspberry Pi PMIC: /dev/vcio: Inappropriate ioctl for device")


@pytest.mark.parametrize("error", [errno.EIO, errno.EPERM])
def test_a_mailbox_that_breaks_is_an_error(tmp_path, error):
    firmware = Firmware(PMIC_TEXT)
    sampler = pi_pmic.open_source(with_device(tmp_path), firmware)
    assert isinstance(sampler, PmicSampler)
    firmware.error = error
    with pytest.raises(SensorError, match=f"/dev/vcio: {os.strerror(error)}"):
        sampler.read()


def test_a_mailbox_we_may_not_open_is_unavailable(tmp_path, monkeypatch):
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pi_pmic.os, "open", refuse)
    found = pi_pmic.open_source(with_device(tmp_path), Firmware(PMIC_TEXT))
    assert found == Unavailable(reason="Raspberry Pi PMIC: /dev/vcio: Permission denied")


def test_the_program_is_run_and_read(tmp_path):
    sampler = pi_pmic.open_source(vcgencmd(tmp_path))
    assert isinstance(sampler, PmicSampler), sampler
    assert watts(sampler) == pytest.approx(7.141522, abs=5e-7)
    assert "VDD_CORE" in sampler.source.rails
    assert isinstance(sampler.source.uncertainty, Unavailable)


def test_a_board_without_either_is_unavailable(tmp_path):
    found = pi_pmic.open_source(tmp_path)
    assert found == Unavailable(reason="Raspberry Pi PMIC: no /dev/vcio or vcgencmd on this device")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'Can not open /dev/vcio' >&2; exit 255", "exit code 255: 'Can not open /dev/vcio'"),
        ("echo 'error=1 error_msg=\"Command not registered\"'", "Command not registered"),
        ("exec sleep 30", "did not answer within 0.1 s"),
    ],
)
def test_a_program_that_fails_is_unavailable_in_its_own_words(tmp_path, monkeypatch, script, reason):
    if "sleep" in script:
        monkeypatch.setattr(pi_pmic, "_TIMEOUT_S", 0.1)
    found = pi_pmic.open_source(write_vcgencmd(tmp_path, script))
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_a_rail_that_vanishes_is_an_error_not_less_power(tmp_path):
    sampler = pi_pmic.open_source(vcgencmd(tmp_path))
    write_vcgencmd(tmp_path, "echo VDD_CORE_V=0.8750V; echo VDD_CORE_A=2.0A")
    assert isinstance(sampler, PmicSampler)
    with pytest.raises(SensorError, match="expected rails"):
        sampler.read()
