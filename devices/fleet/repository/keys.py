"""Signing keys in folders: `<role>-<begin of the key's id>.pem`, ed25519, PKCS #8, for its owner's eyes only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.durable import sync_directory

PASSPHRASE = "FERRYMAN_KEYS_PASSPHRASE"  # noqa: S105  # the name of a variable
_ID_DIGITS = 16


class Keyring:
    """The folders keys are looked for in; the first takes new ones.

    Args:
        folders: at least one.
        passphrase: of encrypted keys; new ones are encrypted with it. None: what the environment says.
    """

    def __init__(self, folders: Sequence[Path], passphrase: str | None = None) -> None:
        if not folders:
            raise CallerError("name the folder of the signing keys (--keys)")
        self.folders = tuple(folders)
        self._passphrase = (passphrase or os.environ.get(PASSPHRASE) or "").encode() or None

    def make(self, role: str, folder: Path | None = None) -> CryptoSigner:
        """Make a key and write it down.

        Raises:
            CallerError: the folder cannot be written.
        """
        signer = CryptoSigner.generate_ed25519()
        pem = signer.private_bytes
        if self._passphrase:
            pem = load_pem_private_key(pem, None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self._passphrase)
            )
        path = (folder or self.folders[0]) / _file_name(role, signer.public_key)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(descriptor)
            sync_directory(path.parent)
        except OSError as error:
            raise CallerError(f"cannot write the key {path}: {error.strerror}") from error
        return signer

    def folders_of(self, role: str, keys: Iterable[Key]) -> list[Path | None]:
        """The folder that holds each key of a role; None: it is not here."""
        found = (self._find(role, key) for key in keys)
        return [path.parent if path else None for path in found]

    def has(self, role: str, keys: Iterable[Key], threshold: int) -> bool:
        """Whether enough keys of a role are here."""
        return sum(self._find(role, key) is not None for key in keys) >= threshold

    def signers(self, role: str, keys: Iterable[Key], threshold: int) -> list[Signer]:
        """Every key of a role that is here.

        Raises:
            CallerError: they are too few, or one cannot be read.
        """
        keys = list(keys)
        found = [_load(path, key, self._passphrase) for key in keys if (path := self._find(role, key))]
        if len(found) < threshold:
            folders = ", ".join(map(str, self.folders))
            missing = ", ".join(_file_name(role, key) for key in keys if self._find(role, key) is None)
            raise CallerError(
                f"role {role} takes {threshold} of {len(keys)} keys, and {folders} has {len(found)}; "
                f"not there: {missing}; name their folder by another --keys"
            )
        return found

    def _find(self, role: str, key: Key) -> Path | None:
        paths = (folder / _file_name(role, key) for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)


def _file_name(role: str, key: Key) -> str:
    return f"{role}-{key.keyid[:_ID_DIGITS]}.pem"


def _load(path: Path, key: Key, passphrase: bytes | None) -> Signer:
    try:
        pem = path.read_bytes()
        encrypted = b"ENCRYPTED" in pem.split(b"\n", 1)[0]
        if encrypted and not passphrase:
            raise CallerError(f"the key {path} is encrypted; put its passphrase into ${PASSPHRASE}")
        if not isinstance(key, SSlibKey):
            raise CallerError(f"the repository names a key of type {key.keytype} for {path}, which cannot sign here")
        return CryptoSigner(load_pem_private_key(pem, passphrase if encrypted else None), key)
    except OSError as error:
        raise CallerError(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm, SigningError) as error:
        raise CallerError(f"{path} is not the key {key.keyid[:_ID_DIGITS]}, or its passphrase is wrong") from error
