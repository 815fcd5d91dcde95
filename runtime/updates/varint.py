"""Whole numbers in as few bytes as they need, and reading what nobody has verified."""

from __future__ import annotations

_SEVEN = 7
_VARINT_MAX_BYTES = 9


def write_varint(value: int) -> bytes:
    """A number from 0, seven bits a byte, low ones first."""
    made = bytearray()
    while value >> _SEVEN:
        made.append(value & 0x7F | 0x80)
        value >>= _SEVEN
    made.append(value)
    return bytes(made)


class Reader:
    """Reads bytes from the first to the last."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, count: int) -> memoryview:
        """The next `count` bytes.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= count <= len(self._data) - self._at:
            raise ValueError(f"it ends after {len(self._data)} bytes, and {count} more were expected at {self._at}")
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> memoryview:
        """All that is left, to look at; `take` moves on."""
        return self._data[self._at :]

    def varint(self) -> int:
        """A number that `write_varint` wrote.

        Raises:
            ValueError: there is none, or it is longer than any that is written.
        """
        value = 0
        for place in range(_VARINT_MAX_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << _SEVEN * place
            if byte < 0x80:  # noqa: PLR2004  # the bit that says more follows
                return value
        raise ValueError("a number of more than 63 bits")

    def varint_to(self, most: int) -> int:
        """A number up to `most`.

        Raises:
            ValueError: it is more, or none.
        """
        if (value := self.varint()) > most:
            raise ValueError(f"{value}, where {most} is the most there can be")
        return value

    def end(self) -> None:
        """See that nothing is left.

        Raises:
            ValueError: something is.
        """
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes follow the end")
