"""What a device's root holds, and how it is built: by mmdebstrap, from the mirrors of this machine's apt sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferryman.runtime.native.executorch.fetch import cache_dir

SUITE = "bookworm"
PACKAGES = (
    "adduser",
    "bats",
    "ca-certificates",
    "iproute2",
    "mosquitto",
    "openssh-server",
    "passwd",
    "procps",
    "python3",
    "python3-venv",
    "sudo",
    "systemd",
    "udev",
)
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/lib/udev/hwdb.d/*",  # compiling them takes a minute under qemu, and no board has those devices
)
AFTER = (
    # Keys of hosts are made where one is used; nobody may take them for another's.
    'rm -f "$1"/etc/ssh/ssh_host_*',
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/* "$1"/etc/apt/apt.conf.d/99mmdebstrap',
)
QEMU = {"arm64": "qemu-aarch64"}
"""What runs another machine's programs here, as update-binfmts names it."""
MACHINE = {"arm64": "aarch64", "amd64": "x86_64"}


def why_not(arch: str = "arm64") -> str:
    """Why there can be no root here; empty: there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a device's root takes Linux and root: mounts, chroot, namespaces"
    needed = {"mmdebstrap": "mmdebstrap", "nsenter": "util-linux", "setpriv": "util-linux", "zstd": "zstd"}
    if foreign(arch):
        needed |= {f"{QEMU.get(arch, arch)}-static": "qemu-user-static", "update-binfmts": "binfmt-support"}
    if missing := [package for program, package in needed.items() if shutil.which(program, path=_PATH) is None]:
        return f"{' '.join(missing)} not installed: apt-get install {' '.join(missing)}"
    if foreign(arch) and (said := _enable(QEMU[arch])):
        return said
    tried = subprocess.run([*ALONE, "true"], capture_output=True, text=True, check=False)
    return f"no mounts of one's own here: {tried.stderr.strip()}" if tried.returncode else ""


def foreign(arch: str) -> bool:
    """Whether this machine runs `arch` only under qemu."""
    return MACHINE[arch] != platform.machine()


ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""Runs a program whose mounts are its own, and whose children end with it."""


def build_root(arch: str) -> Path:
    """The packed root of `arch`, built where the cache has none; whoever asks meanwhile waits.

    Raises:
        RuntimeError: it cannot be built here; the message says why.
    """
    packed = cache_dir() / "roots" / f"{arch}-{recipe_hash()}.tar.zst"
    if packed.exists():
        return packed
    if reason := why_not(arch):
        raise RuntimeError(reason)
    packed.parent.mkdir(parents=True, exist_ok=True)
    with _locked(packed.with_suffix(".lock")):
        if not packed.exists():
            _build(arch, packed)
    return packed


def recipe_hash() -> str:
    """Changes with whatever a root is made of, save the mirror."""
    recipe = repr((SUITE, PACKAGES, LEFT_OUT, AFTER, _OPTIONS))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_OPTIONS = ("--variant=minbase", "--mode=root", "--format=tar", "--dpkgopt=force-unsafe-io", "--quiet")
_INTEREST = ("Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries")


def _build(arch: str, packed: Path) -> None:
    print(f"building the {arch} root {packed.name}: some minutes, once", file=sys.stderr, flush=True)
    started = time.monotonic()
    scratch = packed.parent / f".{packed.stem}"
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed: we hold the lock
    scratch.mkdir()
    made = scratch / packed.name
    command = [*ALONE, "mmdebstrap", *_OPTIONS, f"--arch={arch}", f"--include={','.join(PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    command += [f"--aptopt={setting}" for setting in _apt_settings()]
    command += [f"--customize-hook={hook}" for hook in AFTER]
    environment = {**os.environ, "TMPDIR": str(scratch), "PATH": _PATH}
    sources = _sources()
    command += [SUITE, str(made), *(["-"] if sources else [])]
    done = subprocess.run(
        command, input="\n".join(sources), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(scratch, ignore_errors=True)
        raise RuntimeError(f"mmdebstrap for {arch}: {done.stderr[-2000:]}")
    made.replace(packed)
    shutil.rmtree(scratch, ignore_errors=True)
    took = f"{time.monotonic() - started:.0f} s, {packed.stat().st_size / 1e6:.0f} MB"
    print(f"built {packed}: {took}", file=sys.stderr, flush=True)


def _sources() -> list[str]:
    """Lines for the root's apt; none where this machine has no Debian of that suite: mmdebstrap then knows a mirror."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    mirrors: dict[str, str] = {}
    for line in found:
        uri, release, component = line.split()
        if component == "main" and uri.rstrip("/").rpartition("/")[2] in {"debian", "debian-security"}:
            mirrors.setdefault(release, f"deb {uri} {release} main")
    wanted = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    return [mirrors[release] for release in wanted if release in mirrors] if SUITE in mirrors else []


def _apt_settings() -> list[str]:
    """This machine's own, of how to reach a mirror."""
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.rstrip(";") for line in dumped if line.startswith(_INTEREST) and not line.endswith('"";')]


def _enable(name: str) -> str:
    if Path("/proc/sys/fs/binfmt_misc", name).exists():
        return ""
    tried = subprocess.run(
        ["update-binfmts", "--enable", name], capture_output=True, text=True, check=False, env={"PATH": _PATH}
    )
    if Path("/proc/sys/fs/binfmt_misc", name).exists():
        return ""
    return f"binfmt_misc does not take {name}: {tried.stderr.strip() or 'update-binfmts says nothing'}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
