"""Changes to the devices file that keep its comments and its order; whole or not at all, one at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.container import OutOfOrderTableProxy
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import SingleKey, Table

from ferryman.devices import topics
from ferryman.devices.fleet.inventory import Device, devices_file, parse_devices, read_file, some
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.durable import write_durable

Tables = dict[str, Any]
"""What a devices file says, by name."""
_MODE = 0o600
"""Of a new file: a broker's URL may hold a password."""


def add_device(name: str, settings: Mapping[str, Any], path: Path | None = None, *, replace: bool = False) -> Device:
    """Write a device's table; returns the device. See `add_devices`."""
    return add_devices({name: settings}, path, replace=replace)[0]


def add_devices(
    wanted: Mapping[str, Mapping[str, Any]], path: Path | None = None, *, replace: bool = False
) -> list[Device]:
    """Write the tables of devices, of all or of none; returns the devices.

    Args:
        wanted: name -> all that the table is to say.
        path: the devices file; None: the usual one. It is made where there is none.
        replace: let these settings take the place of those of a device of that name.

    Raises:
        CallerError: a name is none or taken, settings are no device's, or the file cannot be read or written;
            it is as it was.
    """
    for name in wanted:
        topics.check_name(name)

    def change(tables: Tables) -> None:
        for name, settings in wanted.items():
            if name not in tables:
                _append(tables, name, {})
            elif not replace:
                raise CallerError(
                    f"there is a device {name!r} already; `ferryman devices add --replace` lets new settings take the "
                    "place of its own"
                )
            _settle(tables[name], settings)

    made = _edit(change, path)
    return [made[name] for name in wanted]


def _settle(table: Tables, settings: Mapping[str, Any]) -> None:
    """Have a table say these settings and no others."""
    for key in [key for key in table if key not in settings]:
        del table[key]
    for key, value in settings.items():
        if key not in table:
            _append(table, key, value)
        elif table[key] != value:
            table[key] = value


def remove_devices(names: Sequence[str], path: Path | None = None) -> None:
    """Take the tables of devices out, and what is said in them, of all or of none.

    Raises:
        CallerError: there is none of such a name, or the file cannot be read or written; it is as it was.
    """

    def change(tables: Tables) -> None:
        for name in dict.fromkeys(names):
            _expect(tables, name)
            del tables[name]

    _edit(change, path)


def rename_device(old: str, new: str, path: Path | None = None) -> Device:
    """Give a device's table another title, where it stands; returns the device.

    Raises:
        CallerError: there is none of the old name, the new one is none or taken, or the file cannot be read or written;
            it is as it was.
    """
    topics.check_name(new)

    def change(tables: Tables) -> None:
        _expect(tables, old)
        if new in tables:
            raise CallerError(f"there is a device {new!r} already; remove that one first, or choose another name")
        if isinstance(tables, tomlkit.TOMLDocument):
            _retitle(tables, old, new)
        else:
            tables[new] = tables.pop(old)

    return _edit(change, path)[new]


def _retitle(document: tomlkit.TOMLDocument, old: str, new: str) -> None:
    """A table may be in pieces; each has a key of its own."""
    for at, (key, item) in enumerate(document.body):
        if key is not None and key.key == old:
            document.body[at] = (SingleKey(new), item)
            _forget_title(item)


def _forget_title(item: object) -> None:
    """A table shows its title as it was read, and so do those in it."""
    if isinstance(item, Table):
        item.display_name = None
        for _, inner in item.value.body:
            _forget_title(inner)


def label_devices(
    names: Sequence[str], set_: Mapping[str, str], away: tuple[str, ...] = (), path: Path | None = None
) -> list[Device]:
    """Set labels of devices, and take some away, of all of them or of none; returns the devices.

    Raises:
        CallerError: there is no such device or no such label to take away, a label is none, or the file cannot be read
            or written; it is as it was.
    """

    def change(tables: Tables) -> None:
        for name in names:
            _expect(tables, name)
            _label(name, tables[name], set_, away)

    made = _edit(change, path)
    return [made[name] for name in names]


