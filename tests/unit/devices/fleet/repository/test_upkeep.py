import os

import pytest

from ferryman.devices.fleet.repository.manage import refresh
from ferryman.devices.fleet.repository.publish import withdraw
from ferryman.devices.fleet.repository.upkeep import check, prune
from ferryman.runtime.contracts.errors import CallerError, RepositoryError
from tests.support.repository import days, flip, make_repository, utc_now
from tests.support.tuf_client import TufClient

BULK = os.urandom(100_000)


@pytest.fixture
def made(tmp_path):
    made = make_repository(tmp_path)
    made.publish_tiny(1.0, padding=BULK)
    made.publish_tiny(2.0, padding=BULK)
    return made


def test_a_whole_repository_is_whole(made):
    steps = []
    assert check(made.path, steps.append) == []
    assert steps[-2:] == ["digits/1", "digits/2"]


def test_every_damaged_file_is_named(made):
    for path in [*made.packs(), made.release_file("digits/1")]:
        good = path.read_bytes()
        flip(path, len(good) // 2)
        assert any(path.stem in one for one in check(made.path)), path
        path.write_bytes(good[:-1])
        assert any(path.stem in one for one in check(made.path)), path
        path.unlink()
        assert any(path.stem in one for one in check(made.path)), path
        path.write_bytes(good)
    assert check(made.path) == []
    flip(made.metadata / "timestamp.json", 300)
    with pytest.raises(RepositoryError):
        check(made.path)


def test_a_delta_whose_base_was_withdrawn_is_still_whole(made):
    withdraw("digits/1", made.path, made.keyring, utc_now())
    assert check(made.path) == []


def test_what_nobody_names_goes_after_the_grace(made, tmp_path):
    now = utc_now()
    orphan = made.path / "packs" / "ab" / ("ab" * 32 + ".pack")
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"left by a kill")
    assert prune(made.path, now).files == 0
    done = prune(made.path, now + days(8))
    assert not orphan.exists()
    assert done.files == 3  # and 1.snapshot, 1.digits
    assert done.bytes > len(b"left by a kill")
    assert (made.metadata / "1.root.json").exists()
    assert check(made.path) == []
    assert TufClient(tmp_path / "device", made.path, made.root).release("digits/2")


def test_the_grace_begins_when_it_was_withdrawn(made):
    now = utc_now()
    old = now.timestamp() - days(100).total_seconds()
    for path in made.path.rglob("*"):
        os.utime(path, (old, old))
    before = {*made.packs()}
    target = made.release_file("digits/2")
    withdraw("digits/2", made.path, made.keyring, now)
    prune(made.path, now)
    assert {*made.packs()} == before
    assert target.exists()
    prune(made.path, now + days(8))
    assert len(before - {*made.packs()}) == 2
    assert not target.exists()
    assert check(made.path) == []


def test_what_an_older_release_needs_stays(made):
    withdraw("digits/1", made.path, made.keyring, utc_now())  # the second uses its pieces
    prune(made.path, utc_now() + days(8))
    assert check(made.path) == []


def test_pruning_a_damaged_repository_deletes_nothing(made):
    for _ in range(3):
        refresh(made.path, made.keyring, utc_now() + days(25))
    made.release_file("digits/1").unlink()
    before = {*made.path.rglob("*.*")}
    with pytest.raises(RepositoryError):
        prune(made.path, utc_now() + days(300))
    assert {*made.path.rglob("*.*")} == before


def test_no_repository_is_a_callers_error(tmp_path):
    with pytest.raises(CallerError):
        check(tmp_path)
