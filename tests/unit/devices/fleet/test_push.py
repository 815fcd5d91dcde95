"""Push to this machine; test_push_ssh.py does the same over a link."""

from __future__ import annotations

import sys

import pytest
from msgspec.structs import replace

from ferryman.devices.fleet.inventory import AdbDevice, LocalDevice
from ferryman.devices.fleet.push import confirm, push
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.slot import HealthRules, Trial
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of, write_tiny_package

TRIAL = Trial(desired_version=1, rollout="r", rules=HealthRules(), began_at_ns=1)


def test_push_to_this_machine(tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry")
    device = LocalDevice(root=tmp_path / "root")
    assert push(package, device).install is not None
    assert SlotStore(device.root).active().slot.package_sha256 == sha256_of(package)


def test_a_missing_package_is_the_callers_fault(tmp_path):
    with pytest.raises(CallerError, match="no-such"):
        push(tmp_path / "no-such.ferry", LocalDevice(root=tmp_path))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ferryman-is-not-here", "local has no `ferryman-is-not-here`"),
        ("false", "exit status 1.*it said nothing"),
        ("true", "exit status 0"),
        (f"{sys.executable} -c 'print([])'", "did not answer as ferryman does"),
    ],
)
def test_a_device_that_does_not_answer_as_ferryman_does(tmp_path, command, message):
    package = write_tiny_package(tmp_path / "p.ferry")
    with pytest.raises(DeviceError, match=message):
        push(package, LocalDevice(root=tmp_path / "root", command=command))


def test_what_is_on_trial_is_confirmed(tmp_path):
    device = LocalDevice(root=tmp_path / "root")
    push(write_tiny_package(tmp_path / "p.ferry"), device)
    store = SlotStore(device.root)
    store.write_state(replace(store.read_state(), trial=TRIAL))
    assert confirm(device).package_name == "add-1"
    assert store.read_state().trial is None
    assert confirm(device).package_name == "add-1"  # and once more changes nothing


def test_nothing_to_confirm_says_so(tmp_path):
    with pytest.raises(DeviceError, match="no package is active on local"):
        confirm(LocalDevice(root=tmp_path / "root"))
    with pytest.raises(CallerError, match="is a phone"):
        confirm(AdbDevice(name="pixel", adb=""))
