"""One request and its answer, on a thread of its own: whoever reads it can leave at any moment."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import Cancelled, UpdateConfig
from ferryman.runtime.contracts.errors import FerrymanError, LinkError, RepositoryError

BLOCK_BYTES = 1 << 16
POLL_S = 0.2
"""How soon a cancel is seen."""
SKIP_BYTES = 1 << 16
"""So much of an answer that ignores Range is skipped in any case, beside what was asked for."""
_AHEAD_BLOCKS = 2
_DISMISS_BYTES = 1 << 12
_REDIRECTS_MAX = 3
_HEAD_BYTES = 60
"""Of a request: method, version, `Host`, `Accept-Encoding` and line ends, beside the rest of it."""
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)", re.ASCII)
_OK, _PARTIAL, _SERVER = 200, 206, range(500, 600)
_REDIRECT = {301, 302, 303, 307, 308}
_CLIENT = range(400, 500)


class Retry(Exception):
    """It did not go well, and may another time."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s
        """The server asks to wait so long."""


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


class Rate:
    """A token bucket: bytes may pass at this rate, a tenth of a second's worth at once."""

    def __init__(self, bytes_s: int | None) -> None:
        self.block_bytes = BLOCK_BYTES if bytes_s is None else max(512, min(BLOCK_BYTES, bytes_s // 20))
        self._bytes_s = bytes_s
        self._debt_bytes = 0.0
        self._at_s = time.monotonic()

    def pass_(self, count: int) -> float:
        """Seconds to wait after so many bytes."""
        if self._bytes_s is None:
            return 0.0
        now_s = time.monotonic()
        burst = self._bytes_s / 10
        self._debt_bytes = max(-burst, self._debt_bytes - (now_s - self._at_s) * self._bytes_s) + count
        self._at_s = now_s
        return max(0.0, self._debt_bytes / self._bytes_s)


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
        self._left = threading.Event()
        self._done = False
        self._whole = False
        """The answer was read to its end, so that its connection can serve again."""
        self._skip = 0
        self._response: urllib3.BaseHTTPResponse | None = None
        self._queue: queue.Queue[bytes | Exception | None] = queue.Queue(_AHEAD_BLOCKS)
        threading.Thread(target=self._run, name="fetch", daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes.

        Raises:
            Retry: it broke; what came is good.
            RepositoryError: the answer is final, and not what was asked for.
            BudgetError: no more may be spent.
            Cancelled: somebody asked to stop.
        """
        deadline_s = time.monotonic() + 2 * self._config.timeout_s
        while True:
            if self._cancelled.is_set():
                raise Cancelled("cancelled; what was fetched and verified is kept, the next try goes on from there")
            try:
                item = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                if self._response is None and time.monotonic() > deadline_s:
                    raise Retry(f"no answer within {2 * self._config.timeout_s:g} s") from None
                continue
            if item is None:
                self._done = True
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        """Leave; a connection that is in the middle of something is cut."""
        self._left.set()
        if self._response is not None and not self._done:
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                self._response.shutdown()

    def _run(self) -> None:
        try:
            self._open()
            self._read()
            self._put(None)
        except (Retry, FerrymanError) as error:
            self._put(error)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._put(_blame(error))
        except Exception as error:  # noqa: BLE001  # the reader is told, whatever it is
            self._put(error)
        finally:
            if self._response is not None:
                self._response.release_conn() if self._whole else self._response.close()

    def _put(self, item: bytes | Exception | None) -> None:
        while not self._left.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=POLL_S)
                return

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
        self._budget.spend(asked + answer)
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
        if status in _SERVER:
            after = response.headers.get("Retry-After", "")
            raise Retry(f"{url} answers {status}", float(after) if re.fullmatch(r"\d{1,4}", after) else 0.0)
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

    def _read(self) -> None:
        """Bring the bytes until there are as many as asked for, or the file ends."""
        assert self._response is not None  # noqa: S101
        ask, skip = self._ask, self._skip
        end = ask.length if ask.length is not None else None if self.total is None else self.total - ask.start
        came, seconds, counted = 0, 0.0, 0
        while (end is None or came < skip + end) and not self._left.is_set():
            most = self._rate.block_bytes if end is None else min(self._rate.block_bytes, skip + end - came)
            if (left := self._budget.left()) is not None:
                if not left:
                    self._budget.check(BLOCK_BYTES if end is None else skip + end - came, ask.url)
                most = min(most, left)
            began = time.monotonic()
            block = self._response.read1(most)
            seconds, counted = seconds + time.monotonic() - began, counted + len(block)
            if not block:
                break
            self._budget.spend(len(block))
            if came + len(block) > skip:
                self._put(block[max(0, skip - came) :])
            came += len(block)
            if (wait_s := self._rate.pass_(len(block))) > 0:
                self._left.wait(wait_s)
            if seconds > self._config.timeout_s:
                if counted < min(self._config.floor_bytes_s, (self._config.rate_bytes_s or 1 << 40) // 4) * seconds:
                    raise Retry(f"{counted / seconds:.0f} bytes/s are fewer than {self._config.floor_bytes_s}")
                seconds, counted = 0.0, 0
        if end is not None and came < skip + end:
            raise Retry(f"the answer ended after {came} of {skip + end} bytes")
        self._whole = self._response.length_remaining == 0


def _blame(error: Exception) -> Exception:
    """Who is at fault: a proxy that refuses does so the next time, too; everything else may go well."""
    text = str(error)
    if read := re.search(r"Tunnel connection failed: (4\d\d[^'\")]{0,80})", text):
        return LinkError(f"the proxy refuses: {read[1]}; see the proxy's settings, or set another")
    return Retry(f"{type(error).__name__}: {text.rpartition('>: ')[2] or text}")
