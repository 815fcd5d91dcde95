"""TLS with a certificate authority of the test's own, against a real mosquitto."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ferryman.devices.broker import parse_broker
from ferryman.devices.mqtt import Link
from ferryman.runtime.contracts.errors import LinkError
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import until

# paho leaves a socket to the garbage collector when the handshake fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Authority:
    """Signs certificates; files NAME.pem and NAME.key in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            self._builder(_name(name), key).add_extension(address, critical=False).sign(self._key, hashes.SHA256())
        )
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            self._name,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            now - dt.timedelta(hours=1),
            now + dt.timedelta(hours=1),
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


@pytest.fixture
def broker(tmp_path, authority):
    certificate, key = authority.issue("server")
    config = f"cafile {authority.file}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true"
    with Mosquitto(tmp_path, config) as mosquitto:
        yield mosquitto


def connect(url: str) -> None:
    link = Link(parse_broker(url), "tls-test")
    link.start()
    try:
        until(lambda: link.problem != "not started")
        link.wait_ready(0)
    finally:
        link.stop()


def test_both_sides_show_certificates(broker, authority):
    certificate, key = authority.issue("client")
    connect(f"mqtts://127.0.0.1:{broker.port}?ca={authority.file}&cert={certificate}&key={key}")


def test_a_broker_of_another_authority_is_not_trusted(broker, authority, tmp_path):
    other = Authority(tmp_path, "other")
    certificate, key = authority.issue("client")
    with pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(f"mqtts://127.0.0.1:{broker.port}?ca={other.file}&cert={certificate}&key={key}")


def test_the_systems_authorities_do_not_vouch_for_it(broker):
    with pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(f"mqtts://127.0.0.1:{broker.port}")


def test_without_a_certificate_the_broker_lets_nobody_in(broker, authority):
    with pytest.raises(LinkError, match="not connected"):
        connect(f"mqtts://127.0.0.1:{broker.port}?ca={authority.file}")


def test_a_missing_certificate_file_is_a_clear_error(broker, tmp_path):
    with pytest.raises(LinkError, match=r"TLS files: .*none\.pem is not there; put it there"):
        connect(f"mqtts://127.0.0.1:{broker.port}?ca={tmp_path / 'none.pem'}")
