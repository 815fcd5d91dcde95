from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices import certificates
from ferryman.devices.certificates import make_request, new_key, read_request, utc_now
from ferryman.devices.fleet.authority.authority import LIFE, Authority, init
from ferryman.runtime.contracts.errors import IdentityError

KEY = new_key()
REQUEST = make_request(KEY, "pi")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_request_that_was_changed_is_refused_or_the_same(data):
    """Base64 has bytes that mean nothing, such as line ends: what still reads is what was signed."""
    changed = bytearray(REQUEST)
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        name, key = read_request(bytes(changed))
    except IdentityError:
        return
    assert name == "pi"
    assert key == KEY.public_key()


@given(st.binary(max_size=500))
def test_any_bytes_are_no_request_and_no_certificate(data):
    with pytest.raises(IdentityError):
        read_request(data)
    with pytest.raises(IdentityError):
        certificates.read_certificates(data, "this")
    with pytest.raises(IdentityError):
        certificates.read_key(data, "this")


def test_a_long_request_is_not_read():
    with pytest.raises(IdentityError, match="found 65637 bytes"):
        read_request(b"x" * (65537 + 100))


def test_a_damaged_key_is_not_quoted():
    pem = certificates.key_to_pem(KEY)
    with pytest.raises(IdentityError) as caught:
        certificates.read_key(pem[:100] + pem[120:], "the file")
    assert pem.splitlines()[1][:20].decode() not in str(caught.value)


def test_what_a_certificate_says(tmp_path):
    init(tmp_path, utc_now())
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with Authority(tmp_path) as authority:
        leaf, issuer = certificates.read_certificates(authority.sign_device(REQUEST, now), "it")
    found = certificates.certified(leaf, issuer)
    assert found.name == "pi"
    assert found.not_after - now == LIFE
    assert found.left(now) > 0.99
    assert found.left(now + LIFE * 2) < 0
    assert certificates.is_authority(issuer)
    assert not certificates.is_authority(leaf)
    purposes = leaf.extensions.get_extension_for_class(certificates.x509.ExtendedKeyUsage).value
    assert [one.dotted_string for one in purposes] == ["1.3.6.1.5.5.7.3.2"]  # clientAuth alone
