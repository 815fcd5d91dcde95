"""Whom alerts are told to: a mail server and a webhook, in this process."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler

from tests.support.mosquitto import free_port


class Mailbox(MessageHandler):
    def __init__(self):
        super().__init__()
        self.mails = []

    def handle_message(self, message):
        self.mails.append(message)


@contextmanager
def mail_server() -> Iterator[tuple[str, Mailbox]]:
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        yield f"mailto://127.0.0.1:{server.port}?from=collector@example.com&to=ops@example.com&mode=insecure", box
    finally:
        server.stop()


class Hook:
    """A webhook that answers as told."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.answers: list[int] = []
        """Before the first 200."""
        self.refuses: str | None = None
        """The device of which it never wants to hear."""
        self.hang = threading.Event()
        self.hangs = False
        self.asked = 0
        self.authorization: str | None = None


@contextmanager
def web_hook() -> Iterator[tuple[str, Hook]]:
    hook = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            hook.asked += 1
            hook.authorization = self.headers["Authorization"]
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if hook.hangs:
                hook.hang.wait(60)
            status = hook.answers.pop(0) if hook.answers else 200
            if any(alert["device"] == hook.refuses for alert in body["alerts"]):
                status = 413
            if status == 200:
                hook.bodies.append(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?key=1", hook
    finally:
        hook.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()
