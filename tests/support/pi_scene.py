"""An emulated Pi and its broker at one switch, in a network namespace of its own each, the host beside them."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.authority import realm_folder
from tests.support.device_root import Root, unpacked_root
from tests.support.mosquitto import BINARY
from tests.support.netns import Link, lan
from tests.support.pi_device import COMMAND, packed_device
from tests.support.sshd import _keygen

DEVICE = "pi"
STATE = Path("/var/lib/ferryman")
PATIENCE_S = 120.0
"""For what takes a device some seconds: qemu is ten times as slow, on two processors that do other work."""
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
Subsystem sftp internal-sftp
SetEnv QEMU_CPU={cpu}
"""
"""sshd gives its sessions a new environment: what they run would be on a processor of qemu's own choice."""


@dataclass
class Scene:
    """What runs, and how the host speaks to it."""

    folder: Path
    root: Root
    device: Link
    hub: Link
    stack: ExitStack
    logs: list[Path] = field(default_factory=list)
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    broker: subprocess.Popen[str] | None = None

    @property
    def database(self) -> Path:
        return self.folder / "ferryman.sqlite"

    @property
    def repository(self) -> str:
        """As the device reaches it."""
        return f"http://{self.hub.address}:8080"

    @property
    def broker_of_devices(self) -> str:
        return f"mqtts://{self.hub.address}"

    def broker_of(self, host: str) -> str:
        """As one of `ferryman ca client` reaches it."""
        identity = self.folder / f"{host}.pem"
        return f"mqtts://{self.hub.address}:8884?ca={identity}&cert={identity}"

    def ferryman(self, *arguments: str | Path, timeout_s: float = 300.0) -> str:
        """Run it on the host; what it printed."""
        started = time.monotonic()
        done = subprocess.run(
            [*_COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        shown = " ".join(map(str, arguments[:3]))
        print(f"ferryman {shown}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        assert done.returncode == 0, f"ferryman {shown}: {done.stdout}{done.stderr}\n{self.last_words()}"
        return done.stdout + done.stderr

    def service(self, name: str, command: Sequence[str | Path], *, netns: Link | None = None) -> subprocess.Popen[str]:
        """Something that runs on this machine until the end."""
        whole = ["ip", "netns", "exec", netns.name, *map(str, command)] if netns else [*map(str, command)]
        return self._keep(name, lambda log: subprocess.Popen(whole, stdout=log, stderr=log, text=True, cwd=self.folder))

    def on_device(self, name: str, command: Sequence[str | Path]) -> subprocess.Popen[str]:
        """Something that runs on the device until the end."""
        return self._keep(
            name, lambda log: self.root.popen(command, netns=self.device.name, stdout=log, stderr=subprocess.STDOUT)
        )

    def start_agent(self, *options: str) -> subprocess.Popen[str]:
        """As the unit starts it, though not by systemd."""
        command = [COMMAND, "-v", "agent", "--device", DEVICE, "--broker", self.broker_of_devices, *options]
        return self.on_device("agent", ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command])

    def start_broker(self) -> None:
        """mosquitto, from what `ferryman ca broker` wrote."""
        assert BINARY is not None
        self.broker = self.service("broker", [BINARY, "-c", self.folder / "ca-broker/mosquitto.conf"], netns=self.hub)
        self.until("the broker listens", lambda: answers(self.hub.address, 8883))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def until(self, what: str, holds: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait.

        Raises:
            AssertionError: it did not come; with what everybody said last.
        """
        deadline = time.monotonic() + timeout_s
        while not holds():
            failed = [process.args for process in self.running if process.poll()]
            assert not failed, f"ended meanwhile: {failed}\n{self.last_words()}"
            assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}\n{self.last_words()}"
            time.sleep(0.2)

    def stored(self, query: str, *values: object) -> list[tuple]:
        """Rows of what the collector keeps; none where it has not begun."""
        if not self.database.exists():
            return []
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as opened:
            return opened.execute(query, values).fetchall()

    def last_words(self) -> str:
        """The end of each log."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self.logs)

    def _keep(self, name: str, start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
        log = self.log(name)
        if log not in self.logs:
            self.logs.append(log)
        with log.open("a") as file:
            process = start(file)
        self.running.append(process)
        self.stack.callback(end_of, process)
        return process

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "FERRYMAN_DEVICES": str(self.folder / "devices.toml"),
            "FERRYMAN_REPOSITORY": str(self.folder / "repository"),
            "FERRYMAN_KEYS": str(self.folder / "keys"),
        }


USER = "ferryman"
_COMMAND = (sys.executable, "-m", "ferryman.cli")


@contextmanager
def emulated_pi(folder: Path, cpu: str) -> Iterator[Scene]:
    """The device with its sshd, the authority with its broker and three hosts, the collector, an empty repository."""
    with (
        realm_folder() as realm,
        lan(2) as (device, hub),
        unpacked_root("arm64", folder, cpu=cpu, packed=packed_device()) as root,
        ExitStack() as stack,
    ):
        scene = Scene(realm, root, device, hub, stack)
        _set_up_device(scene)
        _set_up_authority(scene)
        scene.start_broker()
        collect = ["collect", "--broker", scene.broker_of("collector"), "--database", scene.database]
        scene.service("collector", [*_COMMAND, *collect])
        scene.ferryman("keys", "init", realm / "keys", "--family", "folded", "--offline", realm / "offline")
        scene.ferryman("keys", "root", "-o", realm / "root.json")
        root.write(f"{STATE}/trust/root.json", (realm / "root.json").read_bytes())
        root.run(["chown", "-R", f"{USER}:{USER}", f"{STATE}/trust"])
        serve = [*_COMMAND, "serve", realm / "repository", "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104
        scene.service("serve", serve, netns=hub)
        yield scene


def _set_up_device(scene: Scene) -> None:
    """What provisioning does: a user with a folder, who may be logged in as."""
    key, host_key = _keygen(scene.folder / "key"), _keygen(scene.folder / "host_key")
    root = scene.root
    root.run(["useradd", "--system", "--home-dir", STATE, "--create-home", "--shell=/bin/sh", "--password=*", USER])
    root.write("/etc/ssh/ssh_host_ed25519_key", host_key.read_bytes(), 0o600)
    root.write("/etc/ssh/sshd_config", _SSHD.format(cpu=root.cpu))
    root.write(f"{STATE}/.ssh/authorized_keys", key.with_suffix(".pub").read_bytes(), 0o600)
    (root.path / "etc/profile.d").mkdir(exist_ok=True)
    root.run(["chown", "-R", f"{USER}:{USER}", STATE])
    scene.on_device("sshd", ["/usr/sbin/sshd", "-D", "-e"])
    public = host_key.with_suffix(".pub").read_text().split()[:2]
    known = scene.folder / "known_hosts"
    known.write_text(f"{scene.device.address} {' '.join(public)}\n")
    settings = {
        "host": scene.device.address,
        "user": USER,
        "key": key,
        "known_hosts": known,
        "command": COMMAND,
        "root": STATE,
        "broker": scene.broker_of("operator"),
    }
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    (scene.folder / "devices.toml").write_text("\n".join([f"[{DEVICE}]", *lines]) + "\n")


def _set_up_authority(scene: Scene) -> None:
    scene.ferryman("ca", "init", scene.folder / "ca")
    scene.ferryman("ca", "server", scene.folder / "ca", scene.hub.address)
    scene.ferryman("ca", "broker", scene.folder / "ca")
    for host in ("collector", "operator", "rollout"):
        scene.ferryman("ca", "client", scene.folder / "ca", host, "--role", host)


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def end_of(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)
