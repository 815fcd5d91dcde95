"""Power cuts on a model of a disk: what a process did to files, replayed so that what was not synced may be lost.

The model is as harsh as POSIX allows, harsher than most file systems are: until a file is fsynced, its bytes may be
those from before, zeros of the new length, or the new ones up to any point; until a folder is fsynced, each change of
an entry in it may have happened or not, whatever the order they were made in. One rename inside a folder is atomic.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.strace import CHANGING, STEP

_LINE = re.compile(r"^\d+ +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(?:<.*>)?$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_AT = re.compile(r"(?:AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?")
_NUMBER = re.compile(r"(?:^|, )(\d+)$")
_STRINGS_MAX = 10_000_000
OPENS, WRITES, SYNCS = ("open", "openat", "creat"), ("write", "pwrite64"), ("fsync", "fdatasync")
SIZES = ("ftruncate", "fallocate")
RENAMES, REMOVES = ("rename", "renameat", "renameat2"), ("unlink", "unlinkat", "rmdir")


@dataclass(frozen=True)
class Did:
    """One call that changed or synced something; paths are absolute."""

    name: str
    paths: tuple[str, ...]
    data: bytes = b""
    number: int | None = None
    """Offset of a pwrite64, length of an ftruncate or a fallocate."""
    step: str = ""
    """The last one that the program told of; empty: none yet."""


def record(program: str, arguments: tuple[str, ...], root: Path, log: Path) -> list[Did]:
    """Run a Python program and take down what it does below `root`."""
    argv = ["strace", "-f", "-y", "-xx", "-s", str(_STRINGS_MAX), "-e", f"trace={CHANGING}", "-o", str(log)]
    done = subprocess.run([*argv, sys.executable, "-B", "-c", program, *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found, step = [], ""
    for line in log.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:  # it failed, or is no call
            continue
        did = _did(match["name"], match["arguments"], int(match["result"]), step)
        if did and did.data.startswith(STEP.encode()):
            step = did.data.decode().removeprefix(STEP).strip()
        elif did and did.paths[0].startswith(str(root)):
            found.append(did)
    assert found
    return found


def _did(name: str, arguments: str, result: int, step: str) -> Did | None:
    folders = [_bytes(one).decode() for one in _AT.findall(arguments)]
    strings = [_bytes(one) for one in _STRING.findall(arguments)]
    last = _NUMBER.search(arguments)
    number = int(last[1]) if last and name in ("pwrite64", *SIZES) else None
    if name in WRITES:
        return Did(name, (folders[0],), strings[0][:result], number, step)
    if name in (*SYNCS, *SIZES):
        return Did(name, (folders[0],), number=number, step=step)
    if name in ("flock", "fchmod", "utimensat") or (name in OPENS and "O_CREAT" not in arguments):
        return None
    assert "O_TRUNC" not in arguments or "/dev/" in strings[0].decode(), "the model knows no O_TRUNC"
    folders = folders or [""] * len(strings)
    return Did(
        name, tuple(_under(folder, one.decode()) for folder, one in zip(folders, strings, strict=True)), step=step
    )


def _under(folder: str, path: str) -> str:
    return path if path.startswith("/") else f"{folder}/{path}"


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


@dataclass(eq=False)
class _File:
    durable: bytes = b""
    now: bytes = b""
    at: int = 0
    """Where the next write goes: each file here is written through one descriptor."""


@dataclass(eq=False)
class _Folder:
    durable: dict[str, _File | _Folder] = field(default_factory=dict)
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)
    """Changes of entries since it was synced; None: removed."""

    def change(self, entries: dict[str, _File | _Folder | None]) -> None:
        self.pending.append(entries)
        _change(self.now, entries)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.now), []


def _change(held: dict[str, _File | _Folder], entries: dict[str, _File | _Folder | None]) -> None:
    for name, entry in entries.items():
        if entry is None:
            held.pop(name, None)
        else:
            held[name] = entry


class Disk:
    """What is below a root, as programs see it, and what of it is sure to be there after a power cut."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._top = self._load(root, {})

    def _load(self, folder: Path, seen: dict[int, _File]) -> _Folder:
        entries: dict[str, _File | _Folder] = {}
        for path in folder.iterdir():
            if path.is_dir():
                entries[path.name] = self._load(path, seen)
            else:
                data = path.read_bytes()
                entries[path.name] = seen.setdefault(path.stat().st_ino, _File(data, data))
        return _Folder(dict(entries), dict(entries))

    def _entry(self, path: str) -> _File | _Folder | None:
        here: _File | _Folder | None = self._top
        for part in Path(path).relative_to(self._root).parts:
            here = here.now.get(part) if isinstance(here, _Folder) else None
        return here

    def _parent(self, path: str) -> tuple[_Folder, str]:
        folder = self._entry(str(Path(path).parent))
        assert isinstance(folder, _Folder), path
        return folder, Path(path).name

    def do(self, did: Did) -> None:
        """Make one call."""
        path = did.paths[0]
        if did.name in SYNCS:
            self._sync(path)
        elif did.name in (*WRITES, *SIZES):
            self._write(path, did)
        elif did.name in OPENS:
            self._open(path)
        elif did.name in ("mkdir", "mkdirat"):
            self._set(path, _Folder())
        elif did.name in REMOVES:
            self._set(path, None)
        elif did.name in ("link", "linkat"):
            self._set(did.paths[1], self._entry(path))
        else:
            assert did.name in RENAMES, f"the model knows no {did.name}"
            self._rename(path, did.paths[1])

    def _set(self, path: str, entry: _File | _Folder | None) -> None:
        folder, name = self._parent(path)
        folder.change({name: entry})

    def _sync(self, path: str) -> None:
        entry = self._entry(path)
        if isinstance(entry, _Folder):
            entry.sync()
        elif entry is not None:
            entry.durable = entry.now

    def _open(self, path: str) -> None:
        entry = self._entry(path)
        if isinstance(entry, _File):
            entry.at = 0
        else:
            self._set(path, _File())

    def _write(self, path: str, did: Did) -> None:
        file = self._entry(path)
        assert isinstance(file, _File), did
        if did.name in SIZES:
            length = did.number or 0
            kept = file.now[:length] if did.name == "ftruncate" else file.now
            file.now = kept.ljust(length, b"\0")
            return
        at = file.at if did.number is None else did.number
        end = at + len(did.data)
        file.now = file.now[:at].ljust(at, b"\0") + did.data + file.now[end:]
        file.at = end if did.number is None else file.at

    def _rename(self, path: str, target: str) -> None:
        entry = self._entry(path)
        (old, old_name), (new, new_name) = self._parent(path), self._parent(target)
        if old is new:
            old.change({old_name: None, new_name: entry})
        else:
            new.change({new_name: entry})
            old.change({old_name: None})

    def cut(self, place: Path, how: str, chance: random.Random) -> None:
        """Write what is left after a power cut into `place`.

        Args:
            place: a new folder.
            how: `least` (nothing that was not synced), `most` (everything), `names` (entries, and no data), `zeros`
                (entries, and zeros for data), or `any` (each by chance).
            chance: to draw from.
        """
        self._put(self._top, place, how, chance, {})

    def _put(self, folder: _Folder, place: Path, how: str, chance: random.Random, bytes_of: dict[_File, bytes]) -> None:
        place.mkdir()
        entries = dict(folder.durable)
        for changes in folder.pending:
            if how in ("most", "names", "zeros") or (how == "any" and chance.random() < 0.5):
                _change(entries, changes)
        for name, entry in entries.items():
            if isinstance(entry, _Folder):
                self._put(entry, place / name, how, chance, bytes_of)
            else:
                if entry not in bytes_of:
                    bytes_of[entry] = _left(entry, how, chance)
                (place / name).write_bytes(bytes_of[entry])


def _left(file: _File, how: str, chance: random.Random) -> bytes:
    if file.now == file.durable:
        return file.now
    ways = {
        "least": file.durable,
        "names": file.durable,
        "zeros": bytes(len(file.now)),
        "most": file.now,
        "torn": file.now[: chance.randrange(len(file.now) + 1)],
    }
    return ways[chance.choice(sorted(ways)) if how == "any" else how]


def cuts(did: list[Did], template: Path, work: Path, draws: int) -> Iterator[tuple[int, str, Path]]:
    """A power cut after each call, in several ways: how many calls were made, which way, and what is left.

    Args:
        did: from `record`, under `template`'s own path.
        template: what was there before it; unchanged.
        work: an empty folder.
        draws: how many of the ways are by chance.
    """
    disk, chance = Disk(template), random.Random(0)  # noqa: S311  # not a secret
    for made in range(len(did) + 1):
        if made:
            disk.do(did[made - 1])
        for number, how in enumerate(("least", "most", "names", "zeros", *["any"] * draws)):
            place = work / f"{made}-{number}"
            disk.cut(place, how, chance)
            yield made, how, place
