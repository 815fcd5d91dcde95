"""A phone for the real `adb`: the device's side of its protocol over TCP, as much as `adb shell` needs.

Commands run in this machine's shell, with /sys of a folder in place of the phone's and programs of a folder on PATH.
It proves how we speak to adb, not how Android answers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.mosquitto import free_port

ADB = shutil.which("adb")
_HEADER = struct.Struct("<4s5I")
_VERSION, _MAX_DATA = 0x01000001, 1 << 18
_BANNER = b"device::ro.product.name=fake;ro.product.model=Fake;ro.product.device=fake;features=shell_v2,cmd"
_STDOUT, _STDERR, _EXIT = 1, 2, 3


class FakePhone:
    """Listens on loopback; `command` may be replaced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._server = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def command(self, text: str) -> subprocess.CompletedProcess[bytes]:
        path = f"{self.root}/bin:{os.environ['PATH']}"
        text = text.replace(" /sys/", f" {self.root}/sys/")
        done = subprocess.run(["sh", "-c", text], capture_output=True, env=os.environ | {"PATH": path}, check=False)
        done.stdout = done.stdout.replace(str(self.root).encode(), b"")
        return done

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            while True:
                name, first, data = _receive(connection)
                if name == b"CNXN":
                    _send(connection, b"CNXN", _VERSION, _MAX_DATA, _BANNER)
                elif name == b"OPEN":
                    self._shell(connection, first, data.rstrip(b"\0"))

    def _shell(self, connection: socket.socket, peer: int, service: bytes) -> None:
        own = 1
        if not service.startswith(b"shell,"):
            _send(connection, b"CLSE", 0, peer)
            return
        _send(connection, b"OKAY", own, peer)
        done = self.command(service.partition(b":")[2].decode())
        for kind, data in ((_STDOUT, done.stdout), (_STDERR, done.stderr), (_EXIT, bytes([done.returncode]))):
            if data:
                _send(connection, b"WRTE", own, peer, struct.pack("<BI", kind, len(data)) + data)
                while (name := _receive(connection)[0]) != b"OKAY":
                    if name == b"WRTE":  # that standard input has ended
                        _send(connection, b"OKAY", own, peer)
        _send(connection, b"CLSE", own, peer)


@contextlib.contextmanager
def adb_server(monkeypatch, phone: FakePhone) -> Iterator[None]:
    """An adb server of our own, connected to the phone; `adb` finds it by the environment."""
    assert ADB is not None
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("HOME", str(phone.root))
    subprocess.run([ADB, "start-server"], check=True, capture_output=True, timeout=30)
    try:
        said = subprocess.run([ADB, "connect", phone.serial], check=True, capture_output=True, timeout=30).stdout
        assert b"connected to" in said, said
        yield
    finally:
        subprocess.run([ADB, "kill-server"], check=False, capture_output=True, timeout=30)


def _receive(connection: socket.socket) -> tuple[bytes, int, bytes]:
    name, first, _, length, _, _ = _HEADER.unpack(_exactly(connection, _HEADER.size))
    return name, first, _exactly(connection, length)


def _send(connection: socket.socket, name: bytes, first: int, second: int, data: bytes = b"") -> None:
    magic = struct.unpack("<I", name)[0] ^ 0xFFFFFFFF
    connection.sendall(_HEADER.pack(name, first, second, len(data), sum(data) & 0xFFFFFFFF, magic) + data)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data
