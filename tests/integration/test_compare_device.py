"""Two packages in turn on a device: a real sshd, broker and agent."""

from __future__ import annotations

import pytest

from ferryman.devices.fleet.compare import compare
from ferryman.devices.fleet.inventory import SshDevice
from ferryman.devices.fleet.push import push
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.slots import SlotStore
from tests.support.agent import AgentProcess, StatusWatch
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.sshd import SSHD, running_sshd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None, reason="sshd is not installed: apt-get install openssh-server"),
    pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready"),
]


def test_packages_take_turns_and_the_baseline_serves_in_the_end(tmp_path):
    (tmp_path / "sshd").mkdir()
    one, two = (write_tiny_package(tmp_path / f"{added}.ferry", added=float(added)) for added in (1, 2))
    root = tmp_path / "root"
    with running_sshd(tmp_path / "sshd") as sshd, Mosquitto(tmp_path) as mosquitto:
        device = SshDevice(
            name="pi",
            host=sshd.host,
            user=sshd.user,
            port=sshd.port,
            key=sshd.key,
            known_hosts=sshd.known_hosts,
            command=f"{DEVICE_PYTHON} -m ferryman.cli",
            root=root,
            broker=f"mqtt://{mosquitto.config.host}:{mosquitto.config.port}",
        )
        push(one, device)
        with StatusWatch(mosquitto.config) as status, AgentProcess(mosquitto.config, root):
            status.wait_for(lambda seen: seen.online)
            spec = ProfileSpec(interpreters=("tflite-runtime",), warmup_runs=5, runs=20, energy=False)
            (found,) = compare([one, two], device, spec, rounds=6)
            with pytest.raises(CallerError, match="push the baseline there first"):
                compare([two, one], device, spec, rounds=6)
        served = SlotStore(root).active().slot.package_sha256
    assert served == sha256_of(one)
    assert (found.baseline.package_sha256, found.other.package_sha256) == (served, sha256_of(two))
    assert [len(found.baseline.starts), len(found.other.starts)] == [6, 6]
    assert found.ratios[0].low <= found.ratios[0].ratio <= found.ratios[0].high
    assert not [difference for difference in found.differences if difference.bars]
