"""Every change of keys and roles, seen by a TUF client that is not ours; and every step of writing it survived."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import ExpiredMetadataError

from ferryman.devices.fleet.repository import files, metadata
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.manage import (
    Dealt,
    add_family,
    init,
    refresh,
    rotate,
    show,
    trusted_root,
)
from ferryman.devices.fleet.repository.metadata import affected, expires_soon, lifetime, read_roles
from ferryman.devices.fleet.repository.publish import withdraw
from ferryman.runtime.contracts.errors import CallerError, RepositoryError
from ferryman.runtime.contracts.release import SIGNED_AT
from tests.support.repository import TestRepository, days, edit_json, make_repository, utc_now
from tests.support.tuf_client import TufClient


def _client(made, folder="device"):
    return TufClient(made.path.parent / folder, made.path, made.root)


def test_a_new_repository_is_one_that_a_client_accepts(tmp_path):
    made = make_repository(tmp_path, families=("digits", "speech"), root_keys=3, threshold=2)
    assert json.loads(made.root)["signed"]["consistent_snapshot"] is True
    assert len(list(made.offline.iterdir())) == 3
    assert sorted(path.name.rsplit("-", 1)[0] for path in made.keys.iterdir()) == [
        "digits",
        "snapshot",
        "speech",
        "targets",
        "timestamp",
    ]
    trusted = _client(made).updater()._trusted_set
    assert abs(trusted.timestamp.unrecognized_fields[SIGNED_AT] - utc_now().timestamp()) < 60
    assert trusted.root.roles["root"].threshold == 2
    roles = trusted.targets.delegations.roles
    assert {name: role.paths for name, role in roles.items()} == {"digits": ["digits/*"], "speech": ["speech/*"]}
    assert len({key for role in roles.values() for key in role.keyids}) == 2


def test_offline_folders_share_out_the_root_keys(tmp_path):
    folders = [tmp_path / "safe", tmp_path / "bank"]
    init(tmp_path / "r", Keyring([tmp_path / "keys"]), utc_now(), root_keys=3, threshold=2, offline=folders)
    assert [len(list(folder.iterdir())) for folder in folders] == [2, 1]
    assert Dealt.of(3, 2, folders).alone == {folders[0]: 2}
    with pytest.raises(CallerError, match="2 of 3 keys"):
        rotate(tmp_path / "r", ["root"], Keyring([tmp_path / "keys", folders[1]]), utc_now())
    assert read_roles(tmp_path / "r").root.signed.version == 1


@pytest.mark.parametrize(
    ("count", "threshold", "folders", "alone", "needed"),
    [
        (3, 2, "ab", {"a": 2}, 3),
        (3, 2, "abc", {}, 3),
        (5, 3, "ab", {"a": 3}, 3),
        (5, 3, "abc", {}, 3),
        (2, 2, "a", {"a": 2}, 2),
        (3, 1, "a", {}, 1),  # asked for: every key signs alone
    ],
)
def test_a_folder_that_can_sign_alone_is_found(count, threshold, folders, alone, needed):
    dealt = Dealt.of(count, threshold, [Path("/", one) for one in folders])
    assert dealt.alone == {Path("/", one): keys for one, keys in alone.items()}
    assert dealt.folders_needed == needed


def test_one_folder_under_two_names_is_one(tmp_path):
    assert Dealt.of(3, 2, [tmp_path, tmp_path / "x" / "..", tmp_path / "y"]).alone == {tmp_path: 2}


def _folders(made, role, folders):
    names = {f"{role}-{key.keyid[:16]}.pem" for key in made.roles().keys(role)[0]}
    return {folder.name: len(names & {one.name for one in folder.iterdir()}) for folder in folders}


def test_new_keys_go_where_the_old_ones_were(tmp_path):
    made = TestRepository(tmp_path / "r", tmp_path / "keys", tmp_path / "none")
    safes = [tmp_path / one for one in "abc"]
    init(made.path, Keyring([made.keys]), utc_now(), families=["digits"], root_keys=3, threshold=2, offline=safes)
    done = rotate(made.path, ["root", "digits"], Keyring([safes[2], made.keys, *safes[:2]]), utc_now())
    assert _folders(made, "root", [made.keys, *safes]) == {"keys": 0, "a": 1, "b": 1, "c": 1}
    assert _folders(made, "digits", [made.keys, *safes]) == {"keys": 1, "a": 0, "b": 0, "c": 0}
    assert sorted(folder for _, folder in done["root"].made) == safes
    assert {one for one, _ in done["root"].made} == {key.keyid for key in made.roles().keys("root")[0]}
    assert done["root"].dealt.alone == {}


def test_what_replaces_a_key_that_is_not_here_goes_to_the_folders_that_are(tmp_path):
    made = TestRepository(tmp_path / "r", tmp_path / "keys", tmp_path / "none")
    safes = [tmp_path / one for one in "abc"]
    init(made.path, Keyring([made.keys]), utc_now(), root_keys=3, threshold=2, offline=safes)
    done = rotate(made.path, ["root"], Keyring([made.keys, *safes[1:]]), utc_now())
    assert _folders(made, "root", [made.keys, *safes]) == {"keys": 0, "a": 0, "b": 2, "c": 1}
    assert done["root"].dealt.alone == {safes[1]: 2}
    more = rotate(made.path, ["root"], Keyring([made.keys, *safes[1:]]), utc_now(), root_keys=4, offline=safes[:1])
    assert [folder for _, folder in more["root"].made] == [safes[0]] * 4


@pytest.mark.parametrize(("count", "threshold"), [(1, 2), (0, 0), (17, 1), (3, 0)])
def test_a_threshold_that_cannot_be_is_refused(tmp_path, count, threshold):
    with pytest.raises(CallerError, match="root keys"):
        init(tmp_path / "r", Keyring([tmp_path]), utc_now(), root_keys=count, threshold=threshold)


def test_a_repository_is_not_made_twice(tmp_path):
    made = make_repository(tmp_path)
    before = made.root
    with pytest.raises(CallerError, match="already"):
        init(made.path, made.keyring, utc_now())
    assert made.root == before


@pytest.mark.parametrize("name", ["root", "../up", "Big", "", "a/b"])
def test_a_family_that_cannot_be_a_role_is_refused(tmp_path, name):
    made = make_repository(tmp_path)
    with pytest.raises(CallerError, match="family"):
        add_family(made.path, name, made.keyring, utc_now())
    with pytest.raises(CallerError, match="already"):
        add_family(made.path, "digits", made.keyring, utc_now())


@pytest.mark.parametrize(
    "chosen",
    [["root"], ["timestamp"], ["snapshot"], ["targets"], ["digits"], ["timestamp", "snapshot", "targets", "digits"]],
)
def test_rotated_keys_count_and_the_old_ones_do_not(tmp_path, chosen):
    made = make_repository(tmp_path, root_keys=3, threshold=2)
    made.publish_tiny(1.0, "1")
    client = _client(made)
    assert client.release("digits/1")
    before = {role: {key.keyid for key in made.roles().keys(role)[0]} for role in chosen}
    gone = {role: one.gone for role, one in rotate(made.path, chosen, made.keyring, utc_now()).items()}
    assert {role: set(ids) for role, ids in gone.items()} == before
    for role in chosen:
        assert not {key.keyid for key in made.roles().keys(role)[0]} & before[role]
    for path in [*made.keys.iterdir(), *made.offline.iterdir()]:
        if any(path.name == f"{role}-{one[:16]}.pem" for role, ids in gone.items() for one in ids):
            path.unlink()
    assert client.release("digits/1")
    assert _client(made, "new").release("digits/1")
    made.publish_tiny(2.0, "2")
    assert client.release("digits/2")


def test_root_is_signed_by_as_many_as_the_old_and_the_new_one_ask_for(tmp_path):
    made = make_repository(tmp_path, root_keys=3, threshold=2)
    old, least = made.roles().keys("root")
    rotate(made.path, ["root"], made.keyring, utc_now(), root_keys=2, threshold=2, offline=[tmp_path / "safe"])
    new, now_least = made.roles().keys("root")
    assert (len(new), now_least, len(list((tmp_path / "safe").iterdir()))) == (2, 2, 2)
    signed = set(made.roles().root.signatures)
    assert len(signed & {key.keyid for key in old}) >= least
    assert signed >= {key.keyid for key in new}
    assert made.roles().root.signed.version == 2
    assert made.roles().timestamp.signed.version == 1  # no key of the others was needed


def test_a_lost_key_can_be_replaced(tmp_path):
    made = make_repository(tmp_path)
    client = _client(made)
    client.updater()
    for path in made.keys.glob("timestamp-*"):
        path.unlink()
    with pytest.raises(CallerError, match="timestamp"):
        refresh(made.path, made.keyring, utc_now())
    rotate(made.path, ["timestamp"], made.keyring, utc_now())
    assert client.updater()._trusted_set.root.version == 2
    refresh(made.path, made.keyring, utc_now())
    client.updater()


def test_rotation_without_the_root_key_changes_nothing_and_makes_no_key(tmp_path):
    made = make_repository(tmp_path)
    before = {path: path.read_bytes() for path in made.path.rglob("*.json")}, sorted(made.keys.iterdir())
    with pytest.raises(CallerError, match="role root takes 1 of 1"):
        rotate(made.path, ["targets"], Keyring([made.keys]), utc_now())
    with pytest.raises(CallerError, match="no role 'nobody'; there are: root, targets, snapshot, timestamp, digits"):
        rotate(made.path, ["nobody"], made.keyring, utc_now())
    assert ({path: path.read_bytes() for path in made.path.rglob("*.json")}, sorted(made.keys.iterdir())) == before


def test_refresh_signs_what_expires_soon_and_needs_no_root(tmp_path):
    made = make_repository(tmp_path)
    online = Keyring([made.keys])
    now = utc_now()
    assert refresh(made.path, online, now).signed == ("timestamp",)
    assert refresh(made.path, online, now + days(25)).signed == ("snapshot", "timestamp")
    done = refresh(made.path, online, now + days(160))
    assert (done.signed, done.due) == (("digits", "snapshot", "timestamp"), ())
    done = refresh(made.path, online, now + days(340))
    assert (set(done.signed), done.due) == ({"digits", "targets", "snapshot", "timestamp"}, ("root",))
    client = _client(made)
    client.updater(now + days(341))
    with pytest.raises(ExpiredMetadataError):
        client.updater(now + days(348))
    assert "root" in refresh(made.path, made.keyring, now + days(350)).signed
    client.updater(now + days(351))


def test_signed_time_never_goes_back_by_the_same_keys(tmp_path):
    made = make_repository(tmp_path)
    now = utc_now()

    def signed_at():
        return made.roles().timestamp.signed.unrecognized_fields[SIGNED_AT]

    refresh(made.path, made.keyring, now + timedelta(minutes=50))
    last = signed_at()
    refresh(made.path, made.keyring, now)
    assert signed_at() == last == int((now + timedelta(minutes=50)).timestamp())
    refresh(made.path, made.keyring, now + days(400))
    with pytest.raises(CallerError, match="set it; if the other one was wrong, ferryman keys rotate timestamp"):
        refresh(made.path, made.keyring, now)
    rotate(made.path, ["timestamp"], made.keyring, now)
    assert signed_at() == int(now.timestamp())


def test_refresh_leaves_what_no_snapshot_could_name(tmp_path):
    made = make_repository(tmp_path)
    for path in made.keys.glob("snapshot-*"):
        path.unlink()
    done = refresh(made.path, Keyring([made.keys]), utc_now() + days(160))
    assert done.signed == ("timestamp",)
    assert set(done.due) == {"snapshot", "digits"}


def test_show_tells_what_expires_soon(tmp_path):
    made = make_repository(tmp_path, root_keys=3, threshold=2)
    roles = {status.role: status for status in show(made.path, utc_now())}
    assert list(roles) == ["root", "targets", "snapshot", "timestamp", "digits"]
    assert (roles["root"].threshold, len(roles["root"].key_ids)) == (2, 3)
    assert not any(status.soon for status in roles.values())
    late = {status.role: status.soon for status in show(made.path, utc_now() + days(25))}
    assert late == {"root": False, "targets": False, "snapshot": True, "timestamp": True, "digits": False}


def test_soon_is_a_third_and_at_most_a_month():
    now = utc_now()
    assert lifetime("any-family") == days(180)
    assert not expires_soon("timestamp", now + days(3), now)
    assert expires_soon("timestamp", now + days(2), now)
    assert not expires_soon("root", now + days(31), now)
    assert expires_soon("root", now + days(29), now)


def test_what_names_a_changed_role_is_signed_too():
    assert affected(["root"]) == {"root"}
    assert affected(["timestamp"]) == {"timestamp"}
    assert affected(["digits"]) == {"digits", "snapshot", "timestamp"}


@pytest.mark.parametrize(
    "name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.digits.json", "1.root.json"]
)
def test_metadata_that_does_not_hold_is_not_built_upon(tmp_path, name):
    made = make_repository(tmp_path)
    path = made.metadata / name
    good = path.read_bytes()
    edit_json(path, lambda data: data["signed"].update(extra=1))
    with pytest.raises(RepositoryError, match="does not hold"):
        made.roles()
    path.write_bytes(good[:-40])
    with pytest.raises(RepositoryError, match="does not hold"):
        made.roles()
    path.unlink()
    with pytest.raises((RepositoryError, CallerError)):
        made.roles()


def test_no_repository_is_a_callers_error(tmp_path):
    with pytest.raises(CallerError, match="keys init"):
        trusted_root(tmp_path)


def _changes(made):
    now = utc_now()
    return {
        "publish": lambda: made.publish_tiny(2.0, "2"),
        "withdraw": lambda: withdraw("digits/1", made.path, made.keyring, now),
        "refresh": lambda: refresh(made.path, made.keyring, now + days(160)),
        "add-family": lambda: add_family(made.path, "speech", made.keyring, now),
        **{
            f"rotate {' '.join(chosen)}": (lambda chosen=chosen: rotate(made.path, chosen, made.keyring, now))
            for chosen in (["root"], ["timestamp"], ["snapshot"], ["targets"], ["digits"])
        },
        "rotate all": lambda: rotate(made.path, made.roles().names, made.keyring, now),
    }


@pytest.mark.parametrize(
    "change",
    [
        "publish",
        "withdraw",
        "refresh",
        "add-family",
        *(f"rotate {role}" for role in ("root", "timestamp", "snapshot", "targets", "digits", "all")),
    ],
)
def test_stopped_after_any_file_clients_accept_what_is_there_and_it_can_be_done_again(tmp_path, change, monkeypatch):
    for steps in range(20):
        made = make_repository(tmp_path / str(steps))
        made.publish_tiny(1.0, "1")
        client = _client(made)
        assert client.release("digits/1")
        done = []

        def put_some(path, data, work, done=done, steps=steps, write=files.put):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(path)
            write(path, data, work)

        with monkeypatch.context() as patched:
            patched.setattr(metadata, "put", put_some)
            try:
                _changes(made)[change]()
            except KeyboardInterrupt:
                stopped = True
            else:
                stopped = False
        for one in (client, _client(made, "new")):
            found = one.updater()
            if change != "withdraw":
                assert found.get_targetinfo("digits/1.json")
        if not stopped:
            assert steps >= 1
            return
        _changes(made)[change]()
        client.updater()
    pytest.fail("it never ended")
