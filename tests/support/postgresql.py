"""A real PostgreSQL server of our own: one a test session, a new database for each test.

It lives in a temporary folder on a free loopback port, as another user than root if need be, and wants a password.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.mosquitto import free_port

PASSWORD = "s3cret-word"  # noqa: S105  # of a server that only these tests reach
_HOMES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name)) if os.name else []
_numbers = itertools.count(1)


def _binary(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([*map(str, reversed(_HOMES)), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install postgresql)")
    return found


def _user() -> str | None:
    """Who the server runs as; None: whoever runs the tests, who is not root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgreSQL:
    """Start, kill and start again."""

    def __init__(self, folder: Path, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        """Make a cluster in `folder`/data; `durable`: with fsync, as a server that keeps something would run."""
        self.port = free_port()
        self._user = _user()
        self._data = folder / "data"
        self._log = folder / "postgresql.log"
        self._process: subprocess.Popen[bytes] | None = None
        fsync = "on" if durable else "off"
        settings = [f"fsync={fsync}", f"full_page_writes={fsync}", "shared_buffers=32MB", "max_connections=60"]
        settings += ["listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", *options]
        self._settings = [word for setting in settings for word in ("-c", setting)]
        self._data.mkdir()
        password = folder / "password"
        password.write_text(PASSWORD)
        for path in (folder, self._data, password):
            self.own(path)
        initdb = [_binary("initdb"), "-D", str(self._data), "-U", "ferryman", "-A", "scram-sha-256", "-N"]
        initdb += ["--pwfile", str(password), "--locale=C.UTF-8", "-E", "UTF8"]
        made = subprocess.run(self._as_user(initdb), capture_output=True, check=False, cwd=folder)
        assert made.returncode == 0, made.stderr.decode()

    def url(self, database: str = "postgres", *, password: str = PASSWORD, user: str = "ferryman") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        import psycopg

        command = self._as_user([_binary("postgres"), "-D", str(self._data), *self._settings])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._data)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(self._log.read_text()) from None
                time.sleep(0.05)
            else:
                return

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """SIGKILL to the server and all its processes at once."""
        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait(60)
        self._process = None

    def restart(self) -> None:
        """End every connection in the middle of whatever it does, and start again."""
        self.kill()
        self.start()

    def new_database(self, name: str) -> str:
        """Make a database, and tell its URL."""
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def own(self, path: Path) -> None:
        """Give a file or folder to whom the server runs as."""
        if self._user is not None:
            shutil.chown(path, self._user)

    def _as_user(self, command: Sequence[str]) -> list[str]:
        if self._user is None:
            return list(command)
        return [
            "setpriv",
            f"--reuid={self._user}",
            "--regid",
            str(pwd.getpwnam(self._user).pw_gid),
            "--clear-groups",
            "--",
            *command,
        ]


@contextmanager
def running(*, durable: bool = False, options: Sequence[str] = (), folder: Path | None = None) -> Iterator[PostgreSQL]:
    """A server of one's own, for tests that kill it."""
    _binary("initdb")
    place = Path(tempfile.mkdtemp(prefix="ferryman-postgresql-", dir=folder))
    try:
        server = PostgreSQL(place, durable=durable, options=options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(place, ignore_errors=True)


@functools.cache
def shared() -> PostgreSQL:
    """The session's server; it ends with the process."""
    manager = running()
    server = manager.__enter__()
    atexit.register(manager.__exit__, None, None, None)
    return server


@contextmanager
def new_database() -> Iterator[str]:
    """A URL of the session's server where there is nothing yet: a schema of its own, which is made far faster."""
    server, name = shared(), f"test_{next(_numbers)}"
    server.execute(f"CREATE SCHEMA {name}")
    yield f"{server.url()}?options=-csearch_path%3D{name}"
    server.execute(f"DROP SCHEMA {name} CASCADE")
