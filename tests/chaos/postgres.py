"""A real PostgreSQL server that can be killed; a folder of its own, a loopback port of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
USER = "postgres"
DATABASE = "ferryman"
_START_S = 60.0
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = {port}
max_wal_size = 256MB
max_connections = 50
"""


def why_not() -> str:
    """Why there can be no server here; empty: there can."""
    if not BINARIES:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and there is no setpriv: apt-get install util-linux"
    return ""


class Postgres:
    """Start, kill and start again; the folder must be empty, and others must be able to reach it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"postgresql://{USER}@127.0.0.1:{port}/{DATABASE}"
        self._folder = folder / "data"
        self._log = folder / "server.log"
        self._port = port
        self._folder.mkdir()
        self._log.touch()
        if os.geteuid() == 0:
            for path in (self._folder, self._log):
                shutil.chown(path, USER, USER)
        self._run("initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--locale=C", "--data-checksums")
        with (self._folder / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS.format(port=port))
        self.start()
        address = ["--host=127.0.0.1", f"--port={port}", f"--username={USER}"]
        subprocess.run([BINARIES[-1] / "createdb", *address, DATABASE], check=True)

    def start(self) -> None:
        """Start it, unless it runs; a server that was killed leaves processes behind, which it waits for."""
        deadline = time.monotonic() + _START_S
        while not self.runs():
            started = self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self._log}", check=False)
            if started.returncode and time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.0 if self.runs() else 0.3)

    def runs(self) -> bool:
        return self._run("pg_ctl", "status", check=False).returncode == 0

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}", check=False)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children find out by themselves."""
        if pid := self._pid():
            os.kill(pid, signal.SIGKILL)

    def kill_backend(self, number: int) -> None:
        """SIGKILL to one that serves a client: the server then ends all others, and recovers."""
        pid = self._pid()
        if pid is None:
            return
        backends = [child for child in psutil.Process(pid).children() if "127.0.0.1" in " ".join(child.cmdline())]
        if backends:
            backends[number % len(backends)].kill()

    def _pid(self) -> int | None:
        try:
            pid = int((self._folder / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if psutil.pid_exists(pid) else None

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(BINARIES[-1] / program), f"--pgdata={self._folder}", *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command]
        log = self._log.with_name(f"{program}.log")
        with log.open("ab") as output:  # not a pipe: the server would keep it open
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", text=True, check=False
            )
        if check and done.returncode:
            raise RuntimeError(f"{program}: {log.read_text()[-2000:]}")
        return done
