"""Operators' keys: what signs commands and proves signatures (Ed25519, extra `enroll`)."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ferryman.devices.identity import guard_secret, write_secret
from ferryman.devices.sealed import NONCE_CHARS, Header, Kind, Signed, head_of
from ferryman.devices.topics import check_name
from ferryman.runtime.contracts.errors import CallerError, DeviceError, IdentityError
from ferryman.runtime.durable import write_durable

KEY_VARIABLE = "FERRYMAN_OPERATOR_KEY"
"""Environment: the file of the key that signs."""
PASSPHRASE = "FERRYMAN_CA_PASSPHRASE"  # noqa: S105  # the name of a variable


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
        raise IdentityError(
            "expected the public key of an operator (PEM, Ed25519); give NAME.pem of `ferryman ca operator`"
        )
    return key


class OperatorKey:
    """A key that signs commands."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.id = key_id(key.public_key())

    def sign(self, payload: bytes, *, device: str, kind: Kind, now_ns: int, life_ns: int, challenge: str = "") -> bytes:
        """Wrap a command for one device."""
        head = head_of(
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
            f"${KEY_VARIABLE}: {path} cannot be read as a key; if it is encrypted, set ${PASSPHRASE}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CallerError(
            f"${KEY_VARIABLE}: expected a key of `ferryman ca operator` (Ed25519), found another kind: {path}"
        )
    return OperatorKey(key)


def write_operator_key(folder: Path, name: str) -> Path:
    """Make a key: NAME.key for its owner alone, NAME.pem for devices; returns the latter.

    Raises:
        CallerError: no name, there is one of that name, or the folder cannot be written.
    """
    check_name(name, "operator")
    secret, public = folder / f"{name}.key", folder / f"{name}.pem"
    if secret.exists():
        raise CallerError(f"{secret} is there already; another key takes another name")
    key = Ed25519PrivateKey.generate()
    passphrase = os.environ.get(PASSPHRASE, "").encode()
    cipher = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    try:
        write_durable(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        write_secret(secret, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher))
    except DeviceError as error:
        raise CallerError(str(error)) from error
    return public


def verify(signed: Signed, key: Ed25519PublicKey) -> None:
    """See that the key signed this.

    Raises:
        IdentityError: it did not.
    """
    try:
        key.verify(signed.signature, signed.signed)
    except InvalidSignature:
        raise IdentityError(
            f"the signature is not that of key {signed.header.key}: altered on the way, or forged"
        ) from None
