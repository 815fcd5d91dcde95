"""Keys, signing requests and certificates as bytes; the device and the authority share it (extra `enroll`).

ECDSA P-256 throughout: what OpenSSL, mosquitto and every TLS 1.2 broker take.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from ferryman.devices.topics import is_name
from ferryman.runtime.contracts.errors import IdentityError
from ferryman.runtime.contracts.record import Record

PEM_MAX_BYTES = 64 << 10
"""Of a certificate with its authority, or of a signing request."""
RENEW_FRACTION = 1 / 3
"""A certificate with less of its life left wants to be renewed."""
_EXPECTED_REQUEST = "expected a PEM signing request of an ECDSA P-256 key"


class Certified(Record):
    """What a certificate says."""

    name: str
    serial: str
    """Hexadecimal."""
    not_before: dt.datetime
    not_after: dt.datetime
    key_sha256: str
    authority_key_sha256: str | None = None
    """Of the certificate that vouches for it, where that is at hand."""

    def left(self, now: dt.datetime) -> float:
        """The fraction of its life that is left; negative once it has expired."""
        return (self.not_after - now) / (self.not_after - self.not_before)


def utc_now() -> dt.datetime:
    """Wall clock, as certificates tell it."""
    return dt.datetime.now(dt.UTC)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a key down, unencrypted: what reads it starts without anybody there."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted key of ours from `pem`, which may hold more.

    Raises:
        IdentityError: there is none.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their words may quote the bytes
        raise IdentityError(f"{what} holds no private key that can be read; enroll this device anew") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{what}: expected an ECDSA P-256 key, found another kind; enroll this device anew")
    return key


def fingerprint(key: CertificatePublicKeyTypes) -> str:
    """SHA-256 of a public key."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def name_of(name: str) -> x509.Name:
    """A subject that is a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A PEM signing request for `name`."""
    builder = x509.CertificateSigningRequestBuilder(name_of(name))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_request(pem: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The name that is asked for, and the key, which signed this; extensions that it asks for are ignored.

    Raises:
        IdentityError: no such request, or whoever wrote it does not have the key.
    """
    if len(pem) > PEM_MAX_BYTES:
        raise IdentityError(f"{_EXPECTED_REQUEST}, found {len(pem)} bytes; make one with `ferryman identity request`")
    try:
        request = x509.load_pem_x509_csr(pem)
        key, signed = request.public_key(), request.is_signature_valid
        name = _common_name(request.subject)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise IdentityError(f"{_EXPECTED_REQUEST}: {error}; make one with `ferryman identity request`") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{_EXPECTED_REQUEST}, found another kind; make one with `ferryman identity request`")
    if not signed:
        raise IdentityError(f"the signing request for {name} is not signed by its own key: damaged, or a forgery")
    return name, key


def _common_name(subject: x509.Name) -> str:
    """The one common name, which can be a device's.

    Raises:
        ValueError: there is none, or more than that.
    """
    names = [str(one.value) for one in subject]
    if len(names) != 1 or subject.get_attributes_for_oid(NameOID.COMMON_NAME) == [] or not is_name(names[0]):
        raise ValueError(f"expected a subject of one common name of 1 to 64 of A-Z a-z 0-9 _ -, found {names}")
    return names[0]


def read_certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """All certificates of a PEM file.

    Raises:
        IdentityError: there is none, or one cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(pem[:PEM_MAX_BYTES])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{what} holds no certificate that can be read: {error}") from error


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Write certificates down."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def certified(certificate: x509.Certificate, authority: x509.Certificate | None = None) -> Certified:
    """What a certificate of ours says.

    Raises:
        IdentityError: it is none of ours, or `authority` did not sign it.
    """
    try:
        if authority is not None:
            certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise IdentityError(
            "the certificate is not signed by the authority beside it; enroll this device anew"
        ) from None
    try:
        name = _common_name(certificate.subject)
        return Certified(
            name=name,
            serial=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            key_sha256=fingerprint(certificate.public_key()),
            authority_key_sha256=fingerprint(authority.public_key()) if authority is not None else None,
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"the certificate is none of ferryman's: {error}; enroll this device anew") from error
