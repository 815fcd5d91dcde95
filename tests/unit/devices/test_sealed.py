from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.sealed import MAGIC, OVERHEAD_MAX_BYTES, inner, take_apart
from ferryman.devices.signing import KEY_VARIABLE, key_id, load_public, operator_key, verify, write_operator_key
from ferryman.runtime.contracts.errors import CallerError, IdentityError

NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=1, max_size=64)
TIMES = st.integers(0, 2**61)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    public = write_operator_key(folder, "alice")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(folder / "alice.key"))
        key = operator_key()
    return key, load_public(public.read_bytes())


def sign(key, payload=b"payload", device="pi", now_ns=1, life_ns=1, challenge="c"):
    return key.sign(payload, device=device, kind="request", now_ns=now_ns, life_ns=life_ns, challenge=challenge)


@settings(deadline=None)
@given(st.binary(max_size=1000), NAMES, TIMES, TIMES, st.text("0123456789abcdef", max_size=64))
def test_what_was_signed_comes_apart_the_same(keys, payload, device, now_ns, life_ns, challenge):
    key, public = keys
    data = sign(key, payload, device, now_ns, life_ns, challenge)
    assert len(data) - len(payload) <= OVERHEAD_MAX_BYTES
    found = take_apart(data)
    verify(found, public)
    assert found.payload == inner(data) == payload
    header = found.header
    assert (header.device, header.issued_ns, header.expires_ns) == (device, now_ns, now_ns + life_ns)
    assert (header.challenge, header.key) == (challenge, key_id(public))


@settings(deadline=None)
@given(st.data())
def test_no_byte_of_it_can_be_changed(keys, data):
    key, public = keys
    whole = bytearray(sign(key))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    try:
        found = take_apart(bytes(whole))
    except ValueError:
        return
    if found is None:
        assert position < len(MAGIC)
        return
    with pytest.raises(IdentityError, match="altered on the way, or forged"):
        verify(found, public)


@given(st.binary(max_size=2000))
def test_any_bytes_are_unsigned_or_refused(data):
    assert take_apart(b"x" + data) is None
    for whole in (MAGIC + data, MAGIC + (50).to_bytes(4) + data):
        try:
            found = take_apart(whole)
        except ValueError:
            continue
        assert found is not None


def test_a_cut_anywhere_is_no_command(keys):
    whole = sign(keys[0], b"")
    for end in range(len(MAGIC), len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011  # each cut has words of its own
            take_apart(whole[:end])


def test_a_header_that_says_too_much_is_refused():
    head = MAGIC + (2000).to_bytes(4)
    with pytest.raises(ValueError, match="cut short"):
        take_apart(head + bytes(4000))


def test_two_signatures_of_one_command_have_nonces_of_their_own(keys):
    assert len({take_apart(sign(keys[0])).header.nonce for _ in range(100)}) == 100


def test_a_key_file_is_its_owners_alone_and_says_what_it_lacks(tmp_path, monkeypatch, caplog):
    public = write_operator_key(tmp_path, "alice")
    secret = public.with_suffix(".key")
    assert secret.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CallerError, match="is there already"):
        write_operator_key(tmp_path, "alice")
    monkeypatch.setenv(KEY_VARIABLE, str(secret))
    secret.chmod(0o640)
    operator_key()
    assert "others could read (mode 640)" in caplog.text
    monkeypatch.setenv(KEY_VARIABLE, str(public))
    with pytest.raises(CallerError, match="cannot be read as a key"):
        operator_key()
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(CallerError, match="No such file"):
        operator_key()
    monkeypatch.delenv(KEY_VARIABLE)
    assert operator_key() is None


def test_an_encrypted_key_takes_its_passphrase(tmp_path, monkeypatch):
    monkeypatch.setenv("FERRYMAN_CA_PASSPHRASE", "correct horse")
    secret = write_operator_key(tmp_path, "alice").with_suffix(".key")
    monkeypatch.setenv(KEY_VARIABLE, str(secret))
    assert operator_key() is not None
    monkeypatch.setenv("FERRYMAN_CA_PASSPHRASE", "wrong")
    with pytest.raises(CallerError, match="FERRYMAN_CA_PASSPHRASE") as caught:
        operator_key()
    assert "wrong" not in str(caught.value)
