from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.profiler.meter import check_meter, open_meter
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Unavailable

DOCS = Path(__file__).parents[3] / "docs/profiler/energy.md"


@pytest.mark.parametrize(
    "spec",
    [
        "mqtt://broker/tele/plug/SENSOR",
        "mqtt://broker:1884/tele/my%20plug/SENSOR?kind=tasmota&poll=1&settle=3&user=me",
        "mqtt://broker/shellyplusplugs-1/status/switch:0?kind=shelly&poll=0.5",
        "serial:/dev/ttyUSB0?baud=9600&unit=mWh&column=2",
        "adb:",
        "adb:192.168.1.7:5555",
        "i2c:1/0x40?chip=ina3221&shunt=0.1&channel=3",
        "python:my_lab.meters?anything at all",
    ],
)
def test_a_name_is_understood_without_the_meter(spec):
    check_meter(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "begins with one of: mqtt:, serial:, adb:, i2c:, python:"),
        ("sextant:1", "begins with one of"),
        ("mqtt://broker", "expected mqtt://HOST"),
        ("mqtt:broker/topic", "expected mqtt://HOST"),
        ("mqtt://me:secret@broker/topic", "a user's name as the option `user`"),
        ("mqtt://broker:port/topic", "expected mqtt://HOST"),
        ("mqtt://broker:99999/topic", "no such port"),
        ("mqtt://broker/topic?kind=sonoff", "kind is one of tasmota, shelly, watts"),
        ("mqtt://broker/topic?poll=1", "to be polled"),
        ("mqtt://broker/tele/+/SENSOR?poll=1", "+ or # mixes what several plugs take"),
        ("mqtt://broker/home/+/power?kind=watts", "+ or # mixes what several plugs take"),
        ("mqtt://broker/home/%2B/power?kind=watts", "+ or # mixes what several plugs take"),
        ("mqtt://broker/#?kind=shelly", "+ or # mixes what several plugs take"),
        ("mqtt://broker/home/%23", "+ or # mixes what several plugs take"),
        ("mqtt://broker/home%0A/power?kind=watts", "no such port or topic"),
        ("mqtt://broker/topic?kind=watts&poll=1", "to be polled"),
        ("mqtt://broker/topic?settle=long", "settle is a number from 0.1 to 60"),
        ("mqtt://broker/topic?pol=1", "no option pol; there are: kind, poll, settle, user"),
        ("mqtt://broker/topic?kind", "expected name=value"),
        ("serial:ttyUSB0", "expected serial:/dev/NAME"),
        ("serial:/etc/passwd", "expected serial:/dev/NAME"),
        ("serial:/dev/ttyUSB0?baud=1", "baud is one of"),
        ("serial:/dev/ttyUSB0?unit=kW", "unit is one of W, mW"),
        ("serial:/dev/ttyUSB0?column=0", "column is a number from 1"),
        ("adb:-s", "expected adb:SERIAL"),
        ("adb:a b", "expected adb:SERIAL"),
        ("adb:x?y=1", "no option y"),
        ("i2c:1", "expected i2c:BUS/ADDRESS"),
        ("i2c:1/0x20?chip=ina219&shunt=0.1", "the address from 0x40 to 0x4f"),
        ("i2c:1/0x40?shunt=0.1", "chip is one of ina219, ina226, ina3221, found ''"),
        ("i2c:1/0x40?chip=ina219", "shunt is a number from"),
        ("i2c:1/0x40?chip=ina219&shunt=0", "shunt is a number from"),
        ("i2c:1/0x40?chip=ina219&shunt=nan", "shunt is a number from"),
        ("i2c:1/0x40?chip=ina219&shunt=0.1&channel=2", "an ina219 has 1 channel"),
        ("python:os.path;x", "expected python:MODULE"),
        ("python:", "expected python:MODULE"),
        ("mqtt://broker/" + "x" * 400, "begins with one of"),
    ],
)
def test_what_cannot_be_understood_is_the_callers_error(spec, words):
    with pytest.raises(CallerError) as caught:
        check_meter(spec)
    assert words in str(caught.value)
    with pytest.raises(CallerError):
        open_meter(spec)


@given(
    st.text(max_size=60)
    | st.builds("{}:{}".format, st.sampled_from(["mqtt", "serial", "adb", "i2c"]), st.text(max_size=60))
)
def test_any_text_is_a_name_or_the_callers_error(spec):
    try:
        check_meter(spec)
    except CallerError:
        return


def test_the_documented_meter_works(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_bench.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "watts").write_text("4.25\n")
    sampler = open_meter(f"python:my_bench?{tmp_path / 'watts'}")
    assert not isinstance(sampler, Unavailable)
    ((_, watts),) = sampler.read()
    assert watts == 4.25
    assert open_meter("python:my_bench?/nowhere") == Unavailable(reason="/nowhere: No such file or directory")


def test_a_meter_of_ones_own_is_a_module_with_one_function(monkeypatch):
    module = types.ModuleType("my_lab")
    module.open_meter = lambda text: Unavailable(reason=f"asked for {text}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_lab", module)
    assert open_meter("python:my_lab?bench 3") == Unavailable(reason="asked for bench 3")


@pytest.mark.parametrize(
    ("spec", "reason"), [("python:no_such_lab", "No module named 'no_such_lab'"), ("python:json", "open_meter")]
)
def test_a_module_without_one_is_unavailable(spec, reason):
    found = open_meter(spec)
    assert isinstance(found, Unavailable)
    assert reason in found.reason
