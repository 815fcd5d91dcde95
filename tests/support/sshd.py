"""A real sshd on a free loopback port, with keys of its own; it is gone when the `with` ends."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.mosquitto import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class Sshd:
    """Where a running sshd listens, and what gets a client in."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path
    other_key: Path
    """A key that sshd does not let in."""
    empty_known_hosts: Path
    log: Path
    pid: int

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve connections."""
        return psutil.Process(self.pid).children(recursive=True)

    def freeze_sessions(self) -> int:
        """Let every connection fall silent, as a device out of reach does."""
        silent = 0
        for process in self.sessions():
            with contextlib.suppress(psutil.NoSuchProcess):  # the helper of a login just done
                process.suspend()
                silent += 1
        return silent

    def kill_sessions(self) -> int:
        """Cut every connection, as a dead link would."""
        victims = self.sessions()
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(victims)


@contextlib.contextmanager
def running_sshd(directory: Path, *, environment: Sequence[str] = ()) -> Iterator[Sshd]:
    """Start sshd with its files in `directory` (absolute: sshd re-executes itself).

    `environment` holds NAME=VALUE settings that every command on the "device" sees.
    """
    if SSHD is None:
        raise FileNotFoundError("sshd is not installed: apt-get install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # privilege separation's empty root
    directory = directory.resolve()
    host_key, key, other_key = (_keygen(directory / name) for name in ("host", "user", "other"))
    authorized = directory / "authorized_keys"
    authorized.write_bytes(key.with_suffix(".pub").read_bytes())
    port = free_port()
    public = host_key.with_suffix(".pub").read_text().split()[:2]
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    empty = directory / "known_hosts_empty"
    empty.touch()
    log = directory / "sshd.log"
    config = directory / "sshd_config"
    config.write_text(_config(port, host_key, authorized, directory, environment))
    daemon = subprocess.Popen([SSHD, "-D", "-f", str(config), "-E", str(log)], stdin=subprocess.DEVNULL)
    server = Sshd("127.0.0.1", port, getpass.getuser(), key, known_hosts, other_key, empty, log, daemon.pid)
    try:
        _wait_until_listening(server, daemon)
        yield server
    finally:
        if daemon.poll() is None:
            server.kill_sessions()
        daemon.terminate()
        daemon.wait(timeout=60)


def _config(port: int, host_key: Path, authorized: Path, directory: Path, environment: Sequence[str]) -> str:
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {authorized}",
        f"PidFile {directory / 'sshd.pid'}",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "UsePAM no",
        "StrictModes no",
        "Subsystem sftp internal-sftp",
    ]
    if environment:
        quoted = " ".join(f'"{setting}"' for setting in environment)
        lines.append(f"SetEnv {quoted}")
    return "\n".join(lines) + "\n"


def _keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def _wait_until_listening(server: Sshd, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection((server.host, server.port), timeout=1):
            return
        time.sleep(0.02)
    log = server.log.read_text() if server.log.exists() else "(no log)"
    raise RuntimeError(f"sshd did not start listening on port {server.port}: {log}")
