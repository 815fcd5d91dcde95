"""The folder that ferryman_runner comes in: its launcher, its licences, its bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.support import runner
from tests.support.interpreters import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(runner.why_not("x86_64")), reason=runner.why_not("x86_64")),
]
SHELLS = (["dash"], ["bash", "--posix"], ["busybox", "sh"], ["mksh"])


@pytest.fixture
def folder(tmp_path):
    """A copy of its own, in a folder with an awkward name."""
    return runner.unpack(runner.runner("x86_64").with_name("ferryman-runner.tar.gz"), tmp_path / "-a b'\"$(c)*")


def facts(*command, **options):
    done = subprocess.run([*command, "facts"], capture_output=True, timeout=60, check=False, **options)
    assert done.stderr == b""
    return runner.answer(done)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_every_shell_starts_it(folder, shell):
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    assert facts(*shell, folder / "ferryman_runner")["runner"]
    assert facts(*shell, "./ferryman_runner", cwd=folder)["runner"]
    assert facts(*shell, "ferryman_runner", cwd=folder)["runner"]


def test_it_is_found_however_it_is_called(folder, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "absolute").symlink_to(folder / "ferryman_runner")
    (tmp_path / "bin" / "relative").symlink_to(f"../{folder.parent.name}/ferryman-runner/ferryman_runner")
    (tmp_path / "bin" / "chain").symlink_to("relative")
    assert facts("ferryman-runner/ferryman_runner", cwd=folder.parent)["runner"]
    for name in ("absolute", "relative", "chain"):
        assert facts(tmp_path / "bin" / name, cwd="/")["runner"]
        assert facts("env", f"PATH={tmp_path / 'bin'}:{os.environ['PATH']}", name, cwd="/")["runner"]


def test_another_c_librarys_settings_are_left_behind(folder):
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not installed: a shell that such settings do not reach")
    others = {"LD_PRELOAD": "/none.so", "LD_LIBRARY_PATH": str(ROOT)}
    assert facts("/bin/busybox", "sh", folder / "ferryman_runner", env=others)["runner"]


def test_a_folder_that_cannot_work_says_so(folder, tmp_path):
    def message(*command):
        return facts(*command)["error"]["message"]

    assert "colon" in message(folder.rename(tmp_path / "a:b") / "ferryman_runner")
    folder = (tmp_path / "a:b").rename(tmp_path / "c")
    (loader,) = (folder / "lib").glob("ld-*")
    loader.chmod(0o644)
    if os.geteuid() == 0:
        assert "may not be run" in message(folder / "ferryman_runner")
    loader.unlink()
    assert "unpack" in message(folder / "ferryman_runner")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_file_system_without_programs_says_so(folder, tmp_path):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    script = (
        'mount -t tmpfs -o noexec none "$0" && cp -r "$1" "$0" && exec sh "$0/ferryman-runner/ferryman_runner" facts'
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, mounted, folder], capture_output=True, check=False)
    assert "noexec" in runner.answer(done)["error"]["message"], done.stderr


def test_its_licences_and_versions_come_along():
    licenses = runner.runner("x86_64") / "licenses"
    assert "glibc" in (licenses / "DEBIAN.txt").read_text()
    for name in ("libc6", "libgcc-s1", "libstdc++6", "LGPL-2.1", "GPL-3", "Apache-2.0", "ExecuTorch", "XNNPACK"):
        assert (licenses / f"{name}.txt").stat().st_size > 1000, name
    assert "Runtime Library Exception" in (licenses / "libstdc++6.txt").read_text()


def test_it_needs_no_library_of_the_machine():
    """Everything that any file of it asks for lies in its lib/."""
    folder = runner.runner("x86_64")
    there = {file.name for file in (folder / "lib").iterdir()}
    for file in (folder / "bin" / "ferryman_runner", *(folder / "lib").iterdir()):
        listed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
        asked = {line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line}
        assert asked <= there, file


def test_the_same_sources_give_the_same_bytes(tmp_path):
    archive = tmp_path / "again.tar.gz"
    done = subprocess.run([sys.executable, runner.BUILD, "x86_64", archive], capture_output=True, text=True, check=True)
    assert "unpacked" in done.stdout
    assert archive.read_bytes() == runner.runner("x86_64").with_name("ferryman-runner.tar.gz").read_bytes()
    with tarfile.open(archive) as packed:
        assert {member.mtime for member in packed} == {315532800}


def test_a_machine_it_is_not_made_for_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, runner.BUILD, "riscv64", tmp_path / "x"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "riscv64" in done.stderr) == (1, True)
