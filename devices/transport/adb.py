"""A phone as a device: adb's own server carries what we say, adbutils speaks to that server.

Of the server's services two are spoken here, over adbutils' connections: a command with its exit status, bounded in
time and bytes, and a file's upload, whose refusal comes with the phone's reason. adbutils' own lose these.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ferryman.devices.transport.base import CHUNK_BYTES, OUTPUT_MAX_BYTES, CompletedCommand, Progress, check_output
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError, RequestTimeout

if TYPE_CHECKING:
    from adbutils import AdbClient, AdbConnection

_FRAME = struct.Struct("<BI")
"""Of shell v2 (AOSP, packages/modules/adb/shell_protocol.h): what it is, and how long."""
_STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = 1, 2, 3, 3
_FRAME_MAX_BYTES = 64 << 20
_SYNC = struct.Struct("<4sI")
"""Of a request or answer of the sync service (AOSP, packages/modules/adb/SYNC.TXT)."""
_SYNC_CHUNK_BYTES = 64 << 10
_REASON_MAX_BYTES = 64 << 10
_ANSWER_S = 30.0
"""For adb's server to carry on with what goes to the phone."""
_FIND_S = 5.0
"""A server that has just started takes a moment to find its phones."""
_POLL_S = 0.2
_REGULAR = 0o100000
_SIGNAL_BASE = 128
"""A shell's exit status of a program that a signal ended."""
_INSTALL_ADB = "on Debian or Ubuntu: sudo apt-get install adb"
_STATES = {
    "unauthorized": "it does not trust this machine yet: unlock it, and allow USB debugging when it asks (where it "
    "does not: revoke USB debugging authorizations in its developer options, and connect it again)",
    "authorizing": "it is still asking whom to trust: unlock it, and allow USB debugging",
    "offline": "it does not answer: connect it again, or run `adb reconnect offline`",
    "no": "this user may not use it over USB: on Debian or Ubuntu sudo apt-get install "
    "android-sdk-platform-tools-common, join the group plugdev, log in again, and connect it again",
}
_OTHER_STATE = "start Android on it, and connect it again"


