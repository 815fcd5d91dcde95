"""One request and its answer; somebody else can end it at any moment."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import Cancelled, UpdateConfig
from ferryman.devices.agent.update.cutting import Cutter
from ferryman.devices.agent.update.pace import BLOCK_BYTES, Pace, Rate, Retry, retry_after_s
from ferryman.runtime.contracts.errors import LinkError, RepositoryError

POLL_S = 0.2
"""How soon a cancel is seen."""
SKIP_BYTES = 1 << 16
"""So much of an answer that ignores Range is skipped in any case, beside what was asked for."""
_DISMISS_BYTES = 1 << 12
_REDIRECTS_MAX = 3
_HEAD_BYTES = 60
"""Of a request: method, version, `Host`, `Accept-Encoding` and line ends, beside the rest of it."""
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)", re.ASCII)
_OK, _PARTIAL, _SERVER = 200, 206, range(500, 600)
_REDIRECT = {301, 302, 303, 307, 308}
_CLIENT, _LATER = range(400, 500), {408, 429}
"""Request timeout, too many requests: nothing is wrong with what was asked."""


class NotFound(RepositoryError):
    """The server says 403 or 404."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Ask:
    """What one request is to bring."""

    url: str
    start: int
    length: int | None
    """Bytes from there; None: to the end."""
    skip_max: int
    """How many bytes before `start` may be read and dropped, where the server ignores Range."""
    total: int | None = None
    """Of the whole file, if an earlier answer told; another one is another file."""


