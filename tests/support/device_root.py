"""A device that is a Debian root: arm64 under qemu, or this machine's own architecture.

`make device-root` makes one with the wheel installed, and `python -m tests.support.pi_device shell` enters it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.pi import BOARD_OF
from tests.support.root_recipe import ALONE, build_root, foreign, why_not

__all__ = ["CPU", "Root", "build_root", "unpacked_root", "why_not"]

CPU = "cortex-a72"
"""What an arm64 root runs on where nothing else is asked for: qemu's own choice has more than any Pi."""
_MEMORY_BYTES = 3_000_000_000
"""Free memory from which a root is unpacked there: faster than on a disk, and gone with its last process."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_INIT = """\
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped
print("up", flush=True)
sys.stdin.read()  # until whoever started us closes it, or dies: with process 1 everything ends, mounts as well
"""
_MOUNTS = """\
set -eu
root=$1
[ -z "$5" ] || mount -t tmpfs -o mode=755 root "$root"
tar --zstd --ignore-zeros -xpf "$6" -C "$root" --exclude='./dev/*'
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom tty; do
  cp -a "/dev/$node" "$root/dev/$node"  # its own: of a bind mount, udev in there would change this machine's mode
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
if [ -n "$2" ]; then
  mount --bind "$2/cpuinfo" "$root/proc/cpuinfo"
  mount --bind "$2/sys" "$root/sys"
else
  mount --rbind /sys "$root/sys"
fi
exec "$3" -c "$4"
"""


@dataclass(frozen=True)
class Root:
    """A running device: its programs see one another, and what is mounted for them, and nothing else does."""

    path: Path
    """Its files, as this machine reaches them while it runs."""
    inside: Path
    """Where process 1 has it mounted."""
    arch: str
    pid: int
    """Of its process 1, as this machine numbers it."""
    cpu: str

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cpu: str | None = None,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",  # noqa: A002  # as subprocess names it
        timeout_s: float = 120.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with what it says as text.

        Raises:
            AssertionError: it failed, and `check` is on; the message has what it said.
        """
        whole = self.command(command, cpu=cpu, netns=netns, env=env, death="KILL")
        done = subprocess.run(whole, input=input, capture_output=True, timeout=timeout_s, check=False)
        text = [part.decode(errors="replace") for part in (done.stdout, done.stderr)]
        if check and done.returncode:
            shown = " ".join(map(str, command))
            raise AssertionError(f"in the {self.arch} root: {shown}: exit code {done.returncode}\n{text[0]}{text[1]}")
        return subprocess.CompletedProcess(done.args, done.returncode, *text)

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        cpu: str | None = None,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
        **options,
    ) -> subprocess.Popen[str]:
        """Start a program; ended by the root's end at the latest. `terminate` reaches it as SIGTERM, `kill` too."""
        whole = self.command(command, cpu=cpu, netns=netns, env=env)
        return subprocess.Popen(whole, **{"text": True, "stdin": subprocess.DEVNULL} | options)

    def command(
        self,
        command: Sequence[str | Path],
        *,
        cpu: str | None = None,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
        death: str = "TERM",
    ) -> list[str]:
        """What runs `command` in here.

        Args:
            command: a program of the root, and its arguments.
            cpu: as qemu names it; by default the root's own.
            netns: name of a network namespace; by default the machine's own.
            env: beside PATH, HOME and LANG; nothing of this machine's environment gets in.
            death: signal it gets when what we start here is ended.
        """
        settings = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(env or {})}
        if foreign(self.arch):
            settings["QEMU_CPU"] = cpu or self.cpu
        elif cpu is not None:
            raise ValueError(f"{self.arch} runs on this machine's own processor, not on {cpu}")
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid"]
        enter += [f"--net=/run/netns/{netns}"] if netns else []
        enter += ["--", "setpriv", f"--pdeathsig={death}", "--", "chroot", str(self.inside), "/usr/bin/env", "-i"]
        # The chroot's env is the first program of the root, and qemu reads QEMU_CPU when that starts.
        first = [f"QEMU_CPU={settings['QEMU_CPU']}"] if "QEMU_CPU" in settings else []
        # Whoever started us may have had us ignore signals (nohup), which programs inherit.
        enter = ["env", "--default-signal", *first, *enter]
        return [*enter, *(f"{name}={value}" for name, value in settings.items()), *map(str, command)]

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """A file of the root, by its name in there."""
        file = self.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)


@contextmanager
def unpacked_root(arch: str, folder: Path, *, cpu: str = CPU, packed: Path | None = None) -> Iterator[Root]:
    """A fresh copy, running; afterwards its processes are ended, its mounts and files gone.

    Args:
        arch: `arm64` or `amd64`.
        folder: where it is unpacked.
        cpu: of an arm64 root; what /proc/cpuinfo and /sys show is the Pi that has it.
        packed: another packed root than the bare one.

    Raises:
        RuntimeError: there can be none here (ask `why_not` first), or it does not start.
    """
    packed = packed or build_root(arch)
    inside, shown = folder / "root", folder / "shown"
    inside.mkdir(parents=True)
    shown.mkdir()
    try:
        if foreign(arch):
            BOARD_OF[cpu].write(shown)
        with _booted(inside, shown if foreign(arch) else None, packed) as pid:
            root = Root(Path(f"/proc/{pid}/root") / inside.resolve().relative_to("/"), inside, arch, pid, cpu)
            root.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_bytes())
            root.write("/etc/hosts", "127.0.0.1 localhost\n")
            root.write("/etc/hostname", "pi\n" if arch == "arm64" else "debian\n")
            (root.path / "run" / "sshd").mkdir(exist_ok=True)  # as systemd's tmpfiles would
            yield root
    finally:
        shutil.rmtree(inside)
        shutil.rmtree(shown)


@contextmanager
def _booted(inside: Path, shown: Path | None, packed: Path) -> Iterator[int]:
    in_memory = "yes" if psutil.virtual_memory().available > _MEMORY_BYTES else ""
    arguments = [str(inside), str(shown or ""), sys.executable, _INIT, in_memory, str(packed)]
    command = [*ALONE, "sh", "-c", _MOUNTS, "init", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as init:
        assert init.stdout is not None and init.stdin is not None and init.stderr is not None  # noqa: PT018
        try:
            if init.stdout.readline() != "up\n":
                raise RuntimeError(f"{inside} does not start: {init.stderr.read()}")
            # unshare forked: its only child is process 1 in there
            yield int(Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()[0])
        finally:
            init.stdin.close()
            init.wait(60)
