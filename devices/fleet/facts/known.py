"""What was found out about devices, kept with when: so that a list can tell without asking all of them again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ferryman.devices.fleet.inventory import Device
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.durable import write_durable

_MAX_BYTES = 1 << 20


class Known(Record):
    """Of one device."""

    device: str
    address: str
    probed_at_ns: int
    """Unix epoch, by this machine's clock."""
    way: str
    """By which the facts came."""
    facts: DeviceFacts


def state_home() -> Path:
    """Where ferryman keeps what it would be a pity to lose: `ferryman` in $XDG_STATE_HOME or ~/.local/state.

    Raises:
        CallerError: there is no home.
    """
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "ferryman"
    except RuntimeError as error:
        raise CallerError(f"no folder for what is known of devices: {error}; set XDG_STATE_HOME") from error


def recall(device: Device) -> Known | None:
    """What is known of a device at this address and root; None: nothing, or nothing that can be read."""
    try:
        with _path(device).open("rb") as file:
            return decode(file.read(_MAX_BYTES), Known)
    except (OSError, ValueError):
        return None


def remember(device: Device, known: Known) -> None:
    """Keep it in the place of what was known before.

    Raises:
        CallerError: it cannot be written.
    """
    try:
        write_durable(_path(device), encode(known), mode=0o600)
    except DeviceError as error:
        raise CallerError(f"what is known of {device.name} cannot be kept: {error}; set XDG_STATE_HOME") from error


def _path(device: Device) -> Path:
    key = hashlib.sha256(f"{device.address}\0{device.root}".encode()).hexdigest()[:32]
    return state_home() / "facts" / f"{key}.json"
