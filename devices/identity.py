"""The files that say who this device is, below ROOT/identity; no more than the standard library is needed to use them.

identity.pem  private key, certificate and the authority whose brokers are trusted: one file is replaced in one step
next.key      the key of a request that has no certificate yet
next.pem      the same as identity.pem, yet to prove itself (a renewal)
operators/    public keys of those whose commands are obeyed; none: no command need be signed
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from ferryman.devices.broker import BrokerConfig
from ferryman.runtime.contracts.errors import DeviceError, IdentityError
from ferryman.runtime.durable import sync_directory, write_durable

log = logging.getLogger(__name__)

CURRENT = "identity.pem"
NEXT_KEY = "next.key"
NEXT = "next.pem"
OPERATORS = "operators"


def folder_of(root: Path) -> Path:
    """Where the identity of the device at `root` is."""
    return root / "identity"


def make_folder(root: Path) -> Path:
    """Make it, for its owner alone.

    Raises:
        DeviceError: the disk refused.
    """
    folder = folder_of(root)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(folder.parent)
    except OSError as error:
        raise DeviceError(f"cannot make {folder}: {error.strerror}; make {root} for the user who runs this") from error
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time works on the files of a folder.

    Raises:
        OSError: the disk refused.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_secret(path: Path, data: bytes) -> None:
    """Put a file with a key in its place, in one step, for its owner alone.

    Raises:
        DeviceError: the disk refused; the old file is as it was.
    """
    write_durable(path, data, mode=0o600)


def guard_secret(path: Path) -> None:
    """See that a key's file is its owner's alone; one of our own that others may read is mended, and that is said.

    Raises:
        IdentityError: it is somebody else's, a link, or cannot be mended.
        OSError: it is not there.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise IdentityError(f"{path} is no plain file, and a key is kept in one; put the file itself there")
    if found.st_uid not in {os.geteuid(), 0}:
        raise IdentityError(
            f"{path} belongs to user {found.st_uid}, who could change it; chown it to the one who runs this"
        )
    if not found.st_mode & 0o077:
        return
    try:
        path.chmod(0o600)
    except OSError as error:
        raise IdentityError(f"{path} holds a key that others may read; chmod 600 it") from error
    log.warning(
        "%s held a key that others could read (mode %o); it is 600 now: make a new one if somebody else was on here",
        path,
        stat.S_IMODE(found.st_mode),
    )


def with_identity(broker: BrokerConfig, root: Path) -> BrokerConfig:
    """The broker with this device's own files, where TLS is spoken, the URL names none and there are some."""
    folder = folder_of(root)
    if not broker.tls or broker.tls_cert is not None or not (folder / CURRENT).is_file():
        return broker
    return of_file(broker, folder / CURRENT)


def of_file(broker: BrokerConfig, identity: Path) -> BrokerConfig:
    """The broker with key and certificate out of one file, and the authority too, unless another was named."""
    named = broker.tls_ca if broker.tls_ca != broker.tls_cert else None
    return replace(broker, tls_ca=named or str(identity), tls_cert=str(identity), tls_key=None)
