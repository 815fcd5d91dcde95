"""A small authority in a folder: who is a device, who is a host, and which certificates count no more.

- devices.key and devices.pem sign devices and the broker;
- hosts.key and hosts.pem sign collectors, operators and so on: what can renew a device cannot make an operator;
- registry.sqlite knows every certificate signed.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from ferryman.devices.certificates import (
    RENEW_FRACTION,
    fingerprint,
    key_to_pem,
    name_of,
    new_key,
    read_certificates,
    read_request,
    to_pem,
)
from ferryman.devices.fleet.authority.registry import Entry, Registry
from ferryman.devices.identity import alone, guard_secret, write_secret
from ferryman.devices.signing import PASSPHRASE
from ferryman.devices.topics import check_name
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, IdentityError
from ferryman.runtime.durable import sync_directory, write_durable

Side = Literal["devices", "hosts"]
SIDES: tuple[Side, ...] = ("devices", "hosts")
ROLES = ("collector", "operator", "rollout", "viewer", "ca")
DEVICE = "device"
SERVER = "server"
LIFE = dt.timedelta(days=90)
"""Of a device's, which renews itself;"""
HOST_LIFE = dt.timedelta(days=365)
"""of a host's, which somebody has to renew."""
SERVER_LIFE = dt.timedelta(days=365)
AUTHORITY_LIFE = dt.timedelta(days=20 * 365)
BACKDATED = dt.timedelta(hours=1)
"""A certificate counts from so long before it was signed, for clocks that are behind."""
RENEWALS_A_DAY = 4
"""As many new keys of one device are signed within a day."""
REGISTRY = "registry.sqlite"
_HOST_MAX_CHARS = 253
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"({_LABEL}\.)*(?!\d+$){_LABEL}", re.ASCII)
"""A name as of RFC 1123; one whose last part is a number is an address, and a wrong one."""


