"""A phone's shell and files below one folder; what it refuses says what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ferryman.devices.fleet.inventory import AdbDevice
from ferryman.devices.transport.base import OUTPUT_MAX_BYTES, CompletedCommand, Progress
from ferryman.runtime.contracts.errors import CallerError, DeviceError

COMMAND_S = 60.0
_WORDS_CHARS = 400
_CANNOT_EXECUTE = 126
_ROOT_PARTS = 3


class PhoneLink(Protocol):
    """What carries files and lines to a phone; `AdbTransport` and a test's own."""

    serial: str

    def put(self, local: Path, remote: str, progress: Progress) -> None:
        """See `Transport.put`."""

    def shell(self, line: str, *, timeout_s: float, output_max_bytes: int = OUTPUT_MAX_BYTES) -> CompletedCommand:
        """See `AdbTransport.shell`."""

    def close(self) -> None:
        """See `Transport.close`."""


Connect = Callable[[AdbDevice], PhoneLink]


def connect_phone(device: AdbDevice) -> PhoneLink:
    """Open the way to a phone.

    Raises:
        CallerError: no adb or no adbutils here, or which of several phones is not said.
        LinkError: it is not there, or does not let us in.
        DeviceError: its Android is too old.
    """
    from ferryman.devices.transport.adb import AdbTransport

    try:
        return AdbTransport(device.adb)
    except (CallerError, DeviceError) as error:
        raise type(error)(f"{device.name}: {error}") from error


class Phone:
    """Lines are mksh's, their programs toybox's: what every Android since 7 has."""

    def __init__(self, name: str, link: PhoneLink, root: Path) -> None:
        """Nothing is asked yet.

        Raises:
            CallerError: the root is no folder of ferryman's own, for what lies in it is removed.
        """
        self.name, self.link, self.root = name, link, root.as_posix()
        if not root.is_absolute() or len(root.parts) < _ROOT_PARTS:
            raise CallerError(f"{name}: root {root} of a phone must be an absolute path of a folder of ferryman's own")

    def ask(
        self, line: str, *, timeout_s: float = COMMAND_S, output_max_bytes: int = OUTPUT_MAX_BYTES
    ) -> CompletedCommand:
        """Have a line done, with `$R` for the root.

        Raises:
            LinkError: it is not known whether it was.
        """
        return self.link.shell(
            f"R={shlex.quote(self.root)}; {line}", timeout_s=timeout_s, output_max_bytes=output_max_bytes
        )

    def do(self, line: str, *, timeout_s: float = COMMAND_S) -> str:
        """What a line prints that must succeed.

        Raises:
            DeviceError: it did not; in the phone's words, and what to do.
            LinkError: it is not known whether it did.
        """
        done = self.ask(line, timeout_s=timeout_s)
        if done.exit_status:
            raise self.refusal(done)
        return done.stdout.decode(errors="replace")

    def refusal(self, done: CompletedCommand) -> DeviceError:
        """What a line's end means that should have succeeded."""
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-_WORDS_CHARS:]
        return DeviceError(f"{self.name}: {self._advice(words, done.exit_status)}")

    def put(self, local: Path, remote: str, progress: Progress = lambda _done, _total: None) -> None:
        """Upload a file below the root; `remote` is relative to it.

        Raises:
            DeviceError: the phone cannot write it.
            LinkError: the link broke.
        """
        try:
            self.link.put(local, f"{self.root}/{remote}", progress)
        except DeviceError as error:
            raise DeviceError(f"{self.name}: {self._advice(str(error), 1)}") from error

    def _advice(self, words: str, status: int) -> str:
        if "No space left" in words or "quota exceeded" in words.lower():
            return f"its storage is full ({words}); make room on the phone"
        if status == _CANNOT_EXECUTE:
            return (
                f"it does not run what lies below {self.root} ({words}): its kernel or SELinux forbids a shell to; set "
                "`root` in the devices file to a folder from which `adb shell` may run programs, usually one below "
                "/data/local/tmp"
            )
        if "ermission denied" in words or "Read-only file system" in words or "not permitted" in words:
            return (
                f"a shell may not do this there ({words}): set `root` in the devices file to a folder that `adb shell` "
                "may write to and run programs from, usually one below /data/local/tmp"
            )
        return words or f"it ended with exit status {status} and said nothing"
