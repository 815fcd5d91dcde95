"""An HTTP server that misbehaves on request, and a forward proxy; both count what goes through them."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ENDLESS = b"x" * 4096


@dataclass
class Bad:
    """What goes wrong; all of it at once if need be."""

    drop_every: int | None = None
    """Body bytes after which a connection is cut."""
    statuses: list[int] = field(default_factory=list)
    """Answers to the next requests, instead of the file."""
    status_of: dict[str, int] = field(default_factory=dict)
    ignore_range: bool = False
    wrong_range: bool = False
    endless: bool = False
    """The body never ends, and there is no Content-Length."""
    truncate: int | None = None
    """Send only so many body bytes, and say there are no more."""
    delay_s: float = 0.0
    """Before each answer."""
    bytes_s: float | None = None
    silent_after: int | None = None
    """Body bytes after which nothing comes any more."""
    drip: bool = False
    """The head of an answer never ends, but a byte of it comes now and then; so does that of a proxy's."""
    redirects: dict[str, str] = field(default_factory=dict)
    flip: set[int] = field(default_factory=set)
    """Offsets of bytes of every file that are sent wrong."""
    headers: dict[str, str] = field(default_factory=dict)


class BadServer(ThreadingHTTPServer):
    """Serves a folder or a dictionary."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: dict[str, bytes] | Path, bad: Bad | None = None, host: str = "127.0.0.1") -> None:
        self.files = files
        self.bad = bad or Bad()
        self.asked: list[tuple[str, str]] = []
        """Path and Range of every request."""
        self.sent = 0
        """Body bytes, as far as the kernel took them."""
        self.dripping = 0
        """Connections that drip now."""
        self.lock = threading.Lock()
        super().__init__((host, 0), _Handler)

    @property
    def url(self) -> str:
        scheme = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
        return f"{scheme}://{self.server_address[0]}:{self.server_address[1]}"

    def find(self, path: str) -> bytes | None:
        if isinstance(self.files, dict):
            return self.files.get(path)
        place = self.files / path
        return place.read_bytes() if place.is_file() else None

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    server: BadServer

    def log_message(self, *_args):
        pass

    def do_GET(self):
        bad, path = self.server.bad, urlsplit(self.path).path.lstrip("/")
        asked = self.headers.get("Range", "")
        with self.server.lock:
            self.server.asked.append((path, asked))
            status = bad.statuses.pop(0) if bad.statuses else bad.status_of.get(path, 200)
        if bad.drip:
            return self._drip()
        if bad.delay_s:
            time.sleep(bad.delay_s)
        if path in bad.redirects:
            return self._head(302, {"Location": bad.redirects[path], "Content-Length": "0"})
        data = self.server.find(path)
        if status != 200 or data is None:
            return self._head(status if status != 200 else 404, {"Content-Length": "0"})
        if bad.endless:
            self._head(200, {"Connection": "close"})
            return self._body(ENDLESS, endless=True)
        return self._file(data, asked)

    def do_CONNECT(self):
        self.do_GET()

    def _drip(self) -> None:
        with self.server.lock:
            self.server.dripping += 1
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
            while self.server.bad.drip:
                self.wfile.write(b"a")
                time.sleep(0.05)
        finally:
            self.close_connection = True
            with self.server.lock:
                self.server.dripping -= 1

    def _file(self, data: bytes, asked: str) -> None:
        bad, start, end = self.server.bad, 0, len(data)
        read = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if read and not bad.ignore_range:
            start, end = int(read[1]), min(end, int(read[2] or end - 1) + 1)
            if start >= len(data):
                return self._head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            told = start + 1 if bad.wrong_range else start
            headers = {"Content-Range": f"bytes {told}-{end - 1}/{len(data)}"}
        else:
            headers = {}
        body = memoryview(data)[start:end]
        if bad.flip:
            changed = bytearray(body)
            for at in bad.flip:
                if start <= at < end:
                    changed[at - start] ^= 1
            body = memoryview(bytes(changed))
        if bad.truncate is not None:
            body = body[: bad.truncate]
        self._head(206 if "Content-Range" in headers else 200, {**headers, "Content-Length": str(len(body))})
        return self._body(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.server.bad.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _count(self, sent: int) -> None:
        with self.server.lock:
            self.server.sent += sent

    def _body(self, body: bytes | memoryview, *, endless: bool = False) -> None:
        bad, sent = self.server.bad, 0
        rest = memoryview(body)
        while rest or endless:
            if endless and not rest:
                rest = memoryview(body)
            count = min(len(rest), 65536 if bad.bytes_s is None else max(1, int(bad.bytes_s / 20)))
            stop = bad.drop_every if bad.drop_every is not None else bad.silent_after
            if stop is not None:
                count = max(0, min(count, stop - sent))
            if not count:
                if bad.silent_after is not None:
                    time.sleep(30)
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._count(count)  # first: whoever has read it may look at once
            try:
                self.wfile.write(rest[:count])
            except OSError:
                self._count(-count)
                raise
            rest, sent = rest[count:], sent + count
            if bad.bytes_s is not None:
                time.sleep(count / bad.bytes_s)


@contextlib.contextmanager
def serving(
    files: dict[str, bytes] | Path, bad: Bad | None = None, host: str = "127.0.0.1", certificate: Path | None = None
) -> Iterator[BadServer]:
    """A server on a port of its own; with TLS, if it has a certificate and its key."""
    with BadServer(files, bad, host) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class Proxy(ThreadingHTTPServer):
    """A forward proxy: CONNECT and absolute URLs of plain HTTP."""

    daemon_threads = True

    def __init__(self, refuse: int | None = None, host: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self.authorization: list[str | None] = []
        self.refuse = refuse
        super().__init__((host, 0), _ProxyHandler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *_args):
        pass

    def do_CONNECT(self):
        self._forward(self.path, b"")

    def do_GET(self):
        parts = urlsplit(self.path)
        head = f"GET {parts.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in self.headers.items()) + "\r\n"
        self._forward(parts.netloc, head.encode())

    def _forward(self, netloc: str, head: bytes) -> None:
        self.server.asked.append(self.path)
        self.server.authorization.append(self.headers.get("Proxy-Authorization"))
        self.close_connection = True
        if self.server.refuse:
            self.send_error(self.server.refuse)
            return
        host, _, port = netloc.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            if head:
                upstream.sendall(head)
            else:
                self.send_response(200)
                self.end_headers()
            pair = {self.connection: upstream, upstream: self.connection}
            while True:
                ready, _, _ = select.select(list(pair), [], [], 30)
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    pair[one].sendall(data)
                if not ready:
                    return


@contextlib.contextmanager
def proxying(refuse: int | None = None) -> Iterator[Proxy]:
    """A proxy on a port of its own."""
    with Proxy(refuse) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
