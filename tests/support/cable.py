"""A TCP connection to a broker that can be cut and mended."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

import msgspec

from ferryman.devices.broker import BrokerConfig


class Cable:
    """Carries bytes to the broker and back until it is cut."""

    def __init__(self, broker: BrokerConfig) -> None:
        self._broker = broker
        self._server = socket.create_server(("127.0.0.1", 0))
        self.config = msgspec.structs.replace(broker, port=self._server.getsockname()[1])
        self._whole = threading.Event()
        self._whole.set()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()
        for one in self._held:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._held.clear()

    def mend(self) -> None:
        self._whole.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if not self._whole.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection((self._broker.host, self._broker.port))
            except OSError:  # the broker is down
                near.close()
                continue
            self._held += [near, far]
            if not self._whole.is_set():  # cut meanwhile
                self.cut()
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with source:
            while True:
                try:
                    data = source.recv(65536)
                    if not data:
                        break
                    target.sendall(data)
                except OSError:
                    break
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
