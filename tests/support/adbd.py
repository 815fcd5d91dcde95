"""A phone for the real `adb`: the device's side of its protocol over TCP, as much as `shell`, `push` and `pull` need.

A plain FakePhone runs commands in this machine's shell, with /sys of a folder in place of the phone's and programs of a
folder on PATH. It proves how we speak to adb, not how Android answers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.mosquitto import free_port
from tests.support.phone import AndroidSystem

ADB = shutil.which("adb")
_HEADER = struct.Struct("<4s5I")
_VERSION, _MAX_DATA = 0x01000001, 1 << 18
_STDOUT, _STDERR, _EXIT = 1, 2, 3
_SYNC = struct.Struct("<4sI")
_SYNC_CHUNK_BYTES = 64 << 10
_NAME_MAX_BYTES = 1 << 16


class FakePhone:
    """Listens on loopback; `command` may be replaced."""

    features = "shell_v2,cmd"
    trusts = True
    """Whether it lets anybody in without asking; else nobody."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._server = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.connections: set[socket.socket] = set()
        self.cut: Callable[[str, int], bool] = lambda _what, _bytes: False
        """Asked before each service with its name, and with the bytes of each upload so far: whether the cable goes."""
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()
        self.unplug()

    def unplug(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def command(self, text: str) -> subprocess.CompletedProcess[bytes]:
        path = f"{self.root}/bin:{os.environ['PATH']}"
        text = text.replace(" /sys/", f" {self.root}/sys/")
        done = subprocess.run(["sh", "-c", text], capture_output=True, env=os.environ | {"PATH": path}, check=False)
        done.stdout = done.stdout.replace(str(self.root).encode(), b"")
        return done

    def path(self, remote: str) -> Path:
        """Where a file of the phone lies here."""
        return Path(remote)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        self.connections.add(connection)
        streams: dict[int, _Stream] = {}
        lock = threading.Lock()
        with connection, contextlib.suppress(OSError, EOFError):
            while True:
                name, first, second, data = _receive(connection)
                if name in {b"CNXN", b"AUTH"} and not self.trusts:
                    _send(connection, b"AUTH", 1, 0, bytes(20))
                elif name == b"CNXN":
                    banner = f"device::ro.product.name=fake;ro.product.model=Fake;features={self.features}".encode()
                    _send(connection, b"CNXN", _VERSION, _MAX_DATA, banner)
                elif name == b"OPEN":
                    stream = _Stream(connection, lock, len(streams) + 1, first)
                    streams[stream.own] = stream
                    service = data.rstrip(b"\0").decode()
                    threading.Thread(target=self._open, args=(stream, service), daemon=True).start()
                elif second in streams:
                    streams[second].told(name, data)
        self.connections.discard(connection)
        for stream in streams.values():
            stream.told(b"CLSE", b"")

    def _open(self, stream: _Stream, service: str) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self.cut(service, 0):
                self.unplug()
            elif service.startswith("shell,"):
                stream.accept()
                self._shell(stream, service.partition(":")[2])
            elif service == "sync:":
                stream.accept()
                self._sync(stream)
            stream.close()

    def _shell(self, stream: _Stream, text: str) -> None:
        done = self.command(text)
        status = done.returncode if done.returncode >= 0 else 128 - done.returncode
        for kind, data in ((_STDOUT, done.stdout), (_STDERR, done.stderr), (_EXIT, bytes([status]))):
            if data:
                stream.write(struct.pack("<BI", kind, len(data)) + data)

    def _sync(self, stream: _Stream) -> None:
        while True:
            what, length = _SYNC.unpack(stream.read(_SYNC.size))
            if what == b"QUIT":
                return
            name = stream.read(min(length, _NAME_MAX_BYTES)).decode()
            {b"SEND": self._take, b"RECV": self._give, b"STAT": self._stat, b"LIST": self._list}[what](stream, name)

    def _take(self, stream: _Stream, name: str) -> None:
        remote, _, mode = name.rpartition(",")
        why, done = b"", 0
        try:
            target = self.path(remote)
            with target.open("wb") as file:
                while (part := _SYNC.unpack(stream.read(_SYNC.size)))[0] == b"DATA":
                    data = stream.read(part[1])
                    done += len(data)
                    if self.cut(f"send {remote}", done):
                        self.unplug()
                        raise EOFError
                    if not why:
                        try:
                            file.write(data)
                            file.flush()
                        except OSError as error:
                            why = str(error.strerror).encode()
            target.chmod(stat.S_IMODE(int(mode)))
        except OSError as error:
            why = f"couldn't create file: {error.strerror}".encode()
            while (part := _SYNC.unpack(stream.read(_SYNC.size)))[0] == b"DATA":
                stream.read(part[1])
        stream.write(_SYNC.pack(b"FAIL", len(why)) + why if why else _SYNC.pack(b"OKAY", 0))

    def _give(self, stream: _Stream, name: str) -> None:
        try:
            data = self.path(name).read_bytes()
        except OSError as error:
            why = str(error.strerror).encode()
            stream.write(_SYNC.pack(b"FAIL", len(why)) + why)
            return
        for at in range(0, len(data), _SYNC_CHUNK_BYTES):
            chunk = data[at : at + _SYNC_CHUNK_BYTES]
            stream.write(_SYNC.pack(b"DATA", len(chunk)) + chunk)
        stream.write(_SYNC.pack(b"DONE", 0))

    def _stat(self, stream: _Stream, name: str) -> None:
        stream.write(b"STAT" + self._of(self.path(name)))

    def _list(self, stream: _Stream, name: str) -> None:
        path = self.path(name)
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            stream.write(b"DENT" + self._of(entry) + struct.pack("<I", len(entry.name)) + entry.name.encode())
        stream.write(b"DONE" + bytes(16))

    @staticmethod
    def _of(path: Path) -> bytes:
        try:
            found = path.lstat()
        except OSError:
            return bytes(12)
        return struct.pack("<III", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))


