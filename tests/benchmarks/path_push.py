"""A push over SSH against OpenSSH's own sftp: the same sshd, the same file, the same disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ferryman.devices.fleet.inventory import SshDevice
from ferryman.devices.fleet.push import PushResult, push
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.benchmarks.path_agent import COMMAND
from tests.support.interpreters import ROOT
from tests.support.packages import write_tiny_package
from tests.support.sshd import SSHD, Sshd, running_sshd

UPLOAD = Goal("push upload throughput over sftp", ">=", 0.8)
_BYTES = 100_000_000
_ROUNDS = 11


class _Pushes:
    """Pushes two packages in turn, since a second push of the same one would send nothing."""

    def __init__(self, folder: Path, device: SshDevice) -> None:
        padding = os.urandom(_BYTES)
        self.packages = [
            write_tiny_package(folder / f"{added}.ferry", added=added, padding=padding) for added in (1.0, 2.0)
        ]
        self._device = device
        self._next = 0
        self.done: list[PushResult] = []

    def upload_seconds(self) -> float:
        self._next = 1 - self._next
        os.sync()
        self.done.append(push(self.packages[self._next], self._device))
        return self.done[-1].upload_ns / 1e9


def measure() -> Iterator[Bar | Figure]:
    """Time uploads; sftp's connecting is timed by itself and taken off, as a push tells its upload apart."""
    if SSHD is None:
        raise CannotRun("sshd is not installed: apt-get install openssh-server")
    if not COMMAND.exists():
        raise CannotRun(f"{COMMAND} is missing: `make bench` sets it up")
    progress(f"push of {_BYTES // 1_000_000} MB beside sftp")
    # Not in /tmp, which may be memory: a device's slots are on a disk.
    place = ROOT / ".cache"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as name, running_sshd(Path(name)) as sshd:
        folder = Path(name)
        pushes = _Pushes(folder, _device(sshd, folder / "device"))
        target = folder / "by-sftp"

        def sftp() -> float:
            os.sync()  # what others left to be written must not weigh on either
            took = seconds_of(lambda: _sftp(sshd, f"put {pushes.packages[0]} {target}"))
            target.unlink()
            return took

        def connect() -> float:
            return seconds_of(lambda: _sftp(sshd, "pwd"))

        interleave(1, pushes.upload_seconds, sftp, connect)
        pushes.done.clear()
        ours, with_connect, connecting = interleave(_ROUNDS, pushes.upload_seconds, sftp, connect)
        size_bytes = pushes.packages[0].stat().st_size
    theirs = with_connect - connecting
    yield UPLOAD.measured(theirs / ours)
    yield figure("  upload of a push", size_bytes / ours / 1e6, "MB/s")
    yield figure("  sftp put", size_bytes / theirs / 1e6, "MB/s")
    yield figure("  connect, ferryman", [one.connect_ns / 1e9 for one in pushes.done], "s")
    yield figure("  connect, sftp", connecting, "s")
    installs = [one.install for one in pushes.done if one.install]
    yield figure("  write the slot", [one.write_ns / 1e9 for one in installs], "s")
    yield figure("  read it back", [one.read_back_ns / 1e9 for one in installs], "s")
    yield figure("  golden vectors", [one.golden_ns / 1e9 for one in installs], "s")


def _device(sshd: Sshd, root: Path) -> SshDevice:
    return SshDevice(
        name="bench",
        host=sshd.host,
        user=sshd.user,
        port=sshd.port,
        key=sshd.key,
        known_hosts=sshd.known_hosts,
        command=str(COMMAND),
        root=root,
    )


def _sftp(sshd: Sshd, batch: str) -> None:
    options = (f"IdentityFile={sshd.key}", "IdentitiesOnly=yes", f"UserKnownHostsFile={sshd.known_hosts}")
    command = ["sftp", "-q", "-F", "/dev/null", "-b", "-", "-P", str(sshd.port)]
    for option in options:
        command += ["-o", option]
    try:
        subprocess.run(
            [*command, f"{sshd.user}@{sshd.host}"], input=batch.encode(), check=True, stdout=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise CannotRun("sftp is not installed: apt-get install openssh-client") from None


PARTS = (Part((UPLOAD,), measure),)
