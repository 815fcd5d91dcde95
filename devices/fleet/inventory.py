"""The devices file: one TOML table for each device.

[kitchen]
host = "kitchen.lan"
user = "pi"
broker = "mqtt://hub.lan"
labels = {site = "lab", stage = "canary"}
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from ferryman.devices.broker import parse_broker
from ferryman.devices.labels import check_labels
from ferryman.devices.topics import is_name
from ferryman.devices.transport.base import Transport
from ferryman.devices.transport.local import LocalTransport
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.slot import DEFAULT_ROOT

LOCAL = "local"
"""This machine; it needs no entry."""
CONNECT_TIMEOUT_S = 15.0
_NAMED = 20
"""Devices in a message."""
_DEFAULT_FILE = "~/.config/ferryman/devices.toml"


class _Entry(Record, forbid_unknown_fields=True):
    root: Path = DEFAULT_ROOT
    """Of the device's slot store."""
    command: str = "ferryman"
    """How to call ferryman there, as a shell would."""
    broker: str | None = None
    """URL of the MQTT broker the device's agent talks to."""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    """What queries find it by (see `ferryman.devices.fleet.rollout.query`); beside those its agent announces."""


class LocalDevice(_Entry):
    """This machine."""

    name: str = LOCAL
    command: str = f"{shlex.quote(sys.executable)} -m ferryman.cli"

    @property
    def address(self) -> str:
        """What it is, by whatever name it goes."""
        return LOCAL


class SshDevice(_Entry, kw_only=True):
    """A device reached over SSH."""

    name: str = ""
    host: Annotated[str, msgspec.Meta(min_length=1)]
    user: Annotated[str, msgspec.Meta(min_length=1)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 22
    key: Path | None = None
    """Private key; without it, the SSH agent's keys and the default ones."""
    known_hosts: Path = Path("~/.ssh/known_hosts")

    @property
    def address(self) -> str:
        """What it is, by whatever name it goes."""
        return f"{self.host.lower()}:{self.port}"


class AdbDevice(_Entry, kw_only=True):
    """A phone behind `adb`; nothing but a shell is expected there, no Python and no agent."""

    name: str = ""
    adb: str
    """Serial, as `adb devices` lists it; empty for the only one."""
    root: Path = Path("/data/local/tmp/ferryman")

    @property
    def address(self) -> str:
        """What it is, by whatever name it goes."""
        return f"adb {self.adb}"


class MqttDevice(_Entry, kw_only=True):
    """A device that is reached only through its agent, at a broker."""

    name: str = ""
    broker: Annotated[str, msgspec.Meta(min_length=1)]

    @property
    def address(self) -> str:
        """What it is, by whatever name it goes; without the broker's password."""
        return f"{self.name} at {parse_broker(self.broker).address}"


Device = LocalDevice | SshDevice | AdbDevice | MqttDevice


def devices_file() -> Path:
    """FERRYMAN_DEVICES, or the user's own file.

    Raises:
        CallerError: it begins at the home of nobody.
    """
    named = os.environ.get("FERRYMAN_DEVICES") or _DEFAULT_FILE
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise CallerError(f"FERRYMAN_DEVICES {named}: {error}; correct it, or give the file as --devices") from error


def read_devices(path: Path | str | None = None) -> dict[str, Device]:
    """Read a devices file; `local` is always among the devices.

    Args:
        path: None takes `devices_file()`, which need not exist.

    Raises:
        CallerError: there is no such file, or it does not say what a devices file says; the message says where.
    """
    source = Path(path) if path else devices_file()
    try:
        tables = tomllib.loads(read_file(source))
    except FileNotFoundError:
        if path is not None:
            raise CallerError(f"no devices file {path}") from None
        tables = {}
    except OSError as error:
        raise CallerError(f"devices file {source}: {error.strerror}") from error
    except ValueError as error:
        raise CallerError(f"devices file {source}: {error}") from error
    except RecursionError as error:
        raise CallerError(f"devices file {source}: arrays nested deeper than anything a setting takes") from error
    return parse_devices(tables, source)


def read_file(source: Path) -> str:
    """The text of a devices file, with its line ends as they are.

    Raises:
        OSError: it cannot be read, or is a FIFO or a device, which may never answer; /dev/null does.
        ValueError: it is no text.
    """
    with open(source, encoding="utf-8", newline="", opener=_unwaiting) as file:  # Path.open takes no opener
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not Path(source).samefile(os.devnull):
            raise OSError(errno.EINVAL, "no regular file", str(source))
        return file.read()


def _unwaiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def parse_devices(tables: Mapping[str, object], source: Path) -> dict[str, Device]:
    """Make devices of TOML tables.

    Raises:
        CallerError: a table lacks a setting, or has one that is unknown, of the wrong type, or of no use.
    """
    devices: dict[str, Device] = {LOCAL: LocalDevice()}
    for name, table in tables.items():
        kind = _kind(name, table)
        try:
            if not isinstance(table, dict):
                raise msgspec.ValidationError(f"expected a table [{name}], found {table!r}")
            if "name" in table:
                raise msgspec.ValidationError("the table's own title is the name; remove `name`")
            devices[name] = _checked(msgspec.convert({**table, "name": name}, kind, dec_hook=_to_path))
        except ValueError as error:
            known = ", ".join(field for field in kind.__struct_fields__ if field != "name")
            raise CallerError(f"devices file {source}, device {name!r}: {error}; settings are: {known}") from error
    return devices


def _kind(name: str, table: object) -> type[Device]:
    """What a table describes, told by the setting that says how it is reached."""
    settings = table if isinstance(table, dict) else {}
    if name == LOCAL:
        return LocalDevice
    if "adb" in settings:
        return AdbDevice
    return MqttDevice if "broker" in settings and not {"host", "user"} & settings.keys() else SshDevice


def _checked(device: Device) -> Device:
    """The device, with a local root that begins at home spelled out.

    Raises:
        ValueError: a setting that nothing could be done with; the message names it.
    """
    for field in device.__struct_fields__:
        value = getattr(device, field)
        if "\0" in str(value):
            raise ValueError(f"{field} has a NUL in it")
        if isinstance(value, str | Path) and not str(value).isprintable():
            raise ValueError(f"{field} {str(value)!r} has a character in it that cannot be printed")
    shlex.split(device.command)
    try:
        check_labels(device.labels)
        if device.broker is not None:
            parse_broker(device.broker)
    except CallerError as error:
        raise ValueError(str(error)) from error
    if isinstance(device, LocalDevice):
        return msgspec.structs.replace(device, root=_expanded("root", device.root))
    if isinstance(device, SshDevice):
        _check_ssh(device)
    if str(device.root).startswith("~"):
        raise ValueError(f"root {device.root}: a ~ is not expanded on the device; write the absolute path there")
    return device


def _check_ssh(device: SshDevice) -> None:
    """See that its settings can be used.

    Raises:
        ValueError: one cannot; the message names it.
    """
    try:
        device.host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"host {device.host!r} is no name of a host: {error}") from error
    for field, path in (("key", device.key), ("known_hosts", device.known_hosts)):
        if path is not None:
            _expanded(field, path)


