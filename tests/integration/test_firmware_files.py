"""The files for brokers and devices are taken by the programs they are for."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.interpreters import ROOT
from tests.support.mosquitto import Mosquitto

SCRIPTS = ROOT / "firmware_scripts"


def test_mosquitto_takes_the_broker_settings(tmp_path):
    settings = (SCRIPTS / "mosquitto-ferryman.conf").read_text()
    with Mosquitto(tmp_path, settings):
        pass
    assert "Error" not in (tmp_path / "mosquitto.log").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_agents_unit(tmp_path):
    unit = tmp_path / "ferryman-agent.service"
    text = (SCRIPTS / unit.name).read_text()
    unit.write_text(text.replace("/opt/ferryman/bin/ferryman", shutil.which("true") or "/bin/true"))

    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)

    assert verified.returncode == 0, verified.stderr
    assert unit.name not in verified.stderr
