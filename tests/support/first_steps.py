"""Whoever follows docs/getting-started-pi.md: a host with nothing of its own but a clone, and an emulated Pi.

What is not as at the reader's is told in `Follower.replaced`; a command that nobody here knows how to run is an error.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ferryman.runtime.native.executorch.fetch import cache_dir
from tests.support import arm_wheel
from tests.support.authority import realm_folder
from tests.support.console_page import Command, File, difference
from tests.support.device_root import Root, unpacked_root
from tests.support.interpreters import ROOT
from tests.support.netns import Link, lan
from tests.support.pi_scene import answers, end_of

PAGE_HOST, PAGE_DEVICE, PAGE_FINGERPRINT = "192.168.1.2", "192.168.1.20", "SHA256:f0K2..."
CLONE = ("Makefile", "firmware_scripts", *arm_wheel.SOURCES, *arm_wheel.FOLDERS)
ON_HOST = frozenset({"cd", "make", ".", "mkdir", "cp", "ssh-keygen", "ferryman", "sudo", "scp", "ssh"})
ON_DEVICE = frozenset({"ssh-keygen", "sudo"})
ENDLESS = ("ferryman collect",)
NO_SYSTEMD = re.compile(r"^systemd does not run here: .*\n", re.MULTILINE)
SERVES_LATER = "systemd does not run here: at its next start mosquitto will serve"
"""What `_afterwards` then starts at once."""
PATIENCE_S = 900.0
START_S = 60.0
AGAIN = {"ferryman profile": "died of SIGILL", "ferryman devices probe": "it may be busy"}
"""Asked again, and told. The first was seen once in about twenty processes with ai-edge-litert under qemu, and is not
understood; the second is an agent under qemu that takes more than ten seconds on a busy machine."""
TRIES = 3
UNITS = "etc/systemd/system"
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SSHD = """\
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
Subsystem sftp internal-sftp
SetEnv QEMU_CPU={cpu}
"""
_OWN_SYSTEM = """\
set -eu
mount -t tmpfs own "$1"
mkdir "$1/upper" "$1/work" "$1/state"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" overlay /etc
mkdir -p /var/lib/mosquitto
mount --bind "$1/state" /var/lib/mosquitto
[ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd
echo up
exec cat
"""
_STEP = """\
cd "$(cat {state}/cwd)"
. {state}/env
{typed}
code=$?
export -p >{state}/env
pwd >{state}/cwd
exit $code
"""


@dataclass
class Follower:
    """The reader, his host and his Pi."""

    folder: Path
    root: Root
    device: Link
    hub: Link
    system: int
    """A process of the host's mount namespace, where /etc is a copy: what sudo does to the host stays in there."""
    stack: ExitStack
    replaced: dict[str, str] = field(default_factory=dict)
    took_s: list[tuple[str, float]] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """What was asked a second time, and why."""
    fingerprint: str = ""
    running: dict[str, tuple[subprocess.Popen[str], Path]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def follow(self, step: Command | File) -> None:
        """Do it.

        Raises:
            AssertionError: it failed, showed something else than the page, or nobody knows how to do it here.
        """
        if isinstance(step, File):
            Path((self.folder / "cwd").read_text().strip(), step.name).write_text(step.text)
            return
        started = time.monotonic()
        code, said = self._run(step)
        for _ in range(TRIES):
            if not any(step.typed.startswith(verb) and why in said for verb, why in AGAIN.items()):
                break
            self.again.append(f"{step.typed}: {said.splitlines()[-1]}")
            code, said = self._run(step)
        self.took_s.append((step.typed.splitlines()[0], time.monotonic() - started))
        said = NO_SYSTEMD.sub("", said.replace(SERVES_LATER, "mosquitto serves"))
        where, shown = f"line {step.line}: {step.typed}", tuple(map(self._as_here, step.shown))
        assert code == 0, f"{where}\nexit code {code}\n{said}\n{self.last_words()}"
        assert not (wrong := difference(shown, said)), f"{where}\n{wrong}\n{self.last_words()}"
        self._afterwards(step, said)

    def last_words(self) -> str:
        """The end of what each service said."""
        return "\n".join(f"--- {name}\n{log.read_text()[-1500:]}" for name, (_, log) in self.running.items())

    def _run(self, step: Command) -> tuple[int, str]:
        return self._on_device(step) if step.on_device else self._on_host(step)

    def _on_host(self, step: Command) -> tuple[int, str]:
        word = shlex.split(step.typed, comments=True)[0]
        assert word in ON_HOST, f"line {step.line}: how to run {word} on the host is not known here"
        typed = self._as_here(step.typed)
        if step.typed.startswith(ENDLESS):
            shown = tuple(map(self._as_here, step.shown))
            return 0, self._start("collector", self._shell(f"exec {typed}"), lambda said: not difference(shown, said))
        if step.typed == f"ssh pi@{PAGE_DEVICE}":
            self.replaced["ssh without a command"] = "each `pi$ ` that follows is an `ssh` of its own"
            typed += " true"
        done = subprocess.run(
            self._shell(typed),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout

    def _on_device(self, step: Command) -> tuple[int, str]:
        word = shlex.split(step.typed, comments=True)[0]
        assert word in ON_DEVICE, f"line {step.line}: how to run {word} on the device is not known here"
        typed = self._as_here(step.typed)
        if not (self.home / ".ssh/known_hosts").exists():  # at the device's own keyboard
            done = self.root.run(["sh", "-c", typed], netns=self.device.name, check=False)
            return done.returncode, done.stdout + done.stderr
        return self._on_host(Command(step.line, False, f"ssh pi@{PAGE_DEVICE} {shlex.quote(typed)}", step.shown))

    def _as_here(self, typed: str) -> str:
        assert self.fingerprint or PAGE_FINGERPRINT not in typed
        typed = re.sub(rf"{re.escape(PAGE_DEVICE)}\b", self.device.address, typed)
        typed = re.sub(rf"{re.escape(PAGE_HOST)}\b", self.hub.address, typed)
        return typed.replace(PAGE_FINGERPRINT, self.fingerprint)

    def _shell(self, typed: str) -> list[str]:
        return ["env", "-i", "bash", "-c", _STEP.format(state=self.folder, typed=typed)]

    def _afterwards(self, step: Command, said: str) -> None:
        """What the reader does that is not a command, and what systemd does for him."""
        if step.typed.startswith("ssh-keygen -q"):
            self._write_card()
        elif step.typed.startswith("ssh-keygen -l"):
            self.fingerprint = re.findall(r"SHA256:\S+", said)[0]
        elif step.typed.startswith("sudo firmware_scripts/setup_broker.sh"):
            self.replaced["systemd on the host"] = "mosquitto is started by ExecStart= of setup_broker.sh's drop-in"
            (unit,) = (Path(f"/proc/{self.system}/root") / UNITS / "mosquitto.service.d").glob("*.conf")
            command = re.findall(r"^ExecStart=(\S.*)$", unit.read_text(), re.MULTILINE)[-1]
            enter = ["nsenter", f"--mount=/proc/{self.system}/ns/mnt", f"--net=/run/netns/{self.hub.name}", "--"]
            self._start("broker", [*enter, *command.split()], lambda _: answers(self.hub.address, 8884))
        elif step.typed.startswith("ferryman enroll"):
            self._agent_by_its_unit()

    def _write_card(self) -> None:
        self.replaced["Raspberry Pi Imager"] = "the arm64 root of the tests, with user, key and sshd"
        self.replaced["the Pi's user `pi`"] = "is root by another name: qemu runs no setuid programs, so sudo needs it"
        self.replaced["the package index"] = "the Pi's pip finds the same wheels in a folder"
        root = self.root
        root.run(["useradd", "--non-unique", "--uid=0", "--create-home", "--shell=/bin/bash", "--password=*", "pi"])
        root.write("/home/pi/.ssh/authorized_keys", (self.home / ".ssh/id_ed25519.pub").read_bytes(), 0o600)
        root.write("/etc/ssh/sshd_config", _SSHD.format(cpu=root.cpu))
        root.write("/etc/sudoers.d/qemu", "Defaults env_keep += QEMU_CPU\n", 0o440)
        root.run(["ssh-keygen", "-A"])
        (root.path / "run/sshd").mkdir(exist_ok=True)
        self._keep("sshd", lambda log: root.popen(["/usr/sbin/sshd", "-D", "-e"], netns=self.device.name, **log))

    def _agent_by_its_unit(self) -> None:
        self.replaced["systemd on the Pi"] = "the agent is started by ExecStart= of the installed unit, once it may"
        unit = (self.root.path / UNITS / "ferryman-agent.service").read_text()
        waits = (self.root.path / UNITS / "ferryman-agent.service.d/enroll.conf").read_text()
        (identity,) = re.findall(r"^ConditionPathExists=(.*)$", waits, re.MULTILINE)
        assert (self.root.path / identity.lstrip("/")).exists(), "systemd would still wait for the identity"
        settings = [*re.findall(r"^Environment=(\w+=.*)$", unit, re.MULTILINE)]
        (file,) = re.findall(r"^EnvironmentFile=-?(.*)$", unit, re.MULTILINE)
        settings += re.findall(r"^(\w+=.*)$", (self.root.path / file.lstrip("/")).read_text(), re.MULTILINE)
        known = dict(line.split("=", 1) for line in settings)
        (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        words = [word for part in command.split() for word in _expand(part, known)]
        (user,) = re.findall(r"^User=(.*)$", unit, re.MULTILINE)
        runs = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words]
        self._keep("agent", lambda log: self.root.popen(runs, netns=self.device.name, env=known, **log))

    def _start(self, name: str, command: list[str], runs: Callable[[str], bool]) -> str:
        """Until it runs, which is told from what it said; what that was."""
        process = self._keep(name, lambda log: subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, **log))
        deadline = time.monotonic() + START_S
        while not runs(said := self.running[name][1].read_text()) and time.monotonic() < deadline:
            assert process.poll() is None, f"{name} ended: {said}"
            time.sleep(0.1)
        return said

    def _keep(self, name: str, start) -> subprocess.Popen[str]:
        path = self.folder / f"{name}.log"
        with path.open("w") as log:
            process = start({"stdout": log, "stderr": subprocess.STDOUT})
        self.running[name] = process, path
        self.stack.callback(end_of, process)
        return process


def _expand(word: str, known: dict[str, str]) -> list[str]:
    """As systemd does: ${NAME} is a part of a word, $NAME any number of words."""
    if word.startswith("$") and not word.startswith("${"):
        return known[word[1:]].split()
    return [re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], word)]