class Exchange:
    """Asks once, and gives the bytes asked for as they come; close it in any case."""

    def __init__(
        self,
        ask: Ask,
        pool: Callable[[str], urllib3.PoolManager],
        config: UpdateConfig,
        budget: DataBudget,
        rate: Rate,
        cancelled: threading.Event,
    ) -> None:
        self.total: int | None = ask.total
        self.server_date: str | None = None
        self._ask = ask
        self._pool = pool
        self._config = config
        self._budget = budget
        self._rate = rate
        self._cancelled = cancelled
        self._cutter = Cutter()
        self._left = threading.Event()
        """Nobody waits for the answer any more."""
        self._opened = threading.Event()
        self._error: Exception | None = None
        self._whole = False
        """The answer was read to its end, so that its connection can serve again."""
        self._skip = 0
        self._response: urllib3.BaseHTTPResponse | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes.

        Raises:
            Retry: it broke; what came is good.
            RepositoryError: the answer is final, and not what was asked for.
            BudgetError: no more may be spent.
            Cancelled: somebody asked to stop.
        """
        try:
            yield from self._read(self._answer())
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._end_if_cancelled()
            raise _blame(error) from error

    def interrupt(self) -> None:
        """End a read that waits; from any thread."""
        self._cutter.cut()

    def close(self) -> None:
        """Leave; a connection that is in the middle of something is cut."""
        self._left.set()
        if not self._opened.is_set():
            self._cutter.cut()  # or its thread waits for as long as a byte of the head comes now and then
        response, self._response = self._response, None
        if response is not None:
            response.release_conn() if self._whole else response.close()

    def _end_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("cancelled; what was fetched and verified is kept, the next try goes on from there")

    def _answer(self) -> urllib3.BaseHTTPResponse:
        """Wait for the answer's head. It comes on another thread, for nothing ends a connect or a look-up of a name."""
        self._end_if_cancelled()
        threading.Thread(target=self._ask_and_tell, name="fetch", daemon=True).start()
        deadline_s = time.monotonic() + 2 * self._config.timeout_s
        while not self._opened.wait(POLL_S):
            self._end_if_cancelled()
            if time.monotonic() > deadline_s:
                raise Retry(f"no answer within {2 * self._config.timeout_s:g} s")
        if self._error is not None:
            raise self._error
        assert self._response is not None  # noqa: S101  # or there were an error
        return self._response

    def _ask_and_tell(self) -> None:
        self._cutter.follow()
        try:
            self._open()
        except Exception as error:  # noqa: BLE001  # whoever waits is told, whatever it is
            self._error = error
        self._opened.set()
        if self._left.is_set():
            self.close()

    def _open(self) -> None:
        """Ask, follow redirects, and see that the answer is to what was asked."""
        url = self._ask.url
        for _ in range(_REDIRECTS_MAX + 1):
            response = self._request(url)
            if response.status not in _REDIRECT:
                self._check(response, url)
                self._response = response
                return
            target = urljoin(url, response.headers.get("Location", ""))
            response.close()
            if urlsplit(target).scheme not in {"http", "https"}:
                raise RepositoryError(f"{url} redirects to {target[:200]!r}, which is no web address")
            url = target
        raise RepositoryError(f"{self._ask.url} redirects more than {_REDIRECTS_MAX} times, last to {url[:200]}")

    def _request(self, url: str) -> urllib3.BaseHTTPResponse:
        """Send one request; its head and that of the answer are counted by their texts, not by frames on the wire."""
        if self._left.is_set():
            raise Retry("nobody waits for it any more")
        headers = {"Accept-Encoding": "identity", "User-Agent": "ferryman"}
        ask, length = self._ask, self._ask.length
        head_bytes = _HEAD_BYTES + len(url) + 64
        self._budget.check(2 * head_bytes + 1, url)
        if length is not None and (left := self._budget.left()) is not None:
            length = min(length, left - 2 * head_bytes)
        if length is not None:
            headers["Range"] = f"bytes={ask.start}-{ask.start + length - 1}"
        elif ask.start:
            headers["Range"] = f"bytes={ask.start}-"
        response = self._pool(url).urlopen(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False, decode_content=False
        )
        answer = 20 + sum(len(name) + len(value) + 4 for name, value in response.headers.items())
        asked = _HEAD_BYTES + len(url) + sum(len(name) + len(value) + 4 for name, value in headers.items())
        try:
            self._budget.spend(asked + answer)
        except BaseException:
            response.close()
            raise
        self.server_date = response.headers.get("Date")
        return response

    def _check(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        """See whether an answer can be used; `self._skip` bytes of it come before what was asked for."""
        try:
            self._skip = self._offset(response, url)
        except BaseException:
            self._dismiss(response)
            raise

    def _dismiss(self, response: urllib3.BaseHTTPResponse) -> None:
        """Keep the connection where the rest of an answer is small: a new one may cost a TLS handshake."""
        try:
            if response.length_remaining is not None and response.length_remaining <= _DISMISS_BYTES:
                while block := response.read1(_DISMISS_BYTES):
                    self._budget.spend(len(block))
                response.release_conn()
                return
        except (urllib3.exceptions.HTTPError, OSError):
            pass
        response.close()

    def _offset(self, response: urllib3.BaseHTTPResponse, url: str) -> int:
        status, ask = response.status, self._ask
        if status in _SERVER or status in _LATER:
            raise Retry(f"{url} answers {status}", retry_after_s(response.headers))
        if status in {403, 404}:
            raise NotFound(f"{url} answers {status}: it is not there; see that the repository is whole", status)
        if status in _CLIENT:
            raise RepositoryError(f"{url} answers {status}, which no retry changes; see what its server is")
        if status not in {_OK, _PARTIAL}:
            raise RepositoryError(f"{url} answers {status} to a GET; see what its server is")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RepositoryError(f"{url} comes compressed, though nobody asked for that; set its server right")
        if status == _PARTIAL:
            return self._partial(response, url)
        told = response.headers.get("Content-Length", "")
        self._same_file(int(told) if re.fullmatch(r"\d{1,15}", told) else None, url)
        if ask.start > ask.skip_max:
            raise RepositoryError(
                f"{url} ignores Range: {ask.start} bytes would come that nobody asked for; serve the repository with "
                "a server that knows Range, such as nginx"
            )
        return ask.start

    def _partial(self, response: urllib3.BaseHTTPResponse, url: str) -> int:
        text = response.headers.get("Content-Range", "")
        read = _RANGE.fullmatch(text)
        if read is None or int(read[1]) != self._ask.start or int(read[2]) < self._ask.start:
            raise RepositoryError(f"{url}: bytes from {self._ask.start} on were asked for, it answers {text[:80]!r}")
        self._same_file(None if read[3] == "*" else int(read[3]), url)
        return 0

    def _same_file(self, total: int | None, url: str) -> None:
        if None not in {self._ask.total, total} and self._ask.total != total:
            raise Retry(f"{url} was replaced by a file of {total} bytes while it was read")
        self.total = total if total is not None else self.total

    def _read(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Bring the bytes until there are as many as asked for, or the file ends."""
        ask, skip = self._ask, self._skip
        end = ask.length if ask.length is not None else None if self.total is None else self.total - ask.start
        came = 0
        pace = Pace(self._config)
        while end is None or came < skip + end:
            self._end_if_cancelled()
            most = self._rate.block_bytes if end is None else min(self._rate.block_bytes, skip + end - came)
            if (left := self._budget.left()) is not None:
                if not left:
                    self._budget.check(BLOCK_BYTES if end is None else skip + end - came, ask.url)
                most = min(most, left)
            began_s = time.monotonic()
            block = response.read1(most)
            self._budget.spend(len(block))
            if not block:
                break
            pace.note(len(block), time.monotonic() - began_s)
            came += len(block)
            self._whole = response.length_remaining == 0
            if came > skip:
                yield block[max(0, len(block) - came + skip) :]
            if (wait_s := self._rate.pass_(len(block))) > 0:
                self._cancelled.wait(wait_s)
        self._end_if_cancelled()
        if end is not None and came < skip + end:
            raise Retry(f"the answer ended after {came} of {skip + end} bytes")


def _blame(error: Exception) -> Exception:
    """Who is at fault: a proxy that refuses does so the next time, too; everything else may go well."""
    text = str(error)
    if read := re.search(r"Tunnel connection failed: (4\d\d[^'\")]{0,80})", text):
        return LinkError(f"the proxy refuses: {read[1]}; see the proxy's settings, or set another")
    return Retry(f"{type(error).__name__}: {text.rpartition('>: ')[2] or text}")
