from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.samplers import pi_pmic
from ferryman.profiler.samplers.pi_pmic import PmicSampler, parse_rails_w
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable
from tests.unit.profiler.trees import PMIC_TEXT, write_vcgencmd


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


def test_the_program_is_run_and_read(tmp_path):
    sampler = pi_pmic.open_source(write_vcgencmd(tmp_path, f"cat <<'END'\n{PMIC_TEXT}END"))
    assert isinstance(sampler, PmicSampler), sampler
    assert sampler.read() == pytest.approx(7.141522, abs=5e-7)
    assert "VDD_CORE" in sampler.rails


def test_no_program_is_unavailable(tmp_path):
    assert pi_pmic.open_source(tmp_path) == Unavailable(reason="Raspberry Pi PMIC: no vcgencmd on this device")


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
    sampler = pi_pmic.open_source(write_vcgencmd(tmp_path, f"cat <<'END'\n{PMIC_TEXT}END"))
    write_vcgencmd(tmp_path, "echo VDD_CORE_V=0.8750V; echo VDD_CORE_A=2.0A")
    assert isinstance(sampler, PmicSampler)
    with pytest.raises(SensorError, match="expected rails"):
        sampler.read()
