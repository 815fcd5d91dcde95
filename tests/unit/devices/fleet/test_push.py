"""Push to this machine; test_push_ssh.py does the same over a link."""

from __future__ import annotations

import sys

import pytest

from ferryman.devices.fleet.inventory import LocalDevice
from ferryman.devices.fleet.push import push
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of, write_tiny_package


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