class AndroidPhone(FakePhone):
    """The same with an Android's shell, programs and files."""

    def __init__(self, system: AndroidSystem) -> None:
        self.system = system
        super().__init__(system.root)

    def command(self, text: str) -> subprocess.CompletedProcess[bytes]:
        return self.system.command(text)

    def path(self, remote: str) -> Path:
        return self.system.path(remote)


class _Stream:
    """One service of a connection."""

    def __init__(self, connection: socket.socket, lock: threading.Lock, own: int, peer: int) -> None:
        self._connection, self._lock = connection, lock
        self.own, self.peer = own, peer
        self._came: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._okay = threading.Event()
        self._closed = threading.Event()
        self._buffer = b""

    def told(self, name: bytes, data: bytes) -> None:
        if name == b"OKAY":
            self._okay.set()
        elif name == b"WRTE":
            self._came.put(data)
            with contextlib.suppress(OSError):
                self._say(b"OKAY")
        elif name == b"CLSE":
            self._closed.set()
            self._okay.set()
            self._came.put(b"")

    def accept(self) -> None:
        self._say(b"OKAY")

    def read(self, length: int) -> bytes:
        while len(self._buffer) < length:
            more = self._came.get()
            if not more:
                raise EOFError
            self._buffer += more
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        return data

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), _MAX_DATA):
            self._okay.clear()
            self._say(b"WRTE", data[at : at + _MAX_DATA])
            self._okay.wait()
            if self._closed.is_set():
                raise EOFError

    def close(self) -> None:
        self._say(b"CLSE")

    def _say(self, name: bytes, data: bytes = b"") -> None:
        with self._lock:
            _send(self._connection, name, self.own, self.peer, data)


@contextlib.contextmanager
def adb_server(monkeypatch, *phones: FakePhone) -> Iterator[None]:
    """An adb server of our own, connected to phones; `adb` finds it by the environment."""
    assert ADB is not None
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    if phones:
        monkeypatch.setenv("HOME", str(phones[0].root))
    subprocess.run([ADB, "start-server"], check=True, capture_output=True, timeout=60)
    try:
        for phone in phones:
            plug(phone)
        yield
    finally:
        subprocess.run([ADB, "kill-server"], check=False, capture_output=True, timeout=60)


def plug(phone: FakePhone) -> None:
    """Connect a phone, or one that was unplugged."""
    assert ADB is not None
    subprocess.run([ADB, "disconnect", phone.serial], check=False, capture_output=True, timeout=60)
    said = subprocess.run([ADB, "connect", phone.serial], check=True, capture_output=True, timeout=60).stdout
    assert b"connected to" in said, said


def _receive(connection: socket.socket) -> tuple[bytes, int, int, bytes]:
    name, first, second, length, _, _ = _HEADER.unpack(_exactly(connection, _HEADER.size))
    return name, first, second, _exactly(connection, length)


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
