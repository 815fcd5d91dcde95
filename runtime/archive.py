"""The one form in which a package's zip is written, byte for byte: readers compare with it and parse nothing.

Every entry is stored, dated 1980-01-01 and readable by all, with no extra field but ZIP64's where a number needs it
(PKWARE APPNOTE 6.3, sections 4.3 and 4.5.3).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

FIELD_MAX = 0xFFFF_FFFF
"""Of a 32-bit field; a number that reaches it goes to the ZIP64 extra field."""
CRC_AT, SIZE_AT = 14, 22
"""Where a local header holds these, four bytes each, little-endian."""
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_DATE = 1 << 5 | 1
_UNIX = 3 << 8
_MODE = 0o644 << 16
_VERSION, _VERSION64 = 20, 45


class Entry(NamedTuple):
    """One file in the archive."""

    name: str
    size: int
    crc: int
    offset: int
    """Of its local header."""


def local_header(entry: Entry) -> bytes:
    """What comes before the entry's data."""
    large = entry.size >= FIELD_MAX
    extra = _extra64(entry.size, entry.size) if large else b""
    size = FIELD_MAX if large else entry.size
    version = _VERSION64 if large else _VERSION
    name = entry.name.encode()
    fields = (version, 0, 0, 0, _DATE, entry.crc, size, size, len(name), len(extra))
    return _LOCAL.pack(b"PK\3\4", *fields) + name + extra


def ending(entries: Sequence[Entry], start: int, comment_bytes: int) -> bytes:
    """What comes after the last entry's data, which ends at `start`, and before a comment of `comment_bytes`."""
    directory = b"".join(_central_header(entry) for entry in entries)
    end = b""
    if start >= FIELD_MAX:
        count = len(entries)
        end = _END64.pack(
            b"PK\6\6", _END64.size - 12, _VERSION64, _VERSION64, 0, 0, count, count, len(directory), start
        ) + _LOCATOR64.pack(b"PK\6\7", 0, start + len(directory), 1)
    fields = (0, 0, len(entries), len(entries), len(directory), min(start, FIELD_MAX), comment_bytes)
    return directory + end + _END.pack(b"PK\5\6", *fields)


def _central_header(entry: Entry) -> bytes:
    large = [entry.size, entry.size] if entry.size >= FIELD_MAX else []
    far = [entry.offset] if entry.offset >= FIELD_MAX else []
    extra = _extra64(*large, *far) if large or far else b""
    version = _VERSION64 if extra else _VERSION
    size = FIELD_MAX if large else entry.size
    name = entry.name.encode()
    return (
        _CENTRAL.pack(
            b"PK\1\2", _UNIX | version, version, 0, 0, 0, _DATE, entry.crc, size, size,
            len(name), len(extra), 0, 0, 0, _MODE, FIELD_MAX if far else entry.offset,
        )
        + name
        + extra
    )  # fmt: skip


def _extra64(*numbers: int) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
