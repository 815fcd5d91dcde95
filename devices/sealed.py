"""The bytes of a signed command: put together and taken apart, without proving anything (`ferryman.devices.signing`).

On the wire: the magic, the header's length (4 bytes, big-endian), the header (MessagePack), 64 bytes of Ed25519
signature over everything else, and the command itself, byte for byte as it would be sent unsigned.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import pack, unpack

MAGIC = b"ferryman-signed/1\n"
NONCE_CHARS = 32
OVERHEAD_MAX_BYTES = 1024
"""What a signature adds to a command."""
SIGNATURE_BYTES = 64
_LENGTH_BYTES = 4
_HEADER_MAX_BYTES = OVERHEAD_MAX_BYTES - len(MAGIC) - _LENGTH_BYTES - SIGNATURE_BYTES

Kind = Literal["request", "desired"]
_Text = Annotated[str, msgspec.Meta(max_length=64)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Header(Record):
    """What is signed beside the command."""

    key: _Text
    """The beginning of the key's SHA-256."""
    device: _Text
    kind: Kind
    issued_ns: _Time
    expires_ns: _Time
    """Both by the operator's wall clock."""
    nonce: _Text
    """Of each command its own."""
    challenge: _Text = ""
    """Of a request: that of the agent's status."""


class Signed(Record):
    """A command taken apart; nothing of it is proven yet."""

    header: Header
    signature: bytes
    signed: bytes
    payload: bytes


def head_of(header: Header) -> bytes:
    """What comes before the signature."""
    packed = pack(header)
    return MAGIC + len(packed).to_bytes(_LENGTH_BYTES) + packed


def take_apart(data: bytes) -> Signed | None:
    """A signed command's parts; None: it is not signed.

    Raises:
        ValueError: it begins as one and is damaged.
    """
    if not data.startswith(MAGIC):
        return None
    begin = len(MAGIC) + _LENGTH_BYTES
    size = int.from_bytes(data[len(MAGIC) : begin])
    end = begin + size
    if size > _HEADER_MAX_BYTES or len(data) < end + SIGNATURE_BYTES:
        raise ValueError("it is cut short")
    header = unpack(data[begin:end], Header)
    payload = data[end + SIGNATURE_BYTES :]
    return Signed(
        header=header, signature=data[end : end + SIGNATURE_BYTES], signed=data[:end] + payload, payload=payload
    )


def inner(data: bytes) -> bytes:
    """The command itself, signed or not; for whoever reads and does not obey.

    Raises:
        ValueError: it begins as a signed one and is damaged.
    """
    found = take_apart(data)
    return data if found is None else found.payload
