import stat

import pytest

from ferryman.devices.fleet.repository.keys import PASSPHRASE, Keyring
from ferryman.runtime.contracts.errors import CallerError


def test_a_key_is_for_its_owners_eyes_and_signs(tmp_path):
    ring = Keyring([tmp_path / "keys"])
    made = ring.make("targets")
    (file,) = (tmp_path / "keys").iterdir()
    assert file.name == f"targets-{made.public_key.keyid[:16]}.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (signer,) = ring.signers("targets", [made.public_key], 1)
    made.public_key.verify_signature(signer.sign(b"data"), b"data")


def test_a_passphrase_encrypts_and_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    made = Keyring([tmp_path]).make("targets")
    (file,) = tmp_path.iterdir()
    assert b"ENCRYPTED" in file.read_bytes()
    assert Keyring([tmp_path]).signers("targets", [made.public_key], 1)
    with pytest.raises(CallerError, match="passphrase is wrong"):
        Keyring([tmp_path], "close sesame").signers("targets", [made.public_key], 1)
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(CallerError, match=PASSPHRASE):
        Keyring([tmp_path]).signers("targets", [made.public_key], 1)


def test_a_plain_key_is_read_where_a_passphrase_is_set(tmp_path):
    made = Keyring([tmp_path]).make("targets")
    assert Keyring([tmp_path], "for others").signers("targets", [made.public_key], 1)


def test_too_few_keys_are_named_with_where_they_were_looked_for(tmp_path):
    ring, elsewhere = Keyring([tmp_path / "here"]), Keyring([tmp_path / "there"])
    keys = [ring.make("root").public_key, elsewhere.make("root").public_key]
    assert not ring.has("root", keys, 2)
    with pytest.raises(CallerError, match=f"2 of 2 keys.*has 1; not there: root-{keys[1].keyid[:16]}.pem"):
        ring.signers("root", keys, 2)
    assert Keyring([tmp_path / "here", tmp_path / "there"]).has("root", keys, 2)
    assert len(ring.signers("root", keys, 1)) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_named(tmp_path, damage):
    made = Keyring([tmp_path]).make("targets")
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    with pytest.raises(CallerError, match=str(file)):
        Keyring([tmp_path]).signers("targets", [made.public_key], 1)


def test_another_key_under_its_name_is_refused(tmp_path):
    ring = Keyring([tmp_path])
    mine, other = ring.make("targets"), ring.make("targets")
    names = {key.public_key.keyid: tmp_path / f"targets-{key.public_key.keyid[:16]}.pem" for key in (mine, other)}
    names[other.public_key.keyid].replace(names[mine.public_key.keyid])
    with pytest.raises(CallerError, match="is not the key"):
        ring.signers("targets", [mine.public_key], 1)


def test_no_folder_is_a_callers_error():
    with pytest.raises(CallerError, match="--keys"):
        Keyring([])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(CallerError, match="cannot write the key"):
        Keyring([tmp_path / "keys"]).make("root")
