"""GET over links that break: what came is kept, what is missing is asked for again, until nothing moves any more."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import Cancelled, LaterError, UpdateConfig, check_config
from ferryman.devices.agent.update.cutting import cuttable
from ferryman.devices.agent.update.exchange import POLL_S, SKIP_BYTES, Ask, Exchange
from ferryman.devices.agent.update.pace import Rate, Retry
from ferryman.runtime.contracts.errors import LinkError, RepositoryError

_FAILURES_MAX = 10
"""In a row, without progress."""
_PROGRESS_BYTES = 512
"""A try that brings fewer, and not the rest, brought nothing."""
_BACKOFF_S = 0.2
_BACKOFF_MAX_S = 20.0
_AFTER_HERE_S = 60.0
"""A server that asks to wait longer ends the attempt."""
_AFTER_CHANCE = 0.25
"""So much longer than asked, at most."""
_BUFFER_LEAST_BYTES = 1 << 14


class Http:
    """One device's way to its repository."""

    def __init__(self, config: UpdateConfig, budget: DataBudget, cancelled: threading.Event | None = None) -> None:
        """Nothing is asked for yet.

        Args:
            config: where to, and how fast.
            budget: counts every byte: of bodies as they come, of heads by their text; not what TLS, TCP and IP add.
                Closed with this.
            cancelled: once it is set, every fetch ends within a second.

        Raises:
            CallerError: the URL of the repository or of the proxy is none.
        """
        self.config = check_config(config)
        self.budget = budget
        self.cancelled = cancelled or threading.Event()
        self.retries = 0
        """Requests that did not bring what they should."""
        self.server_date: str | None = None
        """What the server last said of the time; nobody signed it."""
        self._rate = Rate(config.rate_bytes_s)
        self._current: Exchange | None = None
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def url(self, path: str) -> str:
        """Of a file of the repository."""
        return f"{self.config.url.rstrip('/')}/{path}"

    def stream(self, url: str, start: int = 0, length: int | None = None) -> Generator[bytes]:
        """Yield the bytes of a file from `start` on, exactly `length` of them, or all up to its end.

        Raises:
            RepositoryError: the server's answer is final: 4xx, another span than asked for, too many redirects.
            LaterError: the server asks to wait for more than a minute.
            LinkError: nothing moved for `patience_s`, or over 10 tries; the same call may go well another time.
            BudgetError: no more may be spent.
            Cancelled: somebody asked to stop.
        """
        self._watch()
        failures, moved_s, got = 0, time.monotonic(), 0
        total: int | None = None
        while length is None or got < length:
            skip_max = max(SKIP_BYTES, length or 0, got)
            rest = None if length is None else length - got
            before = got
            exchange = Exchange(
                Ask(url, start + got, rest, skip_max, total),
                self._pool,
                self.config,
                self.budget,
                self._rate,
                self.cancelled,
            )
            self._current = exchange
            try:
                for block in exchange:
                    got += len(block)
                    yield block
                if length is None:
                    return
            except Retry as error:
                self.retries += 1
                if got - before >= _PROGRESS_BYTES:
                    failures, moved_s = 0, time.monotonic()
                failures += 1
                waited_s = time.monotonic() - moved_s
                after_s = error.after_s * random.uniform(1, 1 + _AFTER_CHANCE) if error.after_s else 0.0  # noqa: S311
                if error.after_s > _AFTER_HERE_S:
                    raise LaterError(
                        f"{error}; asks to come back in {error.after_s:.0f} s; the next try goes on from what is "
                        "verified",
                        after_s,
                    ) from error
                if failures > _FAILURES_MAX or waited_s > self.config.patience_s:
                    raise LinkError(
                        f"{url}: {error}; gave up after {failures} tries and {waited_s:.0f} s without progress, "
                        f"at byte {start + got}; the next try goes on from what is verified"
                    ) from error
                self._pause(failures, after_s)
            finally:
                exchange.close()
                total, self.server_date = exchange.total, exchange.server_date or self.server_date

    def read(self, url: str, start: int = 0, length: int | None = None, limit: int = 1 << 20) -> bytes:
        """What `stream` yields, in memory.

        Raises: as `stream`, and
            RepositoryError: there are more than `limit` bytes.
        """
        read = bytearray()
        for block in self.stream(url, start, length):
            read += block
            if len(read) > limit:
                raise RepositoryError(f"{url} goes on after the {limit} bytes it may have")
        return bytes(read)

    def close(self) -> None:
        """Close what is kept open, and cut what is under way: an error that somebody keeps may keep its reader.

        Nothing is counted any more, whoever has not heard yet: the account may be somebody else's next.
        """
        self._closed.set()
        if self._current is not None:
            self._current.close()
        for pool in self._pools.values():
            pool.clear()
        self.budget.close()

    def _watch(self) -> None:
        """Have somebody who ends a read that waits, once a cancel comes."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._interrupt, name="fetch-cancel", daemon=True)
            self._watcher.start()

    def _interrupt(self) -> None:
        while not self._closed.is_set():
            if not self.cancelled.wait(POLL_S):
                continue
            if (current := self._current) is not None:
                current.interrupt()
            self._closed.wait(POLL_S)

    def _pause(self, failures: int, after_s: float) -> None:
        """Wait, longer each time, and by chance, or all of a fleet would come back at once."""
        longest = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** (failures - 1))
        delay_s = max(random.uniform(0, longest), after_s)  # noqa: S311
        if self.cancelled.wait(delay_s):
            raise Cancelled("cancelled between two tries; what was fetched and verified is kept")

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = self._proxy(url)
        if proxy not in self._pools:
            options: dict[str, Any] = {
                "timeout": urllib3.Timeout(connect=self.config.timeout_s, read=self.config.timeout_s),
                "socket_options": self._socket_options(),
                "maxsize": 2,
            }
            if proxy:
                parts = urlsplit(proxy)
                bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
                headers = (
                    urllib3.make_headers(proxy_basic_auth=f"{parts.username}:{parts.password or ''}")
                    if parts.username
                    else None
                )
                self._pools[proxy] = cuttable(urllib3.ProxyManager(bare, proxy_headers=headers, **options))
            else:
                self._pools[proxy] = cuttable(urllib3.PoolManager(**options))
        return self._pools[proxy]

    def _proxy(self, url: str) -> str:
        """Which proxy to take; empty: none."""
        if self.config.proxy is not None:
            return self.config.proxy
        parts = urlsplit(url)
        proxies = getproxies()
        found = proxies.get(parts.scheme) or proxies.get("all", "")
        if not found or proxy_bypass(parts.hostname or ""):
            return ""
        return found if "://" in found else f"http://{found}"

    def _socket_options(self) -> list[tuple[int, int, int]]:
        """Under a bandwidth cap, the kernel must not take in what may not be read yet."""
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        if self.config.rate_bytes_s is not None:
            buffer = max(_BUFFER_LEAST_BYTES, min(1 << 18, self.config.rate_bytes_s // 10))
            options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, buffer))
        return options