def _label(name: str, table: Tables, set_: Mapping[str, str], away: tuple[str, ...]) -> None:
    if isinstance(table.get("labels"), OutOfOrderTableProxy):  # dotted keys; tomlkit cannot take the last one out
        written = dict(table["labels"])
        del table["labels"]
        _append(table, "labels", written)
    if set_ and "labels" not in table:
        _append(table, "labels", {})
    labels = table.get("labels", {})
    for label in away:
        if label not in labels:
            there = ", ".join(labels) or "none"
            raise CallerError(f"device {name!r} has no label {label!r} in the devices file; there are: {there}")
        del labels[label]
    for label, value in set_.items():
        labels[label] = value
    if not labels and "labels" in table:
        del table["labels"]


def _append(tables: Tables, key: str, value: Any) -> None:  # noqa: ANN401  # whatever a setting is
    """Add a key: a table to a document, an inline table or a value to a table, before the comments that end it.

    These are nearly always about the table that follows.
    """
    if isinstance(tables, tomlkit.TOMLDocument):
        if tables.body:
            tables.add(tomlkit.nl())
        tables.add(key, tomlkit.table())
    elif isinstance(tables, Table):
        body, tail = tables.value.body, []
        while body and body[-1][0] is None:
            tail.append(body.pop())
        inline = tomlkit.inline_table()
        if isinstance(value, Mapping):
            inline.update(value)
        tables.add(key, inline if isinstance(value, Mapping) else value)
        body.extend(reversed(tail))
    else:
        tables[key] = value


def _expect(tables: Tables, name: str) -> None:
    if name not in tables:
        raise CallerError(f"no device {name!r} in the devices file; there are: {some(tables)}")


def _edit(change: Callable[[Tables], None], path: Path | None) -> dict[str, Device]:
    """Change the file; the same change is made to what it says, and the new text must say just that."""
    named = path or devices_file()
    try:
        source = named.resolve()  # the file that a link leads to, not the link
        source.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise CallerError(f"devices file {named}: {error}; name another with --devices") from error
    with _alone(source):
        text = _read(source)
        try:
            wanted: Tables = tomllib.loads(text)
            document = tomlkit.parse(text)
        except (ValueError, TOMLKitError, RecursionError) as error:
            raise CallerError(f"devices file {source}: {error}; put that right first") from error
        parse_devices(wanted, source)
        change(wanted)
        devices = parse_devices(wanted, source)
        try:
            change(document)
            new = tomlkit.dumps(document)
            agrees = tomllib.loads(new) == wanted
        except (ValueError, TOMLKitError, LookupError, TypeError, AttributeError) as error:
            raise _not_writable(source, str(error)) from error
        if not agrees:
            raise _not_writable(source, "the new text would say something else")
        if new != text:
            _write(source, new)
    return devices


def _not_writable(source: Path, why: str) -> CallerError:
    return CallerError(
        f"devices file {source} is written in a way that cannot be changed here ({why}); edit it by hand"
    )


def _read(source: Path) -> str:
    try:
        return read_file(source)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CallerError(f"devices file {source}: {error.strerror}") from error
    except ValueError as error:
        raise CallerError(f"devices file {source}: {error}") from error


def _write(source: Path, text: str) -> None:
    before = None
    with suppress(FileNotFoundError):
        before = source.stat()
    mode = _MODE if before is None else stat.S_IMODE(before.st_mode)
    try:
        write_durable(source, text.encode(), mode=mode)
        if before is not None:
            with suppress(PermissionError):  # whose it was; only root may give it back
                os.chown(source, before.st_uid, before.st_gid)
            source.chmod(mode)  # whatever the umask took from it
    except (DeviceError, OSError) as error:
        raise CallerError(f"devices file {source} cannot be written: {error}") from error


@contextmanager
def _alone(source: Path) -> Iterator[None]:
    """Hold the file against other writers; readers see the old one or the new one, whole."""
    try:
        lock = os.open(source.with_name(f"{source.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    except OSError as error:
        raise CallerError(f"devices file {source}: no file can be written beside it: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