class Authority(Closing):
    """An authority that is there; use with `with`."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            CallerError: there is none in that folder.
        """
        if not all((folder / f"{side}.pem").is_file() for side in SIDES):
            raise CallerError(f"{folder} holds no authority; make one: ferryman ca init {folder}")
        if not (folder / REGISTRY).is_file():
            raise CallerError(
                f"{folder / REGISTRY} is gone, and with it who is revoked; restore it from a backup (a new authority "
                "takes another folder)"
            )
        self.folder = folder
        self.registry = Registry(folder / REGISTRY)

    def close(self) -> None:
        """Close the registry."""
        self.registry.close()

    def certificate(self, side: Side) -> x509.Certificate:
        """The authority's own certificate."""
        path = self.folder / f"{side}.pem"
        return read_certificates(path.read_bytes(), str(path))[0]

    def sign_device(self, csr: bytes, now: dt.datetime, *, name: str | None = None, renewal: bool = False) -> bytes:
        """Answer a device's request: its certificate and the authority's, as PEM.

        The same key gets the certificate it got before, as long as that has most of its life left: asking again is no
        harm.

        Args:
            csr: PEM.
            now: wall clock.
            name: whose request it must be; None: whoever's it says.
            renewal: only for a device that has a certificate which counts, and not too often.

        Raises:
            IdentityError: it is no request, another's, or of a device that is not to have a certificate.
            CallerError: the name belongs to a host, or the authority's key cannot be read.
        """
        asked, key = read_request(csr)
        if name is not None and asked != name:
            raise IdentityError(f"{name} asks for a certificate of {asked}: refused; see what runs on {name}")
        issuer_key = self._key("devices")
        with self.registry.writing():
            known = self._known(asked, DEVICE)
            if renewal:
                _check_renewal(asked, known, fingerprint(key), now)
            same = [one for one in known if one.key_sha256 == fingerprint(key)]
            if any(one.revoked_s is not None for one in same):
                raise IdentityError(f"the key that {asked} asks with was revoked; enroll it anew, with another key")
            pem = next((one.pem for one in same if _left(one, now) > RENEW_FRACTION), None)
            if pem is None:
                leaf = self._sign("devices", issuer_key, asked, key, now, LIFE, _client())
                pem = self._record(leaf, asked, DEVICE)
        return pem + to_pem([self.certificate("devices")])

    def make_host(self, name: str, roles: Sequence[str], now: dt.datetime, life: dt.timedelta = HOST_LIFE) -> bytes:
        """A key and certificate of a host in one file, with the authority that vouches for the broker.

        Raises:
            CallerError: no name, no role, or the name belongs to another, or has other roles by one that still counts.
        """
        check_name(name, "host")
        if not roles or set(roles) - set(ROLES):
            raise CallerError(f"roles are {', '.join(ROLES)}; found {', '.join(roles) or 'none'}")
        key = new_key()
        issuer_key = self._key("hosts")
        wanted = ",".join(sorted(set(roles)))
        with self.registry.writing():
            other = [one for one in self._known(name, wanted) if one.roles != wanted and one.state(now) == "good"]
            if other:  # rights go by names: it would change those of who has that one, too
                raise CallerError(
                    f"{name} has a certificate that counts, as {other[0].roles}, and cannot be {wanted} beside it; "
                    f"choose another name, or first: ferryman ca revoke {self.folder} {name}"
                )
            leaf = self._sign("hosts", issuer_key, name, key.public_key(), now, life, _client())
            pem = self._record(leaf, name, wanted)
        return key_to_pem(key) + pem + to_pem([self.certificate("devices")])

    def make_server(self, hosts: Sequence[str], now: dt.datetime, life: dt.timedelta = SERVER_LIFE) -> bytes:
        """A key and certificate of the broker in one file, for these host names and addresses.

        Raises:
            CallerError: no host, or one that is none.
        """
        if not hosts:
            raise CallerError("name the broker's host name as devices know it, or its address")
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        key = new_key()
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        issuer_key = self._key("devices")
        with self.registry.writing():
            leaf = self._sign("devices", issuer_key, hosts[0][:64], key.public_key(), now, life, [usage, names])
            pem = self._record(leaf, f"broker/{hosts[0]}", SERVER)
        return key_to_pem(key) + pem

    def revoke(self, name: str, now: dt.datetime) -> list[Entry]:
        """All certificates of a name count no more; returns those that did.

        Raises:
            CallerError: nobody has that name.
        """
        with self.registry.writing():
            if not self.registry.of(name):
                raise CallerError(f"nobody is called {name} here; see `ferryman ca list`")
            return self.registry.revoke(name, now)

    def crl(self, side: Side, now: dt.datetime) -> bytes:
        """The list of the revoked, PEM. It is good for as long as the authority: an expired one would lock all out."""
        issuer = self.certificate(side)
        builder = x509.CertificateRevocationListBuilder(
            issuer.subject, now - BACKDATED, issuer.not_valid_after_utc
        ).add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        for one in self.registry.revoked(now):
            if (one.roles in {DEVICE, SERVER}) == (side == "devices"):
                when = dt.datetime.fromtimestamp(one.revoked_s or 0, dt.UTC)
                revoked = x509.RevokedCertificateBuilder(int(one.serial, 16), when).build()
                builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key(side), hashes.SHA256()).public_bytes(Encoding.PEM)

    def _known(self, name: str, roles: str) -> list[Entry]:
        """What was signed for a name; refuses one that is somebody else's: rights at the broker go by names."""
        known = self.registry.of(name)
        if known and (known[0].roles == DEVICE) != (roles == DEVICE):
            raise CallerError(f"{name} is a {known[0].roles} already, and cannot be {roles} too; choose another name")
        return known

    def _record(self, leaf: x509.Certificate, name: str, roles: str) -> bytes:
        pem = to_pem([leaf])
        self.registry.add(
            Entry(
                serial=f"{leaf.serial_number:x}",
                name=name,
                roles=roles,
                key_sha256=fingerprint(leaf.public_key()),
                issued_s=int((leaf.not_valid_before_utc + BACKDATED).timestamp()),
                expires_s=int(leaf.not_valid_after_utc.timestamp()),
                revoked_s=None,
                pem=pem,
            )
        )
        return pem

    def _sign(
        self,
        side: Side,
        issuer_key: ec.EllipticCurvePrivateKey,
        name: str,
        key: ec.EllipticCurvePublicKey,
        now: dt.datetime,
        life: dt.timedelta,
        extensions: Sequence[x509.ExtensionType],
    ) -> x509.Certificate:
        issuer = self.certificate(side)
        builder = (
            x509.CertificateBuilder(
                issuer.subject, name_of(name), key, x509.random_serial_number(), now - BACKDATED, now + life
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    def _key(self, side: Side) -> ec.EllipticCurvePrivateKey:
        path = self.folder / f"{side}.key"
        try:
            guard_secret(path)
            pem = path.read_bytes()
        except OSError as error:
            raise CallerError(f"cannot read the authority's key {path}: {error.strerror}") from error
        key = _load(path, pem)
        if fingerprint(key.public_key()) != fingerprint(self.certificate(side).public_key()):
            raise CallerError(f"{path} is not the key of {side}.pem beside it; put the right one back")
        return key


def init(folder: Path, now: dt.datetime) -> None:
    """Make an authority; one whose making was cut short is finished.

    Raises:
        CallerError: there is one, or the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(folder):
            if all((folder / f"{side}.pem").exists() for side in SIDES):
                raise CallerError(f"{folder} holds an authority already; a second one takes another folder")
            Registry(folder / REGISTRY).close()  # first: an authority without it has lost it
            for side in SIDES:
                _init_side(folder, side, now)
            sync_directory(folder)
    except OSError as error:
        raise CallerError(f"cannot make an authority in {folder}: {error.strerror}") from error
    except DeviceError as error:
        raise CallerError(str(error)) from error


def _init_side(folder: Path, side: Side, now: dt.datetime) -> None:
    if (folder / f"{side}.pem").exists():
        return
    path = folder / f"{side}.key"
    if not path.exists():
        write_secret(path, _encrypted(new_key()))
    key = _load(path, path.read_bytes())
    name = name_of(f"ferryman {side} {secrets.token_hex(4)}")
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number(), now - BACKDATED, now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_durable(folder / f"{side}.pem", to_pem([certificate]))


def passphrase() -> bytes | None:
    """What the environment says keys are encrypted with."""
    return os.environ.get(PASSPHRASE, "").encode() or None


def _encrypted(key: ec.EllipticCurvePrivateKey) -> bytes:
    secret = passphrase()
    cipher = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher)


def _load(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    encrypted = b"ENCRYPTED" in pem.split(b"\n", 1)[0]
    secret = passphrase()
    if encrypted and secret is None:
        raise CallerError(f"the key {path} is encrypted; put its passphrase into ${PASSPHRASE}")
    try:
        key = load_pem_private_key(pem, secret if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # their words may quote the bytes
        raise CallerError(f"{path} is no key, or the passphrase in ${PASSPHRASE} is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CallerError(f"{path} is not a key of ferryman's authority")
    return key


def _check_renewal(name: str, known: Sequence[Entry], key_sha256: str, now: dt.datetime) -> None:
    good = [one for one in known if one.state(now) == "good"]
    if not good:
        why = f"its certificate is {known[0].state(now)}" if known else "it was never enrolled"
        raise IdentityError(f"{name} may not renew a certificate, {why}; if it should: ferryman enroll {name}")
    today = [one for one in known if now.timestamp() - one.issued_s < 86400]  # noqa: PLR2004
    if len(today) >= RENEWALS_A_DAY and all(one.key_sha256 != key_sha256 for one in today):
        raise IdentityError(f"{name} had {len(today)} certificates within a day; see what its agent does")


def _left(entry: Entry, now: dt.datetime) -> float:
    return (entry.expires_s - now.timestamp()) / (entry.expires_s - entry.issued_s)


def _client() -> list[x509.ExtensionType]:
    return [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > _HOST_MAX_CHARS or not _HOST.fullmatch(host):
        raise CallerError(
            f"broker host {host[:_HOST_MAX_CHARS]!r}: expected a host name (letters, digits and - between dots) or an "
            "address; give it as devices know it"
        )
    return x509.DNSName(host)
