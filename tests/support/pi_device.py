"""A Pi with ferryman on it: the arm64 root and the cross-built wheel, with one TFLite interpreter beside ExecuTorch.

Installed from here, for pip under qemu takes minutes; the environment is what `python3 -m venv` makes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from ferryman.runtime.native.executorch.fetch import cache_dir
from tests.support import arm_wheel, device_root
from tests.support.pi import BOARD_OF
from tests.support.root_recipe import build_root

EXTRAS = "litert,ota,enroll"
VENV = Path("/opt/ferryman")
COMMAND = VENV / "bin" / "ferryman"
PYTHON = VENV / "bin" / "python"
_SITE = VENV / "lib" / "python3.11" / "site-packages"
_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34")
_SCRIPT = """\
#!{python}
import sys
from ferryman.cli import main
sys.exit(main())
"""
_SETTINGS = "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"
_KEPT = 2
"""Packed devices; one of older sources is of no more use."""


def why_not() -> str:
    """Why there can be none here; empty: there can."""
    return device_root.why_not("arm64") or arm_wheel.why_not()


def packed_device() -> Path:
    """The packed root with ferryman in VENV; made where the cache has none of these sources.

    Raises:
        RuntimeError: the root, the wheel, or what it asks for cannot be had.
    """
    bare, wheel = build_root("arm64"), arm_wheel.arm_wheel()
    recipe = repr((bare.name, wheel.name, wheel.read_bytes(), EXTRAS, _PLATFORMS, _SCRIPT, _SETTINGS))
    packed = bare.parent / f"device-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar.zst"
    with (cache_dir() / "roots" / "device.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not packed.exists():
            with tempfile.TemporaryDirectory(dir=bare.parent, prefix=".device-") as scratch:
                _make(bare, wheel, Path(scratch), packed)
        os.utime(packed)
        for old in sorted(bare.parent.glob("device-*.tar.zst"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            old.unlink()
    return packed


def _make(bare: Path, wheel: Path, scratch: Path, packed: Path) -> None:
    """The bare root's archive with another behind it: tar takes them for one where zeros between are ignored."""
    root = scratch / "root"
    install(wheel, root)
    (root / VENV.relative_to("/") / "bin").mkdir()
    (root / PYTHON.relative_to("/")).symlink_to("/usr/bin/python3")
    (root / VENV.relative_to("/") / "pyvenv.cfg").write_text(_SETTINGS)
    script = root / COMMAND.relative_to("/")
    script.write_text(_SCRIPT.format(python=PYTHON))
    script.chmod(0o755)
    made = scratch / packed.name
    shutil.copyfile(bare, made)
    tar = ["tar", "-C", root, "-cf", "-", "--owner=0", "--group=0", "."]
    with made.open("ab") as file, subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
        subprocess.run(["zstd", "-3", "-q", "-c"], stdin=packing.stdout, stdout=file, check=True)
    if packing.returncode:
        raise RuntimeError(f"tar of {root} failed")
    made.replace(packed)


def install(wheel: Path, root: Path, extras: str = EXTRAS) -> None:
    """The wheel and what it asks for, as an aarch64 device's pip would choose it, into a root's site-packages.

    Raises:
        RuntimeError: pip's own words.
    """
    site = root / _SITE.relative_to("/")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(site)]
    command += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
    command += [f"--platform={name}_aarch64" for name in _PLATFORMS]
    done = subprocess.run([*command, f"{wheel}[{extras}]"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip install for aarch64: {done.stderr[-2000:]}")
    shutil.rmtree(site / "bin", ignore_errors=True)  # scripts for this machine's Python


@click.command()
@click.argument("what", type=click.Choice(["build", "shell"]), default="build")
@click.option("--cpu", type=click.Choice(list(BOARD_OF)), default=device_root.CPU, help="The processor, and so the Pi.")
@click.option("--bare", is_flag=True, help="Without ferryman.")
def main(what: str, cpu: str, *, bare: bool) -> None:
    """Build and cache an emulated Raspberry Pi with ferryman on it, or enter a fresh copy, which is gone afterwards."""
    if reason := why_not():
        raise click.ClickException(reason)
    packed = build_root("arm64") if bare else packed_device()
    if what == "build":
        click.echo(f"{packed}: {packed.stat().st_size / 1e6:.0f} MB")
        click.echo(f"ferryman is {COMMAND} there. To enter a copy, which is gone afterwards:")
        click.echo(f"  {os.path.relpath(sys.executable)} -m tests.support.pi_device shell --cpu {cpu}")
        return
    with (
        tempfile.TemporaryDirectory(prefix="ferryman-pi-") as folder,
        device_root.unpacked_root("arm64", Path(folder), cpu=cpu, packed=packed) as root,
    ):
        click.echo(f"{BOARD_OF[cpu].model}, emulated; its files are {root.path} from outside; `exit` ends it")
        path = f"{COMMAND.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "TERM": os.environ.get("TERM", "dumb"), "PS1": "pi# "}
        subprocess.run(root.command(["sh", "-i"], env=environment), check=False)


if __name__ == "__main__":
    main()