def _expanded(field: str, path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{field} {path}: {error}") from error


def _to_path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError(f"expected a path, found {value!r}")


def find_device(devices: Mapping[str, Device], name: str, source: Path | str | None = None) -> Device:
    """Look a device up; `source` is the file that was read, None the usual one.

    Raises:
        CallerError: there is none of that name; the message lists those there are.
    """
    if name not in devices:
        raise CallerError(f"no device {name!r}; {there_are(devices, name, source)}")
    return devices[name]


def there_are(devices: Mapping[str, Device], missed: str, source: Path | str | None = None) -> str:
    """Which devices there are, and how one that is missed comes to be among them, where that may be a device's name."""
    told = f"there are: {some(devices)} (see {source or devices_file()})"
    if not is_name(missed):
        return told
    return (
        f"{told}; `ferryman devices add {missed} --host HOST --user USER` adds it, or with `--mqtt URL` where only its "
        "agent's broker reaches it"
    )


def some(names: Iterable[str]) -> str:
    """Names for a message: the first of them, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) or "none") + more


def connect(device: Device, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Transport:
    """Open the way to a device.

    Args:
        device: whose.
        timeout_s: bounds connecting over SSH, and then logging in.

    Raises:
        LinkError: it cannot be reached, or one side does not trust the other.
        CallerError: the key file or the known-hosts file cannot be used, or it is not reached this way.
    """
    if isinstance(device, LocalDevice):
        return LocalTransport()
    if not isinstance(device, SshDevice):
        raise CallerError(
            f"{device.name} is not reached over SSH: the devices file gives it no `host` and `user`; this needs them"
        )
    from ferryman.devices.transport.ssh import SshAddress, SshTransport  # asyncssh: host only

    try:
        return SshTransport(
            SshAddress(
                host=device.host,
                user=device.user,
                port=device.port,
                key=device.key,
                known_hosts=device.known_hosts,
                name=device.name,
            ),
            connect_timeout_s=timeout_s,
        )
    except CallerError as error:
        raise CallerError(f"{device.name}: {error}") from error
