from __future__ import annotations

import builtins

import pytest

from ferryman.devices import enrolment
from ferryman.devices.agent.commands import SKEW_NS, CommandGuard
from ferryman.devices.identity import OPERATORS, folder_of
from ferryman.devices.signing import KEY_VARIABLE, operator_key, write_operator_key
from ferryman.runtime.contracts.errors import DeviceError, IdentityError

NOW_NS = 10**18


@pytest.fixture
def key(tmp_path, monkeypatch):
    public = write_operator_key(tmp_path / "keys", "alice")
    enrolment.trust(tmp_path, public.read_bytes(), "alice")
    monkeypatch.setenv(KEY_VARIABLE, str(public.with_suffix(".key")))
    return operator_key()


def guard(root, now_ns=NOW_NS):
    return CommandGuard("pi", root, lambda: now_ns)


def sign(key, one, payload=b"do", now_ns=NOW_NS, life_ns=10**9, kind="request"):
    challenge = one.challenge if kind == "request" else ""
    return key.sign(payload, device="pi", kind=kind, now_ns=now_ns, life_ns=life_ns, challenge=challenge)


def test_who_trusts_nobody_obeys_everybody_but_does_not_pretend_to_check(tmp_path, key):
    one = guard(tmp_path / "without")
    assert one.challenge == ""
    assert one.open(b"do", "request") == b"do"
    with pytest.raises(IdentityError, match="trusts no operator's key"):
        one.open(sign(key, guard(tmp_path)), "request")


def test_the_moments_before_and_after(tmp_path, key):
    one = guard(tmp_path)
    assert one.open(sign(key, one, life_ns=1), "request") == b"do"
    with pytest.raises(IdentityError, match="expired 0 s ago"):
        one.open(sign(key, one, life_ns=0), "request")
    assert one.open(sign(key, one, now_ns=NOW_NS + SKEW_NS), "request") == b"do"
    with pytest.raises(IdentityError, match="in the future"):
        one.open(sign(key, one, now_ns=NOW_NS + SKEW_NS + 1), "request")


def test_a_refused_command_uses_up_no_nonce(tmp_path, key):
    one = guard(tmp_path)
    good = sign(key, one)
    forged = bytearray(good)
    forged[-1] ^= 1
    with pytest.raises(IdentityError, match="forged"):
        one.open(bytes(forged), "request")
    assert one.open(good, "request") == b"do"
    with pytest.raises(IdentityError, match="a replay"):
        one.open(good, "request")


def test_a_wish_is_good_at_every_start_until_it_expires(tmp_path, key):
    wish = sign(key, guard(tmp_path), kind="desired")
    assert guard(tmp_path).open(wish, "desired") == guard(tmp_path).open(wish, "desired") == b"do"
    with pytest.raises(IdentityError, match="expired 2 s ago"):
        guard(tmp_path, NOW_NS + 3 * 10**9).open(wish, "desired")
    with pytest.raises(IdentityError, match="came to pi as a request"):
        guard(tmp_path).open(wish, "request")


def test_a_damaged_key_or_a_missing_extra_is_no_reason_to_obey_everybody(tmp_path, key, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "ferryman.devices.signing":
            raise ModuleNotFoundError("no module", name="cryptography")
        return real(name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(DeviceError, match=r"pip install 'ferryman\[enroll\]'"):
            guard(tmp_path)
    (folder_of(tmp_path) / OPERATORS / "bob.pem").write_bytes(b"nonsense")
    with pytest.raises(IdentityError, match=r"bob.pem: expected the public key of an operator"):
        guard(tmp_path)
