"""A real nginx that serves a repository with the configuration that the documentation gives."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mosquitto import free_port

DOCUMENT = Path(__file__).parents[2] / "docs" / "ota" / "repository.md"
_AROUND = """
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/pid;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{server}
}}
"""


def documented() -> str:
    """The `server` block of docs/ota/repository.md."""
    (found,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return found


@contextmanager
def nginx(folder: Path, repository: Path) -> Iterator[str]:
    """Serve `repository`; the server's own files go to `folder`."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    folder.mkdir()
    port = free_port()
    server = documented()
    for documented_words, ours in {
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "root /srv/repository;": f"root {repository};",
    }.items():
        assert server.count(documented_words) == 1
        server = server.replace(documented_words, ours)
    user = "user root;" if os.geteuid() == 0 else ""  # the folders of a test are its owner's alone
    (folder / "nginx.conf").write_text(_AROUND.format(folder=folder, user=user, server=server))
    argv = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        try:
            _wait(port, process)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("nginx does not listen")
