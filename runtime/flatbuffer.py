"""Reads FlatBuffers that nobody has verified: every access is checked against the bytes there are.

Fields go by their number in the schema. Only what is asked for is read: the bytes may be a large file, mapped, and
pages that are touched count as memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

Data = bytes | bytearray | mmap.mmap | memoryview
_COUNT = 4
"""Bytes of a count, of an offset to a table, and of a vtable's first two numbers."""


class BrokenError(ValueError):
    """The bytes are no such FlatBuffer."""


class Table:
    """A table, somewhere in the bytes."""

    def __init__(self, data: Data, at: int) -> None:
        self.data = data
        self.at = at
        self._vtable = at - number(data, "<i", at)
        self._vtable_bytes = number(data, "<H", self._vtable)

    @classmethod
    def root(cls, data: Data, identifier: bytes | None = None) -> Table:
        """The outermost one.

        Raises:
            BrokenError: the file identifier is another.
        """
        if identifier is not None and bytes(data[4:8]) != identifier:
            raise BrokenError(f"expected the identifier {identifier!r}, found {bytes(data[4:8])!r}")
        return cls(data, number(data, "<I", 0))

    def place(self, field: int) -> int | None:
        """Where a field is; None: the table has it not."""
        slot = _COUNT + 2 * field
        offset = number(self.data, "<H", self._vtable + slot) if slot < self._vtable_bytes else 0
        return self.at + offset if offset else None

    def target(self, field: int) -> int | None:
        """Where that is which a field points to."""
        at = self.place(field)
        return None if at is None else at + number(self.data, "<I", at)

    def integer(self, field: int, form: str = "i", otherwise: int = 0) -> int:
        """A whole number; `form` as `struct` has it."""
        at = self.place(field)
        return otherwise if at is None else number(self.data, f"<{form}", at)

    def table(self, field: int) -> Table | None:
        """A table, or a union's."""
        at = self.target(field)
        return None if at is None else Table(self.data, at)

    def tables(self, field: int) -> Tables:
        """A vector of tables; empty where there is none."""
        return Tables(self.data, *self._vector(field, _COUNT))

    def integers(self, field: int, form: str = "i") -> tuple[int, ...]:
        """A vector of whole numbers."""
        size = struct.calcsize(f"<{form}")
        start, count = self._vector(field, size)
        return struct.unpack_from(f"<{count}{form}", self.data, start)

    def count(self, field: int, size: int = 1) -> int:
        """How many numbers of `size` bytes a vector holds."""
        return self._vector(field, size)[1]

    def bytes_of(self, field: int, most: int | None = None) -> bytes:
        """A string, or a vector of bytes, or the first of it."""
        start, count = self._vector(field, 1)
        return bytes(self.data[start : start + (count if most is None else min(count, most))])

    def text(self, field: int) -> str | None:
        """A string; None: there is none."""
        return None if self.place(field) is None else self.bytes_of(field).decode(errors="replace")

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        at = self.target(field)
        if at is None:
            return 0, 0
        count = number(self.data, "<I", at)
        if count * size > len(self.data) - at - _COUNT:
            raise BrokenError(f"a vector of {count} items of {size} bytes goes beyond the end")
        return at + _COUNT, count


class Tables(Sequence[Table]):
    """A vector of tables, made as they are asked for."""

    def __init__(self, data: Data, start: int, count: int) -> None:
        self._data, self._start, self._count = data, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Table:  # type: ignore[override]  # no slices
        if not 0 <= index < self._count:
            raise BrokenError(f"there is no item {index} in a vector of {self._count}")
        return Table(self._data, self.where(index))

    def where(self, index: int) -> int:
        """The place of an item."""
        at = self._start + _COUNT * index
        return at + number(self._data, "<I", at)

    def __iter__(self) -> Iterator[Table]:
        return (self[index] for index in range(self._count))


def number(data: Data, form: str, at: int) -> int:
    """One number.

    Raises:
        BrokenError: it is not within the bytes.
    """
    if at < 0:  # would count from the end
        raise BrokenError("an offset goes before the beginning")
    try:
        return int(struct.unpack_from(form, data, at)[0])
    except (struct.error, ValueError) as error:
        raise BrokenError(f"an offset goes beyond the end: {error}") from error
