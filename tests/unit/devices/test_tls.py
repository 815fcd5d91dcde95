"""The files of TLS: what is wrong with one names it and says what to do."""

from __future__ import annotations

import pytest

from ferryman.devices import certificates, identity
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.certificates import make_request, new_key, utc_now
from ferryman.devices.fleet.authority.authority import Authority, init
from ferryman.devices.tls import make_context
from ferryman.runtime.contracts.errors import IdentityError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    init(folder / "ca", utc_now())
    key = new_key()
    with Authority(folder / "ca") as authority:
        pem = authority.sign_device(make_request(key, "pi"), utc_now())
    identity.write_secret(folder / "good.pem", certificates.key_to_pem(key) + pem)
    identity.write_secret(folder / "other.key", certificates.key_to_pem(new_key()))
    identity.write_secret(folder / "bad.pem", b"nonsense")
    return folder


def broker(folder, *, ca="good.pem", cert="good.pem", key=None) -> BrokerConfig:
    names = {"tls_ca": ca, "tls_cert": cert, "tls_key": key}
    return BrokerConfig(
        host="h", port=1, tls=True, **{name: value and str(folder / value) for name, value in names.items()}
    )


def test_good_files(files):
    assert make_context(broker(files)).get_ca_certs()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ca": "none"}, r"trust \(ca\): .*/none is not there; put it there"),
        ({"cert": "none"}, "/none is not there; put it there"),
        ({"key": "none"}, "/none is not there; put it there"),
        ({"ca": "bad.pem"}, r"\(ca\): .*/bad.pem: no PEM"),
        ({"cert": "bad.pem"}, r"\(cert\).*/bad.pem: no PEM"),
        ({"key": "other.key"}, "good.pem and .*/other.key: no PEM, damaged, or not of one another"),
        ({"ca": "."}, r"trust \(ca\): "),
    ],
)
def test_what_is_wrong_names_its_file(files, wrong, said):
    with pytest.raises(IdentityError, match=said):
        make_context(broker(files, **wrong))
