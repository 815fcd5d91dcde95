"""What a device believes, and what it does not: attacks, mistakes, clocks and torn files, against a real repository."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import Cancelled, LaterError, UpdateConfig
from ferryman.devices.agent.update.exchange import Exchange
from ferryman.devices.agent.update.http import Http
from ferryman.devices.agent.update.trust import Trust, _by_version, read_release
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.manage import refresh, rotate
from ferryman.devices.fleet.repository.metadata import signed_again, write_roles
from ferryman.devices.fleet.repository.publish import withdraw
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError, RepositoryError, TrustError
from ferryman.runtime.contracts.record import encode
from tests.support.bad_server import Bad, serving
from tests.support.damage import CHANGES, changed
from tests.support.repository import edit_json, flip, make_repository

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Device:
    """A root, and one look after the other at a repository, each by a process of its own."""

    def __init__(self, root, provisioned, now=NOW):
        self.root = root
        self.now = now
        self.trust = root / "trust"
        self.trust.mkdir(parents=True, exist_ok=True)
        (self.trust / "root.json").write_bytes(provisioned)
        self.spent = 0

    def look(self, url, name="digits/1", **config):
        budget = DataBudget(self.root / "usage.json")
        http = Http(UpdateConfig(url=url, timeout_s=2.0, patience_s=1.0, **config), budget)
        before = budget.total_bytes
        try:
            return Trust(self.root, http, lambda: self.now).release(name)
        finally:
            http.close()
            self.spent = budget.total_bytes - before

    def remembers(self):
        return {path.relative_to(self.root): path.read_bytes() for path in self.trust.rglob("*") if path.is_file()}


@pytest.fixture
def repository(tmp_path):
    made = make_repository(tmp_path, now=NOW)
    made.publish_tiny(1.0, "1", now=NOW)
    return made


@pytest.fixture
def server(repository):
    with serving(repository.path) as server:
        yield server


@pytest.fixture
def device(tmp_path, repository):
    return Device(tmp_path / "device", repository.root)


def refused(device, server, match, kind=TrustError, name="digits/1", keeps=True):
    """The device says no, and has learned nothing from it."""
    before = device.remembers()
    with pytest.raises(kind, match=match) as caught:
        device.look(server.url, name)
    if keeps:
        assert device.remembers() == before
    return caught.value


def test_a_release_is_found_and_costs_little_the_second_time(device, server):
    assert device.look(server.url).name == "digits/1"
    first = device.spent
    assert device.look(server.url).name == "digits/1"
    assert device.spent < min(first / 2, 2500)
    asked = [path for path, _ in server.asked[-2:]]
    assert asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_names_and_the_newest(device, server, repository):
    for number, version in enumerate(["10", "9", "1.2-rc1"]):
        repository.publish_tiny(2.0 + number, version, now=NOW)
    http = Http(UpdateConfig(url=server.url), DataBudget(device.root / "u"))
    trust = Trust(device.root, http, lambda: NOW)
    assert trust.names("digits") == ["digits/1", "digits/1.2-rc1", "digits/9", "digits/10"]
    assert trust.newest("digits") == "digits/10"
    with pytest.raises(RepositoryError, match="no release of other"):
        trust.newest("other")
    with pytest.raises(RepositoryError, match=r"no release digits/7; of digits there are: digits/1, "):
        trust.release("digits/7")
    http.close()


def test_versions_are_numbers_where_they_are():
    names = ["f/1.10.0", "f/1.9.2", "f/2", "f/1.9.10", "f/1.9"]
    assert sorted(names, key=_by_version) == ["f/1.9", "f/1.9.2", "f/1.9.10", "f/1.10.0", "f/2"]


def test_without_a_root_nothing_is_believed(device, server):
    (device.trust / "root.json").unlink()
    with pytest.raises(DeviceError, match="provision this device"):
        device.look(server.url)
    (device.trust / "root.json").write_bytes(b"{}")
    with pytest.raises(TrustError, match="malformed"):
        device.look(server.url)


# Attacks.


def test_rollback(device, server, repository, tmp_path):
    old = shutil.copytree(repository.path, tmp_path / "old")
    repository.publish_tiny(2.0, "2", now=NOW + timedelta(hours=1))
    device.look(server.url, "digits/2")
    server.files = old
    refused(device, server, "a rollback or mix-and-match attack")


def test_rollback_where_the_cache_is_lost(device, server, repository, tmp_path):
    """The signed time alone tells."""
    old = shutil.copytree(repository.path, tmp_path / "old")
    refresh(repository.path, repository.keyring, NOW + timedelta(hours=1))
    device.look(server.url)
    shutil.rmtree(device.trust / "metadata")
    server.files = old
    refused(device, server, "rollback", keeps=False)


def test_freeze(device, server, repository, tmp_path):
    device.look(server.url)
    frozen = shutil.copytree(repository.path, tmp_path / "frozen")
    device.now = NOW + timedelta(days=6)
    server.files = frozen
    device.look(server.url)
    device.now = NOW + timedelta(days=8)
    refused(device, server, r"timestamp.json is expired; .* nobody has signed it again in time .* freeze attack")


def test_mix_and_match(device, server, repository, tmp_path):
    repository.publish_tiny(2.0, "2", now=NOW)
    files = {
        path.relative_to(repository.path).as_posix(): path.read_bytes() for path in repository.path.rglob("*.json")
    }
    snapshots = sorted(name for name in files if name.endswith(".snapshot.json"))
    files[snapshots[-1]] = files[snapshots[0]]
    server.files = files
    refused(device, server, "a file does not have the hash that is signed", keeps=False)


def test_fast_forward_is_undone_by_new_keys(device, server, repository):
    """Thieves of the timestamp's and snapshot's keys count far ahead; the owner replaces the keys."""
    good = {path: path.read_bytes() for path in repository.metadata.iterdir()}
    roles = repository.roles()
    roles.timestamp.signed.version = 2**40
    roles.snapshot.signed.version = 2**40
    stolen = signed_again(roles, ["snapshot"], repository.keyring, NOW + timedelta(days=100), {})
    write_roles(repository.path, stolen, repository.path.parent)
    device.look(server.url)
    assert device.remembers() != {}
    for path in repository.metadata.iterdir():
        path.unlink()
    for path, data in good.items():
        path.write_bytes(data)
    refused(device, server, "rollback")
    rotate(repository.path, ["timestamp", "snapshot"], repository.keyring, NOW)
    assert device.look(server.url).name == "digits/1"


def test_an_arbitrary_package(device, server, repository):
    edit_json(repository.release_file("digits/1"), lambda release: release.update(package_sha256="0" * 64))
    refused(device, server, "hash that is signed|goes on after", keeps=False, kind=RepositoryError)


def test_a_role_signs_for_its_family_alone(tmp_path):
    made = make_repository(tmp_path, ["digits", "voices"], now=NOW)
    made.publish_tiny(1.0, "1", now=NOW)
    roles = made.roles()
    target = roles.families["digits"].signed.targets["digits/1.json"]
    target.path = "voices/1.json"
    roles.families["digits"].signed.targets["voices/1.json"] = target
    write_roles(made.path, signed_again(roles, ["digits"], made.keyring, NOW, {}), tmp_path)
    device = Device(tmp_path / "device", made.root)
    with serving(made.path) as server:
        refused(device, server, "there is no release voices/1", RepositoryError, "voices/1", keeps=False)


def test_endless_metadata(device, server, monkeypatch):
    answers = []
    request = Exchange._request
    monkeypatch.setattr(Exchange, "_request", lambda self, url: answers.append(request(self, url)) or answers[-1])
    server.bad = Bad(endless=True)
    error = refused(device, server, "endless data", keeps=False)
    assert device.spent < 2_000_000
    assert answers
    assert all(one.closed for one in answers), f"a connection is open for as long as anybody has {error!r}"


def test_slow_retrieval(device, server, monkeypatch):
    monkeypatch.setattr("ferryman.devices.agent.update.http._FAILURES_MAX", 1)
    server.bad = Bad(bytes_s=30)
    refused(device, server, "fewer than 128", LinkError, keeps=False)


@pytest.mark.parametrize("role", ["timestamp.json", "2.snapshot.json", "2.digits.json", "1.targets.json"])
def test_signed_by_nobody(device, server, repository, role):
    path = repository.metadata / role
    found = Metadata.from_bytes(path.read_bytes())
    other = Keyring([device.root / "others"]).make("x")
    for signature in found.signatures.values():
        signature.signature = other.sign(b"other").signature
    path.write_bytes(found.to_bytes())
    refused(device, server, "lacks signatures|hash that is signed", keeps=False)


def test_below_the_threshold(tmp_path):
    made = make_repository(tmp_path, root_keys=3, threshold=2, now=NOW)
    made.publish_tiny(1.0, "1", now=NOW)
    device = Device(tmp_path / "device", made.root)
    rotate(made.path, ["timestamp"], made.keyring, NOW)
    path = made.metadata / "2.root.json"
    edit_json(path, lambda root: root["signatures"].__delitem__(slice(1, None)))
    with serving(made.path) as server:
        refused(device, server, "lacks signatures", keeps=False)


def test_a_stolen_key_that_was_replaced(device, server, repository, tmp_path):
    device.look(server.url)
    before = repository.roles()
    rotate(repository.path, ["digits"], repository.keyring, NOW)
    device.look(server.url)
    stolen = signed_again(before, ["digits"], repository.keyring, NOW, {})
    files = {path.name: path for path in repository.metadata.iterdir()}
    newest = max((name for name in files if name.endswith(".digits.json")), key=lambda name: int(name.split(".")[0]))
    files[newest].write_bytes(dict(stolen)[next(name for name, _ in stolen if name.endswith(".digits.json"))])
    shutil.rmtree(device.trust / "metadata")
    refused(device, server, "hash that is signed|lacks signatures", keeps=False)


def test_the_root_may_be_rotated_many_times(device, server, repository):
    for _ in range(4):
        rotate(repository.path, ["root", "timestamp", "snapshot", "targets", "digits"], repository.keyring, NOW)
    assert device.look(server.url).name == "digits/1"
    assert len(list((device.trust / "metadata" / "root_history").iterdir())) == 5


def test_a_root_of_somebody_else(device, server, tmp_path):
    other = make_repository(tmp_path / "other", now=NOW)
    other.publish_tiny(1.0, "1", now=NOW)
    server.files = other.path
    refused(device, server, "lacks signatures", keeps=False)


def test_a_withdrawn_release_is_gone(device, server, repository):
    device.look(server.url)
    withdraw("digits/1", repository.path, repository.keyring, NOW)
    refused(device, server, "there is no release digits/1; of digits there are: none", RepositoryError, keeps=False)


def test_a_damaged_release(device, server, repository):
    flip(repository.release_file("digits/1"), 30)
    refused(device, server, "hash that is signed", keeps=False)


def test_a_missing_release(device, server, repository):
    repository.release_file("digits/1").unlink()
    refused(device, server, "404.*it is signed, and its file is missing", RepositoryError, keeps=False)


# Clocks.


@pytest.mark.parametrize("now", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)])
def test_a_clock_that_was_never_set(device, server, repository, now, tmp_path):
    """The newest signed time stands in for it; freezes are noticed as far as it tells."""
    old = shutil.copytree(repository.path, tmp_path / "old")
    device.now = now
    device.look(server.url)
    refresh(repository.path, repository.keyring, NOW + timedelta(days=100))
    device.look(server.url)
    server.files = old
    refused(device, server, "rollback")
    assert (
        json.loads((device.trust / "signed_at.json").read_bytes())["second"] == (NOW + timedelta(days=100)).timestamp()
    )


def test_with_no_clock_the_signed_time_ends_what_it_is_after(device, server, repository):
    """The root was good for a year; a timestamp signed later shows that it is over."""
    device.now = datetime(1970, 1, 1, tzinfo=UTC)
    roles = repository.roles()
    later = signed_again(roles, ["timestamp"], repository.keyring, NOW + timedelta(days=370), {})
    write_roles(repository.path, later, repository.path.parent)
    refused(device, server, "root.json is expired", keeps=False)


def test_a_clock_that_is_ahead_is_named_and_poisons_nothing(device, server):
    device.look(server.url)
    before = device.remembers()
    device.now = NOW + timedelta(days=20_000)
    error = refused(device, server, "this device's clock is ahead, most likely; set it")
    assert "2081-03-04" in str(error)
    assert "the newest signature was made at 2026-06-01" in str(error)
    device.now = NOW
    assert device.look(server.url).name == "digits/1"
    assert device.remembers() == before


def test_a_signed_time_after_its_own_end_is_none(device, server, repository):
    edit = Metadata.from_bytes((repository.metadata / "timestamp.json").read_bytes())
    edit.signed.unrecognized_fields["x-ferryman-signed-at"] = 10**11
    keys, threshold = repository.roles().keys("timestamp")
    edit.signatures.clear()
    for signer in repository.keyring.signers("timestamp", keys, threshold):
        edit.sign(signer, append=True)
    (repository.metadata / "timestamp.json").write_bytes(edit.to_bytes())
    assert device.look(server.url).name == "digits/1"
    assert not (device.trust / "signed_at.json").exists()


# The disk.


def cached(device):
    return [path for path in device.trust.rglob("*.json") if path != device.trust / "root.json"]


@pytest.mark.parametrize("how", ["empty", "torn", "other"])
def test_no_damaged_file_locks_the_device_out(device, server, repository, how):
    rotate(repository.path, ["timestamp"], repository.keyring, NOW)
    device.look(server.url)
    assert len(cached(device)) == 8
    for path in cached(device):
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "other": b"[1]"}[how])
        assert device.look(server.url).name == "digits/1", path
        assert path.read_bytes() == whole or path.name == "signed_at.json", path


@settings(deadline=None, max_examples=15)
@given(name=st.integers(0, 100), changes=CHANGES)
def test_any_damage_to_what_is_served_is_refused(tmp_path_factory, served, name, changes):
    files, root = served
    names = sorted(name for name in files if name.startswith(("metadata", "targets")))
    chosen = names[name % len(names)]
    device = Device(tmp_path_factory.mktemp("device"), root)
    with serving({**files, chosen: changed(files[chosen], changes)}) as server, contextlib.suppress(RepositoryError):
        assert device.look(server.url).name == "digits/1"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = make_repository(tmp_path_factory.mktemp("served"), now=NOW)
    made.publish_tiny(1.0, "1", now=NOW)
    files = {
        path.relative_to(made.path).as_posix(): path.read_bytes() for path in made.path.rglob("*") if path.is_file()
    }
    return files, made.root


def test_what_is_private_in_tuf_is_called(device, server, monkeypatch):
    """An update of tuf that renames what `_Updater` overrides fails here, and not in the field."""
    from tuf.ngclient import Updater

    from ferryman.devices.agent.update import trust

    called = set()
    for name in ("_load_timestamp", "_persist_file", "_update_root_symlink"):
        assert name in vars(Updater)
        ours = vars(trust._Updater)[name]
        monkeypatch.setattr(
            trust._Updater, name, lambda self, *given, _ours=ours, _name=name: called.add(_name) or _ours(self, *given)
        )
    device.look(server.url)
    assert called == {"_load_timestamp", "_persist_file", "_update_root_symlink"}
    assert not (device.trust / "metadata" / "root.json").exists()


def test_metadata_is_on_the_disk_before_it_counts(device, server, monkeypatch):
    synced = []
    before = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink())) or before(descriptor),
    )
    device.look(server.url)
    for name in ("timestamp", "snapshot", "targets", "digits"):
        assert any(path.endswith(f"/metadata/{name}.json.new") for path in synced), name


# The link.


def test_metadata_over_a_link_that_drops(device, server, monkeypatch):
    monkeypatch.setattr("ferryman.devices.agent.update.http._BACKOFF_S", 0.001)
    server.bad = Bad(drop_every=600)
    assert device.look(server.url).name == "digits/1"


def test_404_of_the_timestamp_is_final(device, server):
    server.bad = Bad(status_of={"metadata/timestamp.json": 404})
    refused(device, server, r"timestamp.json answers 404", RepositoryError, keeps=False)
    assert sum(path.endswith("timestamp.json") for path, _ in server.asked) == 1


def test_5xx_is_a_link(device, server, monkeypatch):
    monkeypatch.setattr("ferryman.devices.agent.update.http._BACKOFF_S", 0.001)
    server.bad = Bad(status_of={"metadata/timestamp.json": 500})
    refused(device, server, r"timestamp.json answers 500", LinkError, keeps=False)


def test_a_server_that_asks_to_come_back_later_is_no_verdict_on_metadata(device, server):
    server.bad = Bad(status_of={"metadata/timestamp.json": 429}, headers={"Retry-After": "600"})
    refused(device, server, r"timestamp.json answers 429; asks to come back in 600 s", LaterError, keeps=False)


def test_a_cancel_ends_it(device, server):
    event = threading.Event()
    event.set()
    http = Http(UpdateConfig(url=server.url), DataBudget(device.root / "u"), event)
    with pytest.raises(Cancelled):
        Trust(device.root, http, lambda: NOW).release("digits/1")


@pytest.mark.parametrize("name", ["digits", "../x/1", "digits/../1", "digits/", "/1", "digits/1/2"])
def test_names_that_are_none(device, server, name):
    with pytest.raises(CallerError):
        device.look(server.url, name)


# Releases that are signed, and wrong.


def _based(release):
    """A recipe from a base; there is one from it already, once this is called."""
    recipe = {**release["payloads"][1]["recipes"][0], "base": "0" * 64}
    release["payloads"][1]["recipes"].append(recipe)
    return recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda release: release.update(schema=2), "has schema 2"),
        (lambda release: release.update(version="7"), "says it is digits/7"),
        (lambda release: release.update(package_sha256="../../etc"), "not the SHA-256"),
        (lambda release: release.update(payloads=[]), "does not come first"),
        (lambda release: release["payloads"].reverse(), "does not come first"),
        (lambda release: release["payloads"][0].update(size_bytes=5 << 20), "a manifest of"),
        (lambda release: release["payloads"][1].update(size_bytes=9 << 30), "are larger than"),
        (lambda release: release["payloads"][1].update(size_bytes=-1), "has no size"),
        (lambda release: release["payloads"][1].update(recipes=[]), "no recipe without base"),
        (lambda release: release["payloads"][1]["recipes"][0].update(base="0" * 64), "no recipe without base"),
        (lambda release: release["payloads"][1]["recipes"][0]["index"].update(pack="../x"), "not the SHA-256"),
        (lambda release: release["payloads"][1]["recipes"][0]["index"].update(length=1 << 40), "impossible size"),
        (lambda release: release["payloads"][1]["recipes"][0]["index"].update(offset=1 << 62), "impossible size"),
        (lambda release: release["payloads"][1]["recipes"][0].update(stored_bytes=1 << 62), "impossible size"),
        (lambda release: release["payloads"][1]["recipes"][0].update(stored_bytes=-1), "impossible size"),
        (lambda release: release["payloads"].append(release["payloads"][1]), "is listed twice"),
        (lambda release: release["payloads"][1]["recipes"].append(_based(release)), "two recipes from one base"),
        (lambda release: release.pop("family"), "family"),
    ],
)
def test_signed_nonsense_is_its_publishers_fault(repository, change, message):
    release = json.loads(encode(repository.release("digits/1")))
    change(release)
    with pytest.raises(RepositoryError, match=message) as caught:
        read_release(json.dumps(release).encode(), "digits/1")
    assert not isinstance(caught.value, TrustError)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_release_or_an_error(data):
    with pytest.raises(RepositoryError):
        read_release(data, "digits/1")