class AdbTransport(Closing):
    """Implements `Transport`; nothing stays open between its calls, so several threads may use it."""

    def __init__(self, serial: str, *, find_s: float = _FIND_S) -> None:
        """Find the phone; adb's server is started where none runs.

        Args:
            serial: as `adb devices` lists it; empty for the only one.
            find_s: how long it may take to show up.

        Raises:
            CallerError: no adb here, the server is of another version than it, or which of several phones is not said.
            LinkError: the phone is not there, or does not let us in.
            DeviceError: its Android is too old.
        """
        self._client = _server()
        self.serial = _find(self._client, serial, time.monotonic() + find_s)
        with self._link_errors("features"), self._connection() as connection:
            _send_command(connection, f"host-serial:{self.serial}:features")
            features = connection.read_string_block().split(",")
        if "shell_v2" not in features:
            raise DeviceError(f"phone {self.serial} tells no exit status of commands: Android 7 or later is needed")

    def put(self, local: Path, remote: str, progress: Progress) -> None:
        """See `Transport.put`."""
        total = local.stat().st_size
        mode = _REGULAR | (0o755 if os.access(local, os.X_OK) else 0o644)
        progress(0, total)
        what = f"upload of {local.name}"
        try:
            with local.open("rb") as source, self._link_errors(what), self._open("sync:") as wire:
                wire.settimeout(_ANSWER_S)
                self._send(source, total, mode, wire, remote, progress)
        except TimeoutError:
            raise RequestTimeout(f"{what}: phone {self.serial} took nothing for {_ANSWER_S:g} s; do it again") from None

    def _send(
        self, source: BinaryIO, total: int, mode: int, wire: socket.socket, remote: str, progress: Progress
    ) -> None:
        name = f"{remote},{mode}".encode()
        try:
            wire.sendall(_SYNC.pack(b"SEND", len(name)) + name)
            done = 0
            while chunk := source.read(_SYNC_CHUNK_BYTES):
                wire.sendall(_SYNC.pack(b"DATA", len(chunk)) + chunk)
                done += len(chunk)
                if done % CHUNK_BYTES == 0 or done == total:
                    progress(done, total)
            wire.sendall(_SYNC.pack(b"DONE", int(time.time())))
        except ConnectionError:
            pass  # the phone gave up; it may have said why
        what, length = _SYNC.unpack(_exactly(wire, _SYNC.size))
        if what != b"OKAY":
            why = _exactly(wire, min(length, _REASON_MAX_BYTES)).decode(errors="replace") if what == b"FAIL" else ""
            raise DeviceError(f"phone {self.serial} cannot write {remote}: {why or what!r}")

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        """See `Transport.run`."""
        return self.shell(shlex.join(argv), timeout_s=timeout_s)

    def shell(self, line: str, *, timeout_s: float, output_max_bytes: int = OUTPUT_MAX_BYTES) -> CompletedCommand:
        """Have the phone's shell do a line.

        Raises: as `run`.
        """
        what = f"`{line[:60]}` on phone {self.serial}"
        deadline = time.monotonic() + timeout_s
        said = {_STDOUT: bytearray(), _STDERR: bytearray()}
        try:
            with self._link_errors(what), self._open(f"shell,v2,raw:{line}") as wire:
                wire.sendall(_FRAME.pack(_CLOSE_STDIN, 0))
                while True:
                    kind, length = _FRAME.unpack(_exactly(wire, _FRAME.size, deadline))
                    if length > _FRAME_MAX_BYTES:
                        raise EOFError("its answer is none of adb's shell protocol")
                    data = _exactly(wire, length, deadline)
                    if kind == _EXIT and data:
                        status = data[0] if data[0] <= _SIGNAL_BASE else _SIGNAL_BASE - data[0]
                        return CompletedCommand(status, bytes(said[_STDOUT]), bytes(said[_STDERR]))
                    if kind in said:
                        said[kind] += data
                        check_output(said[kind], what, output_max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"{what} did not end within {timeout_s:g} s") from None

    def close(self) -> None:
        """See `Transport.close`."""

    @contextmanager
    def _open(self, service: str) -> Iterator[socket.socket]:
        with self._connection() as connection:
            _send_command(connection, f"host:transport:{self.serial}")
            _send_command(connection, service)
            yield connection.conn

    def _connection(self) -> AdbConnection:
        """To adb's server; were it gone, adbutils would start another, which knows no phone that is over Wi-Fi."""
        if not _listens(self._client.host, self._client.port):
            raise EOFError("adb's server has ended")
        return self._client.make_connection()

    @contextmanager
    def _link_errors(self, what: str) -> Iterator[None]:
        """Say what broke the link as a LinkError."""
        from adbutils import AdbError

        try:
            yield
        except TimeoutError:
            raise
        except (AdbError, OSError, EOFError) as error:
            raise LinkError(
                f"{what}: the link to phone {self.serial} failed: {error or 'it closed early'}; check cable or Wi-Fi "
                "and `adb devices`, then do it again"
            ) from error


def _send_command(connection: AdbConnection, service: str) -> None:
    """Ask for a service, of whatever length four hex digits tell."""
    data = service.encode()
    connection.conn.sendall(f"{len(data):04x}".encode() + data)
    connection.check_okay()


def _exactly(wire: socket.socket, length: int, deadline: float | None = None) -> bytes:
    data = bytearray()
    while len(data) < length:
        if deadline is not None:
            wire.settimeout(max(deadline - time.monotonic(), 0.001))
        if not (chunk := wire.recv(min(length - len(data), CHUNK_BYTES))):
            raise EOFError("it closed early")
        data += chunk
    return bytes(data)


