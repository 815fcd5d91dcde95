"""One thread for each who is told: a dead or slow one holds up nobody else.

A notice is sent until it was taken, with growing pauses; one that is refused holds up no other.
Webhooks are POSTed a `Notice` as JSON and answer 2xx; everything else goes through Apprise (https://github.com/caronc/apprise).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ferryman import __version__
from ferryman.devices.fleet.alerts.book import Book, Key, sink_name
from ferryman.devices.fleet.alerts.config import Tell
from ferryman.devices.fleet.alerts.words import TEXT_MAX_CHARS, Redaction, cut
from ferryman.devices.mqtt import backoff_s
from ferryman.runtime.contracts.alert import Notice
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import encode

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
RETRY_FIRST_S, RETRY_CAP_S = 2.0, 600.0
LOOK_S = 1.0
JOIN_S = 3.0
_OK, _REFUSED = range(200, 300), range(400, 500)
_LATER = {408, 429}
"""Request timeout, too many requests: not this notice's fault."""
_REDACTION = Redaction()

Deliver = Callable[[Notice], None]
"""Returns once it was taken.

Raises:
    OSError: it was not.
"""


class RefusedError(OSError):
    """They are there, and do not take this notice."""


def deliver_to(tell: Tell, called: str) -> Deliver:
    """How somebody is told.

    Raises:
        CallerError: the URL is none that Apprise knows.
    """
    if tell.url.partition(":")[0].lower() in {"http", "https"}:
        try:
            hook = _Webhook(tell.url)
        except ValueError:  # its words may quote a password
            raise CallerError(
                f"alerts, {called}: no URL of a webhook; expected http[s]://[user:password@]host[:port]/path, where "
                "other characters are %-encoded"
            ) from None
        return hook.post
    apprise = importlib.import_module("apprise")
    _REDACTION.hide(tell.url)
    logging.getLogger("apprise").addFilter(_REDACTION)  # it logs URLs
    sink = apprise.Apprise()
    if not sink.add(tell.url):
        raise CallerError(f"alerts, {called}: Apprise knows no such URL; see https://appriseit.com/services/")
    kinds = apprise.NotifyType

    def deliver(notice: Notice) -> None:
        kind = kinds.SUCCESS if notice.resolved else kinds.FAILURE if notice.severity == "critical" else kinds.WARNING
        if not sink.notify(title=notice.title, body=notice.text, notify_type=kind):
            raise OSError("Apprise could not deliver it; its log says why")

    return deliver


class _Webhook:
    """Takes notices over HTTP; redirects are not followed."""

    def __init__(self, url: str) -> None:
        """Raise ValueError where it is no URL of one."""
        parts = urlsplit(url)
        if not parts.hostname or not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
            raise ValueError("it names no host, or what is no URL")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": f"ferryman/{__version__}"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"

    def post(self, notice: Notice) -> None:
        connection = self._kind(self._host, self._port, timeout=TIMEOUT_S)
        late = threading.Event()
        try:
            connection.connect()
            watchdog = threading.Timer(TIMEOUT_S, _hang_up, (connection, late))  # a byte now and then is no answer
            watchdog.daemon = True
            watchdog.start()
            try:
                connection.request("POST", self._path, encode(notice), self._headers)
                answer = connection.getresponse()
            finally:
                watchdog.cancel()
        except (http.client.HTTPException, OSError) as error:
            if late.is_set():
                raise TimeoutError(f"the webhook has not answered within {TIMEOUT_S:g} s") from error
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if answer.status in _OK:
            return
        said = f"the webhook answers {answer.status} {answer.reason}"
        if answer.status in _REFUSED and answer.status not in _LATER:
            raise RefusedError(said)
        raise OSError(said)


def _hang_up(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()
    if (open_socket := connection.sock) is not None:
        with contextlib.suppress(OSError):
            open_socket.shutdown(socket.SHUT_RDWR)


class _Tries(NamedTuple):
    """Of a notice that was not taken."""

    number: int
    next_s: float
    """Monotonic."""


_NONE = _Tries(0, 0.0)


class Sender:
    """Tells one of them what the book says is due."""

    def __init__(self, book: Book, at: int, tell: Tell) -> None:
        """Raise CallerError where the URL cannot be used."""
        self.name = sink_name(at)
        self.told = self.failed = 0
        self._book = book
        self._deliver = deliver_to(tell, self.name)
        self._stop = threading.Event()
        self._abandoned = False
        self._tries: dict[Key, _Tries] = {}
        self._thread = threading.Thread(target=self._run, name=f"alerts-{self.name}", daemon=True)

    def start(self) -> None:
        """Begin telling."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have it end after the notice that is under way."""
        self._stop.set()

    def join(self) -> None:
        """Wait for it, but not for a sink that hangs: what it was not told is told after the next start."""
        self._thread.join(JOIN_S)
        self._abandoned = self._thread.is_alive()

    def _run(self) -> None:
        attempt = 0
        while not self._stop.wait(LOOK_S if not attempt else backoff_s(attempt - 1, RETRY_FIRST_S, RETRY_CAP_S)):
            attempt = 0 if self._tell_all() else attempt + 1

    def _tell_all(self) -> bool:
        """Tell what is due, first what was not tried before; false: they do not answer."""
        some = self._book.due(self.name, time.monotonic(), time.time())
        self._tries = {due.key: self._tries[due.key] for due in some if due.key in self._tries}
        for due in sorted(some, key=lambda due: self._tries.get(due.key, _NONE).number):
            before = self._tries.get(due.key, _NONE)
            if self._stop.is_set():
                return True
            if time.monotonic() < before.next_s:
                continue
            try:
                self._deliver(due.notice)
            except Exception as error:  # noqa: BLE001  # a plug-in's; the thread must live
                self.failed += 1
                said = cut(str(error), TEXT_MAX_CHARS)
                log.warning("alerts: %s could not be told of %r: %s", self.name, due.notice.title, said)
                wait_s = backoff_s(before.number, RETRY_FIRST_S, RETRY_CAP_S)
                self._tries[due.key] = _Tries(before.number + 1, time.monotonic() + wait_s)
                if isinstance(error, RefusedError):
                    continue
                return False
            if self._abandoned:  # another may go by its name
                return True
            self.told += 1
            self._tries.pop(due.key, None)
            self._book.done(self.name, due, time.monotonic())
        return True