@contextmanager
def reader(folder: Path, wheels: Path, cpu: str) -> Iterator[Follower]:
    """Somebody who has the page open; `wheels` is what the Pi's pip finds."""
    with (
        realm_folder() as own,
        lan(2) as (device, hub),
        unpacked_root("arm64", folder, cpu=cpu) as root,
        ExitStack() as stack,
    ):
        for name in ("home/.ssh", "bin", "own"):
            (own / name).mkdir(parents=True, mode=0o700)
        system = stack.enter_context(
            subprocess.Popen(
                ["unshare", "--mount", "--propagation=private", "sh", "-c", _OWN_SYSTEM, "sh", own / "own"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert system.stdin is not None and system.stdout is not None  # noqa: PT018
        stack.callback(system.stdin.close)
        assert system.stdout.readline() == "up\n"
        _clone(own / "home/ferryman")
        shutil.copytree(wheels, root.path / "wheels")
        root.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n")
        root.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /wheels\n")
        follower = Follower(own, root, device, hub, system.pid, stack)
        _host(follower)
        yield follower


def _clone(clone: Path) -> None:
    """What the wheel is made from and the page names, with the environment of these tests."""
    (clone / "tests").mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in (*CLONE, "tests/__init__.py", "tests/support"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=ignore, symlinks=True)
        else:
            shutil.copy2(source, clone / name)
    (clone / ".venv").mkdir()
    for part in (ROOT / ".venv").iterdir():
        if part.name != ".ready":
            (clone / ".venv" / part.name).symlink_to(part)
    (clone / ".venv/.ready").touch()
    wheel = arm_wheel.arm_wheel()
    script = f'mkdir -p "$1" && cp {wheel} "$1" && echo "Successfully built {wheel.name}"'
    (clone / arm_wheel.BUILD.relative_to(ROOT)).write_text(f"#!/bin/sh\n{script}\n")


def _host(follower: Follower) -> None:
    """Programs that would go to this machine's own files go to the reader's."""
    follower.replaced["make's environment"] = "the clone has that of these tests"
    follower.replaced["the cross-build"] = "make hands out the wheel that the tests cross-built of the same sources"
    follower.replaced["sudo on the host"] = "a mount namespace whose /etc is a copy"
    follower.replaced["~/.ssh of ssh and scp"] = "told by an option: they ask the system for it, not HOME"
    home, own = follower.home, follower.folder
    enter = f"nsenter --mount=/proc/{follower.system}/ns/mnt --net=/run/netns/{follower.hub.name} --wd=. --"
    shims = {"sudo": f'exec {enter} "$@"'}
    (home / ".ssh/config").write_text(
        f"IdentityFile {home}/.ssh/id_ed25519\nUserKnownHostsFile {home}/.ssh/known_hosts\nStrictHostKeyChecking yes\n"
        "BatchMode yes\nIdentitiesOnly yes\nGlobalKnownHostsFile none\n"
    )
    shims |= {name: f'exec /usr/bin/{name} -F {home}/.ssh/config "$@"' for name in ("ssh", "scp")}
    for name, text in shims.items():
        (own / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (own / "bin" / name).chmod(0o755)
    settings = {
        "HOME": str(home),
        "PATH": f"{own}/bin:{_SYSTEM}",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "FERRYMAN_CACHE": str(cache_dir()),
    }
    (own / "env").write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()))
    (own / "cwd").write_text(f"{home}\n")
