"""What a device's agent said in the journal there: of all levels, though it never reached a broker."""

from __future__ import annotations

import getpass
import shlex

from ferryman.devices.fleet.inventory import AdbDevice, Device, LocalDevice, MqttDevice, SshDevice
from ferryman.devices.transport.base import Transport
from ferryman.runtime.contracts.errors import CallerError, DeviceError

UNIT = "ferryman-agent"
_CURSOR = "-- cursor: "
_NOTHING = "-- No entries --"
_NOT_FOUND = 127
_CLOSED = ("insufficient permissions", "not seeing messages from other users")
"""Of journalctl, to who may read none of it, or his own messages alone."""
_SAID_CHARS = 300


def check_has_journal(device: Device) -> None:
    """See that a device can be asked for its journal.

    Raises:
        CallerError: nothing leads there but adb or a broker.
    """
    if isinstance(device, AdbDevice | MqttDevice):
        raise CallerError(f"{device.name} is not reached over SSH, so its journal cannot be read; {_sent(device)}")


class Journal:
    """The agent's lines, the oldest first; each once."""

    def __init__(self, device: Device, transport: Transport, *, timeout_s: float = 60.0) -> None:
        """Nothing is asked yet."""
        self._device = device
        self._transport = transport
        self._timeout_s = timeout_s
        self._cursor: str | None = None

    def read(self, lines: int) -> list[str]:
        """At first the last `lines`; then those that came since.

        Raises:
            DeviceError: there is no journal, or it may not be read; the message says what to do.
            LinkError: the connection broke.
            RequestTimeout: no answer in time.
        """
        argv = ["journalctl", "--no-pager", "--output=short-iso", "--show-cursor", f"--unit={UNIT}"]
        argv += [f"--lines={lines}"] if self._cursor is None else [f"--after-cursor={self._cursor}"]
        done = self._transport.run(argv, timeout_s=self._timeout_s)
        found = done.stdout.decode(errors="replace").splitlines()
        for line in found:
            if line.startswith(_CURSOR):
                self._cursor = line.removeprefix(_CURSOR)
        told = [line for line in found if not line.startswith(_CURSOR) and line != _NOTHING]
        said = done.stderr.decode(errors="replace").strip()
        if _NOTHING in found and not said:  # some versions end with 1 then
            return []
        if done.exit_status or (not told and any(words in said for words in _CLOSED)):
            raise DeviceError(f"{self._device.name}: {self._why(done.exit_status, said)}")
        return told

    def _why(self, exit_status: int, said: str) -> str:
        if any(words in said for words in _CLOSED):
            user = self._device.user if isinstance(self._device, SshDevice) else getpass.getuser()
            return (
                f"{user} may not read the journal; there: sudo usermod -aG systemd-journal {shlex.quote(user)}"
                f" (provision.sh --journal does that for ferryman), then again"
            )
        if exit_status == _NOT_FOUND:
            return f"no journalctl there, so systemd does not keep the agent up; {_sent(self._device)}"
        return f"journalctl there ended with exit status {exit_status}: {said[-_SAID_CHARS:] or 'it said nothing'}"


def _sent(device: Device) -> str:
    if isinstance(device, LocalDevice):
        return "see what supervises it"
    return f"warnings that its agent sent: ferryman fleet logs --device {device.name}"
