"""TLS as every link of ferryman's speaks it, and what its errors mean. There is no way to turn verification off."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.identity import guard_secret
from ferryman.runtime.contracts.errors import IdentityError

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED = 10
_WRONG_HOST = {62, 64}  # a name, an address


def make_context(broker: BrokerConfig) -> ssl.SSLContext:
    """TLS 1.2 or later, the broker's certificate and its host name verified, our own certificate shown if there is one.

    Raises:
        IdentityError: a file is missing, cannot be read or is another, or the key's is not its owner's alone.
    """
    with _told("the authority to trust (ca)", broker.tls_ca):
        context = ssl.create_default_context(cafile=broker.tls_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.tls_cert is not None:
        key = broker.tls_key or broker.tls_cert
        with _told("our key (key, or cert)", key):
            guard_secret(Path(key))
        with _told("our certificate (cert) and its key (key, or in the same file)", broker.tls_cert, broker.tls_key):
            context.load_cert_chain(broker.tls_cert, broker.tls_key, password=_no_passphrase)
    return context


@contextmanager
def _told(what: str, *paths: str | None) -> Iterator[None]:
    """Name the files in errors, which OpenSSL does not."""
    try:
        yield
    except (OSError, ValueError) as error:
        named = [path for path in paths if path is not None]
        missing = next((path for path in named if not os.path.exists(path)), None)  # noqa: PTH110  # a null byte: False
        if missing is not None:
            said = f"{missing} is not there; put it there, or name another in the broker's URL"
        elif isinstance(error, ssl.SSLError):
            said = f"{' and '.join(named) or 'of the system'}: no PEM, damaged, or not of one another ({error})"
        else:
            said = f"{' and '.join(named) or 'of the system'}: {getattr(error, 'strerror', None) or error}"
        raise IdentityError(f"{what}: {said}") from error


def _no_passphrase() -> bytes:
    raise ValueError("the key is encrypted, and nobody is there to type its passphrase; write it down without")


def explain_failure(error: Exception, broker: BrokerConfig) -> str:
    """Why no connection came about, and what to do."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in {_NOT_YET_VALID, _EXPIRED}:
            now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
            return f"{said}; by the clock here it is {now} UTC: set that right, or give the broker a new certificate"
        if error.verify_code in _WRONG_HOST:
            return f"{said}; it is another broker, or its certificate lacks this name: `ferryman ca server`"
        authority = broker.tls_ca or "the system's authorities"
        return f"{said}; {authority} did not sign the broker's certificate: it is another broker, or `ca` is wrong"
    if broker.tls and isinstance(error, ssl.SSLError | ConnectionResetError):
        return f"{said}; perhaps there is no TLS at this port: see the broker's address"
    return said


def explain_silence(problem: str, broker: BrokerConfig) -> str:
    """Why a broker may have hung up before it said anything, and what to do."""
    if not broker.tls:
        return f"{problem} before the broker answered; if it expects TLS, write mqtts://"
    if broker.tls_cert is None:
        return f"{problem} before the broker answered; if it expects a certificate, run `ferryman enroll`"
    return (
        f"{problem} before the broker answered: it refuses our certificate ({_about(broker.tls_cert)}), or is no MQTT "
        "broker; see the broker's log. If the certificate expired or was revoked, a device is enrolled anew "
        "(`ferryman enroll`), a host gets another (`ferryman ca client`); hosts have their own port, by default 8884"
    )


def _about(path: str) -> str:
    """What is known of a certificate without reading much."""
    try:
        from ferryman.devices.certificates import certified, read_certificates, utc_now

        found = certified(read_certificates(Path(path).read_bytes(), path)[0])
    except Exception:  # noqa: BLE001  # this only adds to an error that is told anyway
        return path
    verb = "expired" if found.not_after <= utc_now() else "expires"
    return f"{found.name}, serial {found.serial}, {verb} {found.not_after:%Y-%m-%d %H:%M} UTC"
