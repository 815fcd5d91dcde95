"""What an installer would do with a wheel's files: where they go, and whether RECORD tells the truth of them."""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

NATIVE = "ferryman/runtime/native/lib/"
INFO = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
"""All that the dist-info holds."""
SCRIPTS = ["[console_scripts]", "ferryman = ferryman.cli:main"]
PLACES = re.compile(
    rf"ferryman/([a-z0-9_]+/)*[A-Za-z0-9_]+\.py|{NATIVE}lib\w+\.so|{NATIVE}licenses/[\w.-]+\.txt"
    r"|ferryman/devices/fleet/facts/bare\.sh|ferryman/profiler/report\.html",
    re.ASCII,
)
"""Where each kind of file may be: the two that are no Python have one place each."""
FILE_MAX_BYTES = 100_000


def read_wheel(wheel: Path) -> tuple[dict[str, bytes], list[str]]:
    """Its files, and what is wrong with the archive itself."""
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
        files = {member.filename: archive.read(member) for member in members}
    wrong = [
        f"{name} is in it {count} times" for name, count in Counter(m.filename for m in members).items() if count > 1
    ]
    for member in members:
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in {0, stat.S_IFREG} or mode & (stat.S_ISUID | stat.S_ISGID):
            wrong.append(f"{member.filename} is no plain file but {stat.filemode(mode)}")
    return files, wrong


def file_problems(wheel: Path, files: dict[str, bytes]) -> Iterator[str]:
    """What is wrong with where files go, and with RECORD."""
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info/"
    for name, data in files.items():
        if name.startswith(info):
            placed = name.removeprefix(info) in INFO
        else:
            placed = bool(PLACES.fullmatch(name)) and (name.endswith(".so") or len(data) <= FILE_MAX_BYTES)
        if not placed:
            yield f"{name} ({len(data)} bytes) has no place in a device's wheel"
    yield from (f"{info}{name} is missing" for name in INFO if info + name not in files)
    scripts = files.get(f"{info}entry_points.txt", b"").decode(errors="replace").split("\n")
    if [line.strip() for line in scripts if line.strip()] != SCRIPTS:
        yield f"its entry points are {scripts}, expected {SCRIPTS}"
    yield from _record(f"{info}RECORD", files)


def _record(record: str, files: dict[str, bytes]) -> Iterator[str]:
    rows = list(csv.reader(files.get(record, b"").decode(errors="replace").splitlines()))
    listed = Counter(row[0] for row in rows if row)
    yield from (f"RECORD lists {name} {count} times" for name, count in listed.items() if count > 1)
    yield from (f"RECORD does not list {name}" for name in files if name not in listed)
    for row in rows:
        name = row[0] if row else ""
        if name not in files:
            yield f"RECORD lists {name}, which is not there"
        elif row != ([name, "", ""] if name == record else entry(name, files[name])):
            yield f"RECORD has another hash or size of {name}: {','.join(row[1:])}"


def entry(name: str, data: bytes) -> list[str]:
    """A file's row of RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return [name, f"sha256={digest}", str(len(data))]
