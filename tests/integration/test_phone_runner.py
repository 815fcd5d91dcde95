"""The real native runner behind the real adb: on this machine's processor, and in an arm64 root under qemu.

Times under qemu are none of a phone's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.fleet.phone.facts import phone_facts
from ferryman.devices.fleet.phone.profile import profile_on_phone
from ferryman.devices.fleet.phone.push import push_to_phone, rollback_phone
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.tensor import Signature, TensorSpec, to_tensors
from ferryman.runtime.package import open_package, write_package
from ferryman.runtime.session import open_session
from tests.support import device_root
from tests.support import runner as runners
from tests.support.adbd import AndroidPhone, adb_server
from tests.support.golden import PTE
from tests.support.packages import sha256_of
from tests.support.phone import AndroidSystem
from tests.support.phones import WHY_NO_PHONES, phone_scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NO_PHONES), reason=WHY_NO_PHONES),
]
QUICK = ProfileSpec(starts=2, warmup_runs=2, runs=20, energy=False)


def linear_package(path: Path) -> Path:
    """What the host's own session answers is the reference."""
    x = np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4)
    with open_session(PTE / "linear.pte", "executorch") as session:
        (y,) = session.run([x])
        version = session.version
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 4)),),
    )
    variant = Variant(
        name="fp32-executorch",
        form="fp32",
        runtime="executorch",
        payload="artifacts/linear.pte",
        signature=signature,
        requires=Requirements(interpreters={"executorch": version}, memory_estimate_bytes=1 << 20),
        lowering=Lowering(delegated={}, fallback={}, delegates=1),
        verified=(),
    )
    write_package(
        path,
        name="linear",
        signature=signature,
        variants=[variant],
        artifacts={"artifacts/linear.pte": (PTE / "linear.pte").read_bytes()},
        golden=[GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([y]))],
        golden_sqnr_min_db=60.0,
        created_with={"by-hand": "1"},
    )
    return path


def bundle_of(machine) -> Path:
    return runners.runner(machine).with_name("ferryman-runner.tar.gz")


def carry(device: AdbDevice, package: Path, bundle: Path, spec: ProfileSpec) -> Measurement:
    """Push, probe, profile and push again."""
    with open_package(package) as opened:
        pushed = push_to_phone(opened, device, bundle_file=bundle)
        (golden,) = pushed.install.golden
        assert golden.sqnr_db > 100
        assert golden.memory_bytes > 1_000_000
        assert push_to_phone(opened, device, bundle_file=bundle).install is None
        (found,) = profile_on_phone(opened, device, spec, bundle_file=bundle)
    assert decode(encode(found), Measurement) == found
    assert len(found.starts) == spec.starts
    assert all(value > 0 for value in found.samples_ns)
    assert found.process_ns > 0
    memory = found.memory
    assert 0 < memory.start.rss_bytes <= memory.peak_rss_bytes
    assert memory.steady.uss_bytes > 0
    facts = phone_facts(device, 60)
    assert [one.name for one in facts.interpreters] == ["executorch"]
    assert facts.operators >= 4
    return found


@pytest.mark.skipif(bool(runners.why_not("x86_64")), reason=runners.why_not("x86_64"))
def test_the_runner_of_this_machine(tmp_path, monkeypatch):
    with phone_scene(tmp_path, monkeypatch) as scene:
        package = linear_package(tmp_path / "linear.ferry")
        found = carry(scene.device, package, bundle_of("x86_64"), QUICK)
        assert found.starts[0].samples.count == 20
        assert scene.serving == sha256_of(package)


class ArmSystem(AndroidSystem):
    """A Debian for arm64: bash in place of mksh, for it tells the time as that does."""

    def __init__(self, folder: Path, root) -> None:
        self.root_device = root
        super().__init__(folder)
        self.home = Path("/data/local/tmp/ferryman")
        (root.path / "data/local/tmp").mkdir(parents=True)
        self.properties["ro.product.cpu.abilist"] = "arm64-v8a"
        cases = " ".join(f"{name}) echo '{value}';;" for name, value in self.properties.items())
        root.write("/usr/local/bin/getprop", f'#!/bin/sh\ncase "$1" in {cases} *) echo;; esac\n', 0o755)
        root.write("/usr/local/bin/dumpsys", "#!/bin/sh\nexit 1\n", 0o755)
        root.write("/usr/local/bin/sync", "#!/bin/sh\n", 0o755)

    def command(self, text: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.root_device.command(["/bin/bash", "-c", text]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )

    def path(self, remote: str) -> Path:
        return self.root_device.path / remote.lstrip("/")


@pytest.mark.skipif(bool(runners.why_not("aarch64")), reason=runners.why_not("aarch64"))
@pytest.mark.skipif(bool(device_root.why_not()), reason=device_root.why_not())
def test_the_runner_for_phones_on_an_arm_processor(tmp_path, monkeypatch):
    with device_root.unpacked_root("arm64", tmp_path / "arm") as root:
        phone = AndroidPhone(ArmSystem(tmp_path / "phone", root))
        with adb_server(monkeypatch, phone):
            device = AdbDevice(name="phone", adb=phone.serial)
            package = linear_package(tmp_path / "linear.ferry")
            found = carry(device, package, bundle_of("aarch64"), QUICK)
            assert found.before.machine == "aarch64"
            assert found.before.cpu_model == "4x Cortex-A72"
            assert found.before.temperatures_c
            with pytest.raises(DeviceError, match="no previous slot"):
                rollback_phone(device)
        phone.close()
