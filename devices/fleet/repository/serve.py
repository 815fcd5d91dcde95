"""A small static server for a repository: GET and HEAD over HTTP/1.1, with ranges; enough for a small fleet.

Only what a device asks for is served: names of our own kind under metadata/, targets/ and packs/, never by way of a
symbolic link. For more devices, or for TLS, any web server or object store serves the same folder; see
docs/ota/repository.md.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import stat
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from ferryman.runtime.contracts.errors import CallerError

CONNECTIONS_MAX = 512
"""Each has a thread; more wait to be accepted."""
IDLE_S = 30.0
"""A connection is closed whose next request has not come in so long, head and all; or that takes nothing so long."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_PATH = re.compile(rf"/((?:metadata|targets|packs)(?:/{_PART})+)", re.ASCII)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_LOG = logging.getLogger(__name__)


class RepositoryServer(ThreadingHTTPServer):
    """Serves one repository, a thread a connection.

    Args:
        root: the repository.
        host: address to listen at.
        port: 0: any free one; see `url`.

    Raises:
        CallerError: there is no repository, or the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        if not (root / "metadata" / "timestamp.json").is_file():
            raise CallerError(f"{root} is no repository; make one: ferryman keys init")
        self.root = root.resolve()
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise CallerError(f"cannot listen at {host} port {port}: {error.strerror}") from error

    @property
    def url(self) -> str:
        """Where devices find it."""
        host, port = self.server_address[:2]
        name = host.decode() if isinstance(host, bytes) else host
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # socketserver's signature
        """Start a thread, once there is one to spare."""
        self._free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        """A client that goes away is no news."""
        _LOG.debug("connection of %s", client_address, exc_info=True)


class _Heads(io.RawIOBase):
    """What a connection says, until a deadline: a byte now and then does not move it."""

    def __init__(self, connection: socket.socket) -> None:
        self.deadline_s = 0.0
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # io's signature
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the head of a request takes too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True
    server_version = "ferryman"
    sys_version = ""

    def __init__(self, request: Any, client_address: Any, server: BaseServer) -> None:  # noqa: ANN401
        assert isinstance(server, RepositoryServer)  # noqa: S101  # it made us
        self.root = server.root
        super().__init__(request, client_address, server)

    def setup(self) -> None:
        super().setup()
        self.rfile.close()  # it gives each byte all of the time
        self._heads = _Heads(self.connection)
        self.rfile = io.BufferedReader(self._heads)

    def handle_one_request(self) -> None:
        self._heads.deadline_s = time.monotonic() + self.timeout
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.connection.settimeout(self.timeout)
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what follows would be read as a request
        descriptor = self._open()
        if descriptor is None:
            self._say(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            return
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            span = _span(self.headers.get("Range"), size)
            headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
            if span is None:
                self._say(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    {"Content-Range": f"bytes */{size}", "Content-Length": "0"},
                )
                return
            start, length, partial = span
            headers["Content-Length"] = str(length)
            if partial:
                headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
            headers["Cache-Control"] = "no-cache" if self.path.endswith("/timestamp.json") else "public, max-age=86400"
            self._say(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK, headers)
            if body and length:
                self.connection.sendfile(file, start, length)

    def _say(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _open(self) -> int | None:
        """The file asked for; a name that no publisher writes is not looked for."""
        match = _PATH.fullmatch(self.path)
        if match is None:
            return None
        parts = match[1].split("/")
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                os.close(folder)
                folder = inner
            found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            return None
        finally:
            os.close(folder)
        if not _is_file(found):
            os.close(found)
            return None
        return found

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  # http.server's signature
        _LOG.debug("%s %s", self.address_string(), format % args)


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _span(asked: str | None, size: int) -> tuple[int, int, bool] | None:
    """(start, length, whether it is a part) of what a Range header asks for; None: nothing of it is there.

    A header that asks for several ranges, or is malformed, is ignored, as RFC 9110 allows.
    """
    match = _RANGE.fullmatch(asked.strip()) if asked else None
    if match is None or not (match[1] or match[2]):
        return 0, size, False
    if not match[1]:
        length = min(int(match[2]), size)
        return (size - length, length, True) if length else None
    start = int(match[1])
    end = min(int(match[2]) if match[2] else size - 1, size - 1)
    if match[2] and int(match[2]) < start:
        return 0, size, False
    return (start, end - start + 1, True) if start < size else None
