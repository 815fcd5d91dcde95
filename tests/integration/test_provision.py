"""What systemd, udev and cloud-init say of the files beside provision.sh."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.support import device_root
from tests.support.interpreters import ROOT

SCRIPTS = ROOT / "firmware_scripts"
UNITS = sorted([*SCRIPTS.glob("*.service"), *SCRIPTS.glob("*.path"), *SCRIPTS.glob("firstboot/*.service")])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_to_say_of_a_unit(tmp_path, unit):
    for one in UNITS:
        text = one.read_text()
        for program in re.findall(r"^Exec\w+=-?(/(?:opt|usr/local)/\S+)", text, re.MULTILINE):
            text = text.replace(program, shutil.which("true"))
        (tmp_path / one.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / unit.name)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "ferryman" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["ferryman-agent.service", "ferryman-collector.service"])
def test_the_exposure_is_what_the_unit_says(name):
    unit = SCRIPTS / name
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(unit)], capture_output=True, text=True, check=False
    )
    if "--offline" in done.stderr:
        pytest.skip(f"systemd before 250 tells only of units that run: {done.stderr}")
    found = float(re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[0])
    told = float(re.findall(r"security` of systemd 252 says ([\d.]+)", unit.read_text())[0])
    assert found <= told + 0.15  # later versions weigh a little otherwise
    assert str(told) in (ROOT / "docs" / "provisioning.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(bool(device_root.why_not("amd64")), reason=device_root.why_not("amd64"))
def test_udev_takes_the_rules_and_gives_devices_to_the_group(tmp_path):
    """Of a copy of the rules, for devices that every machine has, udev tells what it would do."""
    rules = (SCRIPTS / "59-ferryman.rules").read_text()
    for ours, theirs in {
        'SUBSYSTEM=="i2c-dev", KERNEL=="i2c-[0-9]*"': 'SUBSYSTEM=="mem", KERNEL=="null"',
        'KERNEL=="vcio"': 'KERNEL=="zero"',
        'SUBSYSTEM=="powercap"': 'SUBSYSTEM=="mem"',
        '"energy_uj"': '"uevent"',
    }.items():
        assert ours in rules
        rules = rules.replace(ours, theirs)
    with device_root.unpacked_root("amd64", tmp_path) as root:
        root.run(["useradd", "--system", "--user-group", "ferryman"])
        group = root.run(["id", "-g", "ferryman"]).stdout.strip()
        root.write("/etc/udev/rules.d/59-ferryman.rules", rules)
        for name in ("null", "zero"):
            done = root.run(["udevadm", "test", "--action=change", f"/sys/devices/virtual/mem/{name}"], check=False)
            said = done.stdout + done.stderr
            assert re.search(rf"59-ferryman\.rules:\d+ GROUP {group}\n", said), said
            assert re.search(r"59-ferryman\.rules:\d+ MODE 0660\n", said), said
            assert f"/bin/chgrp ferryman /sys/devices/virtual/mem/{name}/energy_uj" in said, said  # told, not run
            assert not re.search(r"59-ferryman\.rules:\d+ (Invalid|Unknown|Failed)", said), said


@pytest.mark.slow
@pytest.mark.skipif(bool(device_root.why_not("amd64")), reason=device_root.why_not("amd64"))
def test_cloud_init_takes_the_template(tmp_path):
    """Its own verdict, in a root: on this machine cloud-init would be at work from the next start on."""
    with device_root.unpacked_root("amd64", tmp_path) as root:
        # This machine's apt, with its signatures, fetches what the root lacks; dpkg there unpacks it.
        archives = tmp_path / "archives"
        (archives / "partial").mkdir(parents=True)
        status = shutil.copy(root.path / "var/lib/dpkg/status", tmp_path)
        options = [
            "-o",
            f"Dir::State::status={status}",
            "-o",
            f"Dir::Cache::archives={archives}",
            "-o",
            "Debug::NoLocking=1",
        ]
        fetch = [
            "apt-get",
            "-qq",
            *options,
            "install",
            "-y",
            "--no-install-recommends",
            "--download-only",
            "cloud-init",
        ]
        done = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cloud-init cannot be fetched: {done.stderr[-500:]}")
        shutil.copytree(archives, root.path / "archives")
        root.run(["sh", "-c", "dpkg --unpack /archives/*.deb"])
        template = (SCRIPTS / "firstboot" / "user-data.yaml").read_text()
        root.write("/user-data", template)
        assert "Valid" in root.run(["cloud-init", "schema", "--config-file", "/user-data"]).stdout
        root.write("/user-data", template.replace("ssh_pwauth: false", "ssh_pwauth: [3]"))
        assert root.run(["cloud-init", "schema", "--config-file", "/user-data"], check=False).returncode