def _server() -> AdbClient:
    """A client of adb's server, which runs now.

    Raises:
        CallerError: there is none and no adb to start it, or it is of another version.
    """
    try:
        from adbutils import AdbClient, AdbError
    except ModuleNotFoundError as error:
        raise CallerError(f"{error.name} is not installed here; pip install 'ferryman[adb]'") from error
    host = os.environ.get("ANDROID_ADB_SERVER_HOST") or "127.0.0.1"
    port = _port(os.environ.get("ANDROID_ADB_SERVER_PORT") or "5037")
    adb = shutil.which("adb")
    if not _listens(host, port):
        if adb is None:
            raise CallerError(f"no adb on this machine; {_INSTALL_ADB}")
        _start(adb, port)
    client = AdbClient(host=host, port=port, socket_timeout=_ANSWER_S)
    try:
        version = client.server_version()
    except (AdbError, OSError, ValueError) as error:
        raise CallerError(
            f"what listens at {host}:{port} does not answer as adb's server ({error or 'it says nothing'}); end it, or "
            "set ANDROID_ADB_SERVER_PORT to another port"
        ) from error
    if adb is not None and (own := _program_version(adb)) not in (None, version):
        raise CallerError(
            f"the adb server at {host}:{port} is of version {version}, {adb} of {own}: each ends the other's server; "
            "run `adb kill-server`, and have one adb on PATH"
        )
    return client


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or not 0 < int(text) < 1 << 16:
        raise CallerError(f"ANDROID_ADB_SERVER_PORT is {text[:40]!r}, which is no port")
    return int(text)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _start(adb: str, port: int) -> None:
    command = [adb, "-P", str(port), "start-server"]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CallerError(f"`{shlex.join(command)}`: {error}; see that it works by hand") from error
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-300:]
        raise CallerError(f"`{shlex.join(command)}` ended with {done.returncode}: {words}")


def _program_version(adb: str) -> int | None:
    """The last number of `1.0.41`, which server and program must share; None: it does not tell."""
    try:
        done = subprocess.run([adb, "version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb"version \d+\.\d+\.(\d{1,6})", done.stdout)
    return int(found[1]) if found else None


def _find(client: AdbClient, serial: str, deadline: float) -> str:
    """The serial of the phone that is meant, once it is ready.

    Raises:
        CallerError: which of several is not said.
        LinkError: there is none, or it does not let us in.
    """
    while True:
        phones = _listed(client)
        if not serial and len(phones) > 1:
            raise CallerError(
                f"{len(phones)} phones are connected: {', '.join(sorted(phones))}; give one as `adb` in the devices "
                "file, or leave one connected"
            )
        name = serial or next(iter(phones), "")
        state = phones.get(name)
        if state == "device":
            return name
        if state in ("unauthorized", "no") or time.monotonic() >= deadline:
            raise LinkError(_why_not(name, state, sorted(phones)))
        time.sleep(_POLL_S)


def _listed(client: AdbClient) -> dict[str, str]:
    from adbutils import AdbError

    try:
        return {info.serial: info.state for info in client.list()}
    except (AdbError, OSError, ValueError) as error:
        raise LinkError(f"adb's server went away ({error or 'it says nothing'}); do it again") from error


def _why_not(name: str, state: str | None, phones: Sequence[str]) -> str:
    if state is not None:
        return f"phone {name} is {'not permitted' if state == 'no' else state}: {_STATES.get(state, _OTHER_STATE)}"
    if not name:
        return (
            "no phone is connected: connect one with USB debugging on, or `adb connect HOST:PORT` where it debugs over "
            "Wi-Fi; see `adb devices`"
        )
    there = f"there are: {', '.join(phones)}" if phones else "none is"
    over_wifi = f"; `adb connect {name}` where it debugs over Wi-Fi" if ":" in name else ""
    return f"no phone {name} is connected, {there}; see `adb devices`{over_wifi}"
