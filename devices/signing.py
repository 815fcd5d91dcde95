"""Commands that an operator signed: bytes in, proven bytes or an error out (extra `enroll`).

On the wire: the magic, the header's length (4 bytes, big-endian), the header (MessagePack), 64 bytes of Ed25519 signature
over everything else, and the command itself, byte for byte as it would be sent unsigned.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ferryman.devices.identity import guard_secret
from ferryman.runtime.contracts.errors import CallerError, IdentityError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import pack, unpack

MAGIC = b"ferryman-signed/1\n"
KEY_VARIABLE = "FERRYMAN_OPERATOR_KEY"
"""Environment: the file of the key that signs."""
PASSPHRASE = "FERRYMAN_CA_PASSPHRASE"  # noqa: S105  # the name of a variable
NONCE_CHARS = 32
_HEADER_MAX_BYTES = 1024
_SIGNATURE_BYTES = 64
_LENGTH_BYTES = 4

Kind = Literal["request", "desired"]


class Header(Record):
    """What is signed beside the command."""

    key: str
    """See `key_id`."""
    device: str
    kind: Kind
    issued_ns: int
    expires_ns: int
    """Both by the operator's wall clock."""
    nonce: str
    """Of each command its own."""
    challenge: str = ""
    """Of a request: that of the agent's status."""


class Signed(Record):
    """A command taken apart; nothing of it is proven yet."""

    header: Header
    signature: bytes
    signed: bytes
    payload: bytes


def key_id(key: Ed25519PublicKey) -> str:
    """How a key is called: the beginning of its SHA-256."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def load_public(pem: bytes) -> Ed25519PublicKey:
    """Read an operator's public key.

    Raises:
        IdentityError: it is none.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError("expected the public key of an operator (PEM, Ed25519); give NAME.pem of `ferryman ca operator`")
    return key


class OperatorKey:
    """A key that signs commands."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.id = key_id(key.public_key())

    def sign(
        self, payload: bytes, *, device: str, kind: Kind, now_ns: int, life_ns: int, challenge: str = ""
    ) -> bytes:
        """Wrap a command for one device."""
        header = pack(
            Header(
                key=self.id,
                device=device,
                kind=kind,
                issued_ns=now_ns,
                expires_ns=now_ns + life_ns,
                nonce=secrets.token_hex(NONCE_CHARS // 2),
                challenge=challenge,
            )
        )
        head = MAGIC + len(header).to_bytes(_LENGTH_BYTES) + header
        return b"".join((head, self._key.sign(head + payload), payload))


def operator_key() -> OperatorKey | None:
    """The key that $FERRYMAN_OPERATOR_KEY names; None: none is named.

    Raises:
        CallerError: there is no such key, or it is encrypted and its passphrase is not in the environment.
        IdentityError: others could read or change it.
    """
    named = os.environ.get(KEY_VARIABLE)
    if not named:
        return None
    path = Path(named)
    passphrase = os.environ.get(PASSPHRASE, "").encode() or None
    try:
        guard_secret(path)
        pem = path.read_bytes()
        encrypted = b"ENCRYPTED" in pem.split(b"\n", 1)[0]
        key = load_pem_private_key(pem, passphrase if encrypted else None)
    except OSError as error:
        raise CallerError(f"${KEY_VARIABLE}: cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their words may quote the bytes
        raise CallerError(
            f"${KEY_VARIABLE}: {path} is no key that can be read; if it is encrypted, put its passphrase into ${PASSPHRASE}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CallerError(f"${KEY_VARIABLE}: expected a key of `ferryman ca operator` (Ed25519), found another kind: {path}")
    return OperatorKey(key)


def new_operator_key() -> tuple[Ed25519PrivateKey, bytes]:
    """A key, and its public half as PEM."""
    key = Ed25519PrivateKey.generate()
    return key, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


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
    if size > _HEADER_MAX_BYTES or len(data) < end + _SIGNATURE_BYTES:
        raise ValueError("a signed command that is cut short")
    header = unpack(data[begin:end], Header)
    payload = data[end + _SIGNATURE_BYTES :]
    return Signed(
        header=header, signature=data[end : end + _SIGNATURE_BYTES], signed=data[:end] + payload, payload=payload
    )


def inner(data: bytes) -> bytes:
    """The command itself, signed or not; for whoever reads and does not obey.

    Raises:
        ValueError: it begins as a signed one and is damaged.
    """
    found = take_apart(data)
    return data if found is None else found.payload


def verify(signed: Signed, key: Ed25519PublicKey) -> None:
    """See that the key signed this.

    Raises:
        IdentityError: it did not.
    """
    try:
        key.verify(signed.signature, signed.signed)
    except InvalidSignature:
        raise IdentityError(f"the signature is not that of key {signed.header.key}: altered on the way, or forged") from None


__all__ = [
    "Header",
    "OperatorKey",
    "PrivateFormat",
    "Signed",
    "inner",
    "key_id",
    "load_public",
    "new_operator_key",
    "operator_key",
    "take_apart",
    "verify",
]
_ = msgspec
