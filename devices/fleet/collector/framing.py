"""MQTT packets cut from bytes and put into bytes, as far as a collector needs; pure (MQTT 5 and 3.1.1, section 2)."""

from __future__ import annotations

from typing import NamedTuple

PUBLISH, PUBACK = 0x30, 0x40
_LENGTH_MAX_BYTES = 4
_MORE = 0x80
"""Set in a byte of a length that another follows."""
_QOS = 0x06
_RETAIN = 0x01

Came = tuple[bytes, bytes, bytes, bool]
"""Topic, packet identifier (empty: QoS 0), payload, and whether the broker had kept it (RETAIN)."""


class Cut(NamedTuple):
    """What one look at some bytes found."""

    packets: list[tuple[int, bytes]]
    """First byte, and all that follows the length."""
    rest: bytes
    """The begin of a packet that is not all there."""
    missing_bytes: int
    """How many more `rest` needs at the least."""


def cut(data: bytes) -> Cut:
    """Take whole packets from the front of `data`.

    Raises:
        ValueError: a length of more than four bytes.
    """
    packets: list[tuple[int, bytes]] = []
    at = 0
    while (found := read_length(data, at + 1)) is not None:
        size, start = found
        end = start + size
        if end > len(data):
            return Cut(packets, data[at:], end - len(data))
        packets.append((data[at], data[start:end]))
        at = end
    return Cut(packets, data[at:], 1)


def read_length(data: bytes, at: int) -> tuple[int, int] | None:
    """A length, and where what follows it begins; None: it is not all there (section 1.5.5 of MQTT 5).

    Raises:
        ValueError: it has more than four bytes.
    """
    size = shift = 0
    for place in range(at, len(data)):
        byte = data[place]
        size |= (byte & _MORE - 1) << shift
        if byte < _MORE:
            return size, place + 1
        shift += 7
        if shift == 7 * _LENGTH_MAX_BYTES:
            raise ValueError("a length of more than four bytes")
    return None


def write_length(size: int) -> bytes:
    """The same, written."""
    out = bytearray()
    while True:
        size, low = divmod(size, _MORE)
        out.append(low | (_MORE if size else 0))
        if not size:
            return bytes(out)


def read_publish(first: int, body: bytes, *, v5: bool) -> Came:
    """Take a PUBLISH apart (section 3.3); its properties are not for us.

    Raises:
        ValueError: it is shorter than it says.
    """
    at = 2 + int.from_bytes(body[:2], "big")
    topic, identifier = body[2:at], b""
    if first & _QOS:
        identifier = body[at : at + 2]
        at += 2
    if v5:
        if (found := read_length(body, at)) is None:
            raise ValueError("a PUBLISH that is cut short")
        at = found[0] + found[1]
    if at > len(body):
        raise ValueError("a PUBLISH that is cut short")
    return topic, identifier, body[at:], bool(first & _RETAIN)


def write_publish(topic: str, payload: bytes, *, v5: bool, identifier: int = 0) -> bytes:
    """A PUBLISH of QoS 0, or 1 with an identifier."""
    name = topic.encode()
    number = identifier.to_bytes(2, "big") if identifier else b""
    body = len(name).to_bytes(2, "big") + name + number + (b"\0" if v5 else b"") + payload
    return bytes((PUBLISH | (0x02 if identifier else 0),)) + write_length(len(body)) + body


def write_puback(identifier: bytes) -> bytes:
    """Taken, in both versions."""
    return b"\x40\x02" + identifier
