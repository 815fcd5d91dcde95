"""ferryman_runner for 64-bit Arm, under qemu: shows that it is right, and says nothing about speed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ferryman.runtime.sessions.executorch import open_session
from tests.integration.test_runner import GOLDEN, some_inputs
from tests.support import device_root, runner
from tests.support.golden import PTE, SHARED
from tests.support.runner_artifacts import FORMS, make_forms

WHY_NOT = runner.why_not("aarch64") or ("" if shutil.which("qemu-aarch64-static") else "qemu-aarch64-static: none")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
CPUS = ("cortex-a53", "cortex-a72")
LINEAR = PTE / "linear.pte"
NEEDS_ROOT = pytest.mark.skipif(bool(device_root.why_not("arm64")), reason=device_root.why_not("arm64"))
SHELLS = {"busybox": "/bin/busybox", "mksh": "/bin/mksh-static"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Every artifact, with its entries."""
    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder)
    found = {name: (PTE / f"{name}.pte", None) for name in GOLDEN}
    found |= {form: (folder / f"{form}.pte", None) for form in FORMS}
    return found | {
        "large": (SHARED / "two.pte", "large"),
        "scaled": (SHARED / "scaled.pte", None),
        "static": (SHARED / "static.pte", None),
    }


def far_from(wanted, found):
    """Largest difference, in parts of the largest number; a whole number differs by nothing or by something."""
    if wanted.dtype.kind != "f":
        return float(not np.array_equal(wanted, found))
    largest = float(np.max(np.abs(wanted), initial=1e-30))
    return float(np.max(np.abs(wanted.astype(np.float64) - found), initial=0)) / largest


@pytest.mark.parametrize("cpu", CPUS)
def test_every_artifact_answers_as_on_x86(artifacts, cpu, tmp_path):
    for name, (artifact, entry) in artifacts.items():
        with open_session(artifact, threads=1, entry=entry) as session:
            inputs = some_inputs(session.signature)
            wanted = session.run(inputs)
        words = ["--entry", entry] if entry else []
        found = runner.run(artifact, inputs, tmp_path, *words, outputs=len(wanted), machine="aarch64", cpu=cpu)
        for one, other in zip(wanted, found, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), name
            # A float in another order of additions; an activation that rounds to the neighbouring code.
            assert far_from(one, other) < (1e-2 if name in {"int8", "4bit", "scaled", "static"} else 1e-5), name


@pytest.mark.parametrize("cpu", CPUS)
def test_facts_and_profile(cpu, tmp_path):
    found = runner.ask("facts", machine="aarch64", cpu=cpu)
    assert (found["machine"], found["kernels_isa"]) == ("aarch64", "neon")
    x = tmp_path / "x"
    x.write_bytes(bytes(16))
    words = ("--input", x, "--threads", "2", "--warmup-s", "0", "--seconds", "0", "--runs-min", "5")
    assert len(runner.ask("profile", LINEAR, *words, machine="aarch64", cpu=cpu)["samples_ns"]) == 5


def test_damaged_artifacts_get_an_answer(tmp_path):
    whole = LINEAR.read_bytes()
    for size in (0, 1, 100, len(whole) // 2):
        broken = tmp_path / "broken.pte"
        broken.write_bytes(whole[:size])
        assert runner.ask("describe", broken, machine="aarch64", check=False)["error"]["party"] == "package"


def test_pages_of_16_kib_will_do():
    """Newer phones have them: every part of every library begins at a multiple of 64 KiB, as Arm's ABI wants it."""
    for file in (runner.runner("aarch64") / "lib").iterdir():
        listed = subprocess.run(["readelf", "-lW", file], capture_output=True, text=True, check=True).stdout
        parts = [line.split()[-1] for line in listed.splitlines() if line.split()[:1] == ["LOAD"]]
        assert parts and set(parts) == {"0x10000"}, file  # noqa: PT018


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory):
    """A root with the runner's archive unpacked, an artifact, and a static shell of this machine for its launcher."""
    root = tmp_path_factory.mktemp("empty")
    for folder in ("bin", "proc", "sys", "dev", "tmp"):
        (root / folder).mkdir()
    runner.unpack(runner.runner("aarch64").with_name("ferryman-runner.tar.gz"), root)
    for name, program in SHELLS.items():
        if not Path(program).exists():
            pytest.skip(f"{program} is not installed: busybox-static, mksh")
        shutil.copy(program, root / "bin" / name)
    shutil.copy(LINEAR, root / "linear.pte")
    (root / "x").write_bytes(np.arange(1, 5, dtype=np.float32).tobytes())
    return root


@NEEDS_ROOT
@pytest.mark.parametrize("shell", [["/bin/busybox", "sh"], ["/bin/mksh"]], ids=SHELLS)
@pytest.mark.parametrize("cpu", CPUS)
def test_nothing_outside_its_folder_is_needed(empty_root, shell, cpu):
    """As on a phone: no C library, no linker's cache, no /lib; the kernel, /proc and /sys."""
    inside = 'mount -t proc proc "$0/proc" && mount --rbind /sys "$0/sys" && exec chroot "$0" "$@"'
    words = ["/ferryman-runner/ferryman_runner", "run", "/linear.pte", "--input", "/x", "--output", "/out"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, empty_root, *shell, *words],
        capture_output=True,
        env={"QEMU_CPU": cpu, "PATH": os.environ["PATH"]},
        check=False,
        timeout=60,
    )
    assert "error" not in runner.answer(done)
    assert np.frombuffer((empty_root / "out").read_bytes(), np.float32).tolist() == [6.0] * 4


@NEEDS_ROOT
def test_in_the_arm64_root(tmp_path):
    with device_root.unpacked_root("arm64", tmp_path / "device") as root:
        packed = runner.runner("aarch64").with_name("ferryman-runner.tar.gz")
        root.write("/data/local/tmp/runner.tar.gz", packed.read_bytes())
        root.write("/data/local/tmp/linear.pte", LINEAR.read_bytes())
        root.write("/data/local/tmp/x", np.arange(1, 5, dtype=np.float32).tobytes())
        root.run(["tar", "xzf", "/data/local/tmp/runner.tar.gz", "-C", "/data/local/tmp"])
        for cpu in CPUS:
            script = "cd /data/local/tmp && ferryman-runner/ferryman_runner run linear.pte --input x --output out"
            assert "error" not in runner.answer(root.run(["sh", "-c", script], cpu=cpu))
            made = (root.path / "data/local/tmp/out").read_bytes()
            assert np.frombuffer(made, np.float32).tolist() == [6.0] * 4
