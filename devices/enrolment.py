"""The device's part of becoming one of the fleet: key and request, certificate accepted, shown (extra `enroll`).

Every step may be killed and done again: a key that was asked for is asked for again, and what is accepted is put in
place by one rename.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ferryman.devices import certificates
from ferryman.devices.broker import parse_broker
from ferryman.devices.certificates import Certified, fingerprint, read_certificates, read_key, utc_now
from ferryman.devices.identity import (
    CURRENT,
    NEXT,
    NEXT_KEY,
    OPERATORS,
    alone,
    folder_of,
    guard_secret,
    make_folder,
    with_identity,
    write_secret,
)
from ferryman.devices.mqtt import Link
from ferryman.devices.signing import load_public
from ferryman.devices.topics import check_name
from ferryman.runtime.contracts.errors import CallerError, IdentityError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.durable import write_durable

CHECK_S = 15.0


class Requested(Record):
    """A signing request; the key stays here."""

    name: str
    csr: str
    """PEM."""


class Shown(Record):
    """Who this device is."""

    certified: Certified | None
    """None: it has no certificate."""
    operators: tuple[str, ...] = ()
    """Ids of the keys whose commands are obeyed; none: no command need be signed."""
    pending: bool = False
    """A request was made and has no certificate yet."""


def request(root: Path, name: str) -> Requested:
    """Make a key, or take the one of an earlier request that had no answer, and ask for a certificate.

    Raises:
        CallerError: no name for a device.
        DeviceError: the disk refused.
        IdentityError: the key that is there cannot be used.
    """
    check_name(name)
    folder = make_folder(root)
    path = folder / NEXT_KEY
    with alone(folder):
        if path.exists():
            guard_secret(path)
            key = read_key(path.read_bytes(), str(path))
        else:
            key = certificates.new_key()
            write_secret(path, certificates.key_to_pem(key))
    return Requested(name=name, csr=certificates.make_request(key, name).decode())


def accept(root: Path, pem: bytes) -> Certified:
    """Take the answer, a certificate and the authority's, in the place of what was there; a second time is no harm.

    Raises:
        IdentityError: it is not for a key of this device, or not signed by the authority beside it.
        DeviceError: the disk refused.
    """
    folder = make_folder(root)
    leaf, authority = _split(pem)
    found = _checked(leaf, authority)
    with alone(folder):
        if (key := _pending_key(folder, leaf)) is None:
            if _current_key(folder) == found.key_sha256:
                return found
            raise IdentityError(
                f"the certificate of {found.name} is not for a key of this device: it has another, or none that waits; "
                "run `ferryman identity request` and have that signed"
            )
        write_secret(folder / CURRENT, certificates.key_to_pem(key) + certificates.to_pem([leaf, authority]))
        (folder / NEXT).unlink(missing_ok=True)  # of a renewal that this overtakes
        (folder / NEXT_KEY).unlink(missing_ok=True)
    return found


def accept_renewal(root: Path, pem: bytes, name: str) -> bool:
    """Put the answer to a renewal beside the identity, to be tried; false: it answers no request of ours.

    The authority is the one that enrolled this device: an answer cannot bring another.

    Raises:
        IdentityError: it is for our key, and not a certificate of ours.
        DeviceError: the disk refused.
    """
    folder = folder_of(root)
    leaf = next((one for one in read_certificates(pem, "the answer") if not certificates.is_authority(one)), None)
    with alone(folder):
        key = _pending_key(folder, leaf) if leaf is not None else None
    if leaf is None or key is None:
        return False
    authority = _read(folder / CURRENT)[1]
    found = _checked(leaf, authority)
    if found.name != name:
        raise IdentityError(
            f"the renewed certificate is for {found.name}, and this is {name}; see who runs the authority"
        )
    write_secret(folder / NEXT, certificates.key_to_pem(key) + certificates.to_pem([leaf, authority]))
    return True


def promote(root: Path) -> None:
    """The renewed certificate has proven itself: it is the identity from here on.

    Raises:
        DeviceError: the disk refused.
    """
    folder = folder_of(root)
    with alone(folder):
        if (folder / NEXT).exists():  # else somebody enrolled the device anew meanwhile
            write_secret(folder / CURRENT, (folder / NEXT).read_bytes())
            (folder / NEXT_KEY).unlink(missing_ok=True)
            (folder / NEXT).unlink(missing_ok=True)


def discard_renewal(root: Path) -> None:
    """Forget a renewed certificate, and its key."""
    folder = folder_of(root)
    with alone(folder):
        (folder / NEXT_KEY).unlink(missing_ok=True)
        (folder / NEXT).unlink(missing_ok=True)


def current(root: Path) -> Certified | None:
    """What this device's certificate says; None: it has none.

    Raises:
        IdentityError: it cannot be read, or is not signed by the authority beside it.
    """
    path = folder_of(root) / CURRENT
    return certificates.certified(*_read(path)) if path.exists() else None


def show(root: Path) -> Shown:
    """Who this device is.

    Raises:
        IdentityError: the files there are damaged.
    """
    folder = folder_of(root)
    return Shown(
        certified=current(root),
        operators=tuple(sorted(path.stem for path in (folder / OPERATORS).glob("*.pem"))),
        pending=(folder / NEXT_KEY).exists(),
    )


def check(root: Path, url: str) -> Certified:
    """Connect to a broker with this device's certificate.

    Raises:
        CallerError: no URL of a broker with TLS.
        LinkError: it cannot be reached, is not the one it should be, or refuses the certificate.
        IdentityError: this device has none.
    """
    found = current(root)
    broker = with_identity(parse_broker(url), root)
    if found is None or broker.tls_cert is None:
        raise IdentityError(f"{url} takes mqtts:// and a certificate, and this device has none; enroll it first")
    link = Link(broker, f"ferryman-check-{found.name}")
    link.start()
    try:
        link.wait_ready(CHECK_S)
    finally:
        link.stop()
    return found


def trust(root: Path, pem: bytes, name: str) -> None:
    """Obey commands that the key of operator `name` signs, and from then on no unsigned ones.

    Raises:
        CallerError: no name, or no public key.
        DeviceError: the disk refused.
    """
    check_name(name, "operator")
    try:
        load_public(pem)
    except IdentityError as error:
        raise CallerError(str(error)) from error
    folder = make_folder(root) / OPERATORS
    folder.mkdir(mode=0o700, exist_ok=True)
    write_durable(folder / f"{name}.pem", pem)


def _split(pem: bytes) -> tuple[x509.Certificate, x509.Certificate]:
    """The certificate and its authority."""
    found = read_certificates(pem, "the answer")
    leaves = [one for one in found if not certificates.is_authority(one)]
    authorities = [one for one in found if certificates.is_authority(one)]
    if len(leaves) != 1 or len(authorities) != 1:
        raise IdentityError(
            f"expected a certificate and that of its authority, found {len(leaves)} and {len(authorities)}; "
            "give what `ferryman ca sign` wrote"
        )
    return leaves[0], authorities[0]


def _checked(leaf: x509.Certificate, authority: x509.Certificate) -> Certified:
    found = certificates.certified(leaf, authority)
    if found.not_after <= utc_now():
        raise IdentityError(
            f"the certificate of {found.name} expired at {found.not_after:%Y-%m-%d %H:%M} UTC by this device's clock; "
            "set the clock, or have a new one signed"
        )
    return found


def _read(path: Path) -> tuple[x509.Certificate, x509.Certificate]:
    try:
        guard_secret(path)
        return _split(path.read_bytes())
    except OSError as error:
        raise IdentityError(f"cannot read {path}: {error.strerror}; run this as its owner, or enroll anew") from error


def _pending_key(folder: Path, leaf: x509.Certificate) -> ec.EllipticCurvePrivateKey | None:
    """The key that waits for this very certificate."""
    path = folder / NEXT_KEY
    if not path.exists():
        return None
    guard_secret(path)
    key = read_key(path.read_bytes(), str(path))
    return key if fingerprint(leaf.public_key()) == fingerprint(key.public_key()) else None


def _current_key(folder: Path) -> str | None:
    try:
        return fingerprint(read_key((folder / CURRENT).read_bytes(), str(folder / CURRENT)).public_key())
    except (OSError, IdentityError):
        return None
