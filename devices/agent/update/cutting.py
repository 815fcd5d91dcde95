"""Connections that somebody else can cut: urllib3's timeouts bound each read of an answer's head, and not the head."""

from __future__ import annotations

import contextlib
import socket
import threading
from contextvars import ContextVar
from typing import TypeVar

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

_Pools = TypeVar("_Pools", bound=urllib3.PoolManager)


class Cutter:
    """Ends whatever one thread waits for on a connection, now or later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cut = False

    def follow(self) -> None:
        """From now on, know the connections that this thread uses."""
        _CUTTER.set(self)

    def hold(self, one: socket.socket) -> None:
        """This is where the thread waits next.

        Raises:
            OSError: it was cut before.
        """
        with self._lock:
            if self._cut:
                raise ConnectionAbortedError("nobody waits for it any more")
            self._socket = one

    def cut(self) -> None:
        """Have what waits fail, and all that would wait later; from any thread."""
        with self._lock:
            self._cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it is closed, or its other end is
                    # not the method of an SSLSocket, which takes TLS away from under the thread that reads
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_CUTTER: ContextVar[Cutter] = ContextVar("cutter")


def _held(one: socket.socket) -> None:
    if cutter := _CUTTER.get(None):
        cutter.hold(getattr(one, "socket", one))  # urllib3's TLS within TLS is no socket, but has one


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        try:
            _held(made)
        except OSError:
            made.close()
            raise
        return made

    def _tunnel(self) -> None:
        """A proxy's head that was cut reads like a whole one; the handshake after it has a deadline of its own."""
        super()._tunnel()
        _held(self.sock)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's own
        _held(self.sock)
        return super().getresponse()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def cuttable(pools: _Pools) -> _Pools:
    """The same pools, whose connections a `Cutter` holds."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pools
