"""The files for brokers and devices are taken by the programs they are for."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import click
import pytest

from ferryman.cli import main
from tests.support.interpreters import ROOT
from tests.support.mosquitto import Mosquitto

SCRIPTS = ROOT / "firmware_scripts"
UNITS = ("ferryman-agent.service", "ferryman-collector.service")


def test_mosquitto_takes_the_broker_settings(tmp_path):
    settings = (SCRIPTS / "mosquitto-ferryman.conf").read_text()
    with Mosquitto(tmp_path, settings):
        pass
    assert "Error" not in (tmp_path / "mosquitto.log").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit(tmp_path, name):
    unit = tmp_path / name
    text = (SCRIPTS / unit.name).read_text()
    unit.write_text(text.replace("/opt/ferryman/bin/ferryman", shutil.which("true") or "/bin/true"))

    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)

    assert verified.returncode == 0, verified.stderr
    assert unit.name not in verified.stderr


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_verb_with_options_that_it_has_and_takes_more(name):
    text = (SCRIPTS / name).read_text()
    _, verb, *words = shlex.split(re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)[0])
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    known = {option for one in command.params for option in one.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert words[-1] == "$FERRYMAN_OPTIONS"  # without braces: systemd splits it into words
    assert set(re.findall(r"\$\{?(\w+)", " ".join(words))) <= set(
        re.findall(r"^Environment=(\w+)=", text, re.MULTILINE)
    )
