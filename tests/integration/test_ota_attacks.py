"""The attack table of docs/ota/trust.md: each is carried out on a served repository, against the device's real client.

The agent's own loop reports every one with an error that names what is wrong; nothing of it is staged or installed, and
what served before serves. `test_without_an_attack...` shows that the same device takes the same release where nobody
attacks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TargetFile

from ferryman.devices.fleet.repository import publish as publishing
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.manage import refresh, rotate
from ferryman.devices.fleet.repository.metadata import signed_again
from ferryman.devices.fleet.repository.releases import release_file
from ferryman.runtime.contracts.errors import (
    BudgetError,
    FerrymanError,
    LinkError,
    PackageError,
    RepositoryError,
    TrustError,
    from_wire,
)
from ferryman.runtime.contracts.rollout import Reported
from ferryman.runtime.package import open_package
from tests.support.bad_server import Bad
from tests.support.bad_server import serving as serving_badly
from tests.support.device import Device
from tests.support.packages import write_tiny_package
from tests.support.repository import TestRepository, days, flip, make_repository, serving, utc_now

EVIL = b"what only the attacker would have a device run " * 100
DOCUMENT = Path(__file__).parents[2] / "docs" / "ota" / "trust.md"
BULK = os.urandom(120_000)
AHEAD = 2**31 - 10


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A repository with release 1 in families of its own, and a device; copied for each test."""
    folder = tmp_path_factory.mktemp("template")
    made = make_repository(folder / "true", families=("digits", "speech"), root_keys=3, threshold=2)
    made.publish_tiny(1.0, "1", padding=BULK)
    Device(folder / "device", made.root, write_tiny_package(folder / "old.ferry", added=7.0))
    return folder


@pytest.fixture
def made(template, tmp_path):
    """The true repository, with release 1."""
    true = tmp_path / "true"
    shutil.copytree(template / "true", true)
    return TestRepository(true / "repository", true / "keys", true / "offline")


@pytest.fixture
def device(template, made, tmp_path):
    """Runs something that was pushed to it by hand."""
    shutil.copytree(template / "device", tmp_path / "device")
    device = Device(tmp_path / "device")
    device.made = made
    return device


@pytest.fixture
def url(made):
    """What devices call the repository; an attacker changes the files behind it."""
    with serving(made.path) as found:
        yield found


def copied(made: TestRepository, name: str) -> TestRepository:
    """What a mirror, an attacker or the publisher kept of a repository."""
    path = made.path.parent.parent / name / "repository"
    shutil.copytree(made.path, path)
    return TestRepository(path, made.keys, made.offline)


def shown(made: TestRepository, other: TestRepository) -> None:
    """Devices see another repository's files from now on."""
    shutil.rmtree(made.path)
    shutil.copytree(other.path, made.path)


def stolen(made: TestRepository, *roles: str) -> Keyring:
    """A folder with the keys of these roles alone."""
    folder = made.path.parent / f"stolen-{'-'.join(roles)}"
    folder.mkdir(exist_ok=True)
    for role in roles:
        for path in [*made.keys.glob(f"{role}-*"), *made.offline.glob(f"{role}-*")]:
            shutil.copy(path, folder)
    return Keyring([folder])


def forged(made: TestRepository, changed, keyring, change=lambda _roles: None, also=None, now=None) -> None:
    """Sign the metadata again after `change`, by these keys."""
    roles = made.roles()
    change(roles)
    for name, data in signed_again(roles, changed, keyring, now or utc_now(), also or {}):
        (made.metadata / name).write_bytes(data)


def signed_release(made: TestRepository, name: str, change, keyring=None) -> None:
    """Have a release say something else, signed by its family's keys."""
    path = f"{name}.json"
    release = json.loads(made.release_file(name).read_bytes())
    change(release)
    data = json.dumps(release).encode()
    target = TargetFile.from_data(path, data, ["sha256"])
    release_file(made.path, target).write_bytes(data)
    forged(
        made, ["digits"], keyring or made.keyring, lambda roles: roles.family("digits").targets.update({path: target})
    )


def refused(device: Device, name: str, url: str, kind: type[FerrymanError], match: str, **options) -> Reported:
    """Ask the agent for a release and have it refused; returns what it reports."""
    before = device.serving(), device.store.read_state()
    said = device.told(name, _package_of(device.made, name), url, **options)
    assert said.error is not None, "it was taken"
    assert said.state in {"failed", "refused"} or kind is LinkError
    error = from_wire(said.error)
    assert isinstance(error, kind), error
    assert re.search(match, str(error)), error
    assert (device.serving(), device.store.read_state()) == before
    assert said.release == (before[1].active and before[1].active.release)
    assert said.package_sha256 == before[0]
    assert not device.holds(EVIL[:200])
    return said


def _package_of(made: TestRepository, name: str) -> str:
    """The host asks for what is published there, if anything is."""
    try:
        return made.release(name).package_sha256
    except (FerrymanError, KeyError):
        return "0" * 64


def nothing_staged(device: Device) -> bool:
    return not [path for path in (device.root / "download").rglob("*") if path.is_file()]


def test_without_an_attack_the_device_takes_it(made, device, url):
    release = made.publish_tiny(2.0, "2", padding=BULK)
    device.update("digits/1", url)
    said = device.told("digits/2", release.package_sha256, url)
    assert (said.state, said.error, said.release) == ("trial", None, "digits/2")
    assert device.serving() == release.package_sha256


def test_rollback(made, device, url):
    before = copied(made, "kept")
    made.publish_tiny(2.0, "2", padding=BULK)
    device.update("digits/2", url)
    shown(made, before)
    refused(device, "digits/1", url, TrustError, "older metadata than this device has seen.*rollback")


@pytest.mark.parametrize("thief", [("timestamp",), ("timestamp", "snapshot")])
def test_rollback_with_stolen_keys(made, device, url, thief):
    """The timestamp's key, then the snapshot's too, name older files under newer numbers."""
    old = made.roles()
    made.publish_tiny(2.0, "2", padding=BULK)
    device.update("digits/2", url)

    def change(roles):
        if "snapshot" in thief:
            roles.snapshot.signed.meta["digits.json"] = old.snapshot.signed.meta["digits.json"]
        else:
            roles.timestamp.signed.snapshot_meta = old.timestamp.signed.snapshot_meta

    forged(made, thief, stolen(made, *thief), change)
    refused(device, "digits/1", url, TrustError, "rollback")


def test_freeze(made, device, url):
    device.update("digits/1", url)
    made.publish_tiny(2.0, "2", padding=BULK)
    shown(made, copied(made, "same"))
    refresh(made.path, made.keyring, utc_now())
    frozen = copied(made, "frozen")
    refresh(made.path, made.keyring, utc_now() + days(7))
    shown(made, frozen)
    device.clock_ahead = days(8)
    refused(device, "digits/2", url, TrustError, "timestamp.json is expired")


def test_freeze_with_a_clock_that_went_back(made, device, url):
    """What was signed last tells that it is later than the clock says."""
    frozen = copied(made, "frozen")
    forged(made, ["timestamp"], made.keyring, now=utc_now() + days(40))
    device.clock_ahead = days(41)
    with pytest.raises(TrustError, match=r"snapshot.json is expired"):
        device.update("digits/1", url)
    shown(made, frozen)
    device.clock_ahead = days(-3000)
    refused(device, "digits/1", url, TrustError, "rollback|expired")
    assert nothing_staged(device)


@pytest.mark.parametrize("role", ["snapshot", "targets", "digits"])
def test_mix_and_match(made, device, url, role):
    """A file of one state among those of another, under the name that is asked for."""
    forged(made, [role], made.keyring)
    number = made.roles().signed(role).version
    shutil.copy(made.metadata / f"{number - 1}.{role}.json", made.metadata / f"{number}.{role}.json")
    refused(device, "digits/1", url, TrustError, "hash that is signed|mixed")
    assert nothing_staged(device)


def test_mix_and_match_of_releases(made, device, url):
    made.publish_tiny(2.0, "2", padding=BULK)
    padded = made.release_file("digits/1").read_bytes().ljust(made.release_file("digits/2").stat().st_size)
    made.release_file("digits/2").write_bytes(padded)
    refused(device, "digits/2", url, TrustError, "hash that is signed")
    shutil.copy(made.release_file("digits/1"), made.release_file("digits/2"))  # shorter than what is signed
    refused(device, "digits/2", url, RepositoryError, "416")


def test_fast_forward_and_recovery(made, device, url):
    """Stolen keys push the numbers up, so nothing true is ever newer again; new keys make devices forget them."""
    kept = copied(made, "kept")
    device.update("digits/1", url)

    def change(roles):
        roles.snapshot.signed.version = roles.timestamp.signed.version = AHEAD
        roles.snapshot.signed.meta["digits.json"].version = AHEAD

    thief = stolen(made, "timestamp", "snapshot")
    shutil.copy(made.metadata / "2.digits.json", made.metadata / f"{AHEAD}.digits.json")
    forged(made, ["snapshot"], thief, change)
    refused(device, "digits/1", url, TrustError, "versions|version")
    shown(made, kept)
    release = made.publish_tiny(2.0, "2", padding=BULK)
    refused(device, "digits/2", url, TrustError, "rollback")
    rotate(made.path, ["timestamp", "snapshot"], made.keyring, utc_now())
    device.update("digits/2", url)
    assert device.serving() == release.package_sha256


def test_arbitrary_package_by_other_keys(made, device, url, tmp_path):
    """A whole repository, well signed, by keys that are not the true ones; then its root under the next number."""
    evil = make_repository(tmp_path / "evil", families=("digits",))
    evil.publish_tiny(6.0, "9", padding=EVIL)
    refresh(evil.path, evil.keyring, utc_now())
    shown(made, evil)
    refused(device, "digits/9", url, TrustError, "lacks signatures")
    rotate(evil.path, ["root"], evil.keyring, utc_now())
    shown(made, evil)
    refused(device, "digits/9", url, TrustError, "lacks signatures")
    assert nothing_staged(device)


def test_arbitrary_package_in_the_place_of_a_true_one(made, device, url):
    evil = copied(made, "evil")
    evil.publish_tiny(6.0, "9", padding=EVIL)
    made.release_file("digits/1").write_bytes(evil.release_file("digits/9").read_bytes())
    refused(device, "digits/1", url, TrustError, "hash that is signed")
    for pack in made.packs():
        pack.write_bytes((EVIL * 99)[: pack.stat().st_size])
    shutil.copy(evil.release_file("digits/1"), made.release_file("digits/1"))
    refused(device, "digits/1", url, TrustError, "index that is not the one that is signed")


def test_arbitrary_package_of_another_family(made, device, url):
    """The key of one family signs for another."""
    target = TargetFile.from_file("digits/9.json", str(made.release_file("digits/1")), ["sha256"])
    shutil.copy(made.release_file("digits/1"), release_file(made.path, target))
    thief = stolen(made, "speech", "snapshot", "timestamp")
    forged(made, ["speech"], thief, lambda roles: roles.family("speech").targets.update({"digits/9.json": target}))
    refused(device, "digits/9", url, RepositoryError, "there is no release digits/9")


@pytest.mark.parametrize("file", ["release", "index", "timestamp", "snapshot"])
def test_wrong_hash(made, device, url, file):
    release = made.release("digits/1")
    blob = release.payloads[1].recipes[0].index
    path, at = {
        "release": (made.release_file("digits/1"), 40),
        "index": (made.path / "packs" / blob.pack[:2] / f"{blob.pack}.pack", blob.offset + blob.length // 2),
        "timestamp": (made.metadata / "timestamp.json", -20),
        "snapshot": (made.metadata / f"{made.roles().snapshot.signed.version}.snapshot.json", -20),
    }[file]
    flip(path, at % path.stat().st_size)
    refused(device, "digits/1", url, TrustError, "signed|signatures|malformed")


@pytest.mark.parametrize("when", ["metadata", "payloads"])
def test_endless_data(made, device, when):
    with serving_badly(made.path, Bad(endless=when == "metadata")) as server:
        attack = {"between": lambda: setattr(server.bad, "endless", True)} if when == "payloads" else {}
        refused(device, "digits/1", server.url, RepositoryError, "endless data|not the one that is signed", **attack)
    assert device.wire_bytes < 700_000  # a root may have 512,000
    assert sum(path.stat().st_size for path in device.root.rglob("*") if path.is_file()) < 1 << 20


@pytest.mark.parametrize("when", ["metadata", "payloads"])
def test_slow_retrieval(made, device, when):
    with serving_badly(made.path, Bad(bytes_s=40.0 if when == "metadata" else None)) as server:
        attack = {"between": lambda: setattr(server.bad, "bytes_s", 40.0)} if when == "payloads" else {}
        refused(device, "digits/1", server.url, LinkError, "without progress", timeout_s=0.3, patience_s=1.0, **attack)


@pytest.mark.parametrize("role", ["root", "targets", "timestamp", "digits"])
def test_below_threshold(made, device, url, role):
    """One of the two root keys that it takes, with one of the attacker's own; or, of other roles, nobody's."""
    own = CryptoSigner.generate_ed25519()
    roles = made.roles()
    metadata = {"root": roles.root, "targets": roles.targets, "timestamp": roles.timestamp, **roles.families}[role]
    if role == "root":
        (first, *_), _ = roles.keys("root")
        one = Keyring([made.offline]).signers("root", [first], 1)[0]
        for name in ("root", "timestamp"):
            metadata.signed.add_key(own.public_key, name)
        metadata.signed.version = 2
        metadata.sign(one)
        metadata.sign(own, append=True)
        (made.metadata / "2.root.json").write_bytes(metadata.to_bytes())
    elif role == "timestamp":
        metadata.signed.version += 1
        metadata.sign(own)
        (made.metadata / "timestamp.json").write_bytes(metadata.to_bytes())
    else:  # with everything above it signed anew
        forged(
            made,
            [role],
            stolen(made, "snapshot", "timestamp", role),
            also={role: [own]},
        )
        path = made.metadata / f"{made.roles().signed(role).version}.{role}.json"
        data = json.loads(path.read_bytes())
        data["signatures"] = [one for one in data["signatures"] if one["keyid"] == own.public_key.keyid]
        path.write_text(json.dumps(data))
        _named_again(made, role, path)
    refused(device, "digits/1", url, TrustError, "lacks signatures")
    assert nothing_staged(device)


def _named_again(made: TestRepository, role: str, path: Path) -> None:
    """Have snapshot and timestamp name a file as it is, by their own true keys."""
    from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp

    timestamp = Metadata[Timestamp].from_bytes((made.metadata / "timestamp.json").read_bytes())
    number = timestamp.signed.snapshot_meta.version
    snapshot = Metadata[Snapshot].from_bytes((made.metadata / f"{number}.snapshot.json").read_bytes())
    root = made_root(made)
    data = path.read_bytes()
    snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(int(path.name.split(".")[0]), data, ["sha256"])
    for name, one in (("snapshot", snapshot), ("timestamp", timestamp)):
        keys = [root.get_key(keyid) for keyid in root.roles[name].keyids]
        for signer in made.keyring.signers(name, keys, 1):
            one.sign(signer)
        if name == "snapshot":
            (made.metadata / f"{number}.snapshot.json").write_bytes(one.to_bytes())
            timestamp.signed.snapshot_meta = MetaFile.from_data(number, one.to_bytes(), ["sha256"])
    (made.metadata / "timestamp.json").write_bytes(timestamp.to_bytes())


def made_root(made: TestRepository):
    from tuf.api.metadata import Metadata, Root

    return Metadata[Root].from_bytes((made.metadata / "1.root.json").read_bytes()).signed


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "digits"])
def test_expired(made, device, url, role):
    """Everything is signed again in time, but for one role."""
    others = {"root", "targets", "snapshot", "timestamp", "digits", "speech"} - {role}
    late = {"root": days(366), "targets": days(366), "snapshot": days(31), "timestamp": days(8), "digits": days(181)}
    now = utc_now() + late[role]
    if role == "snapshot":
        others = {"timestamp"}  # nothing below can be signed anew without it
    if role != "timestamp":
        forged(made, others, stolen(made, *others), now=now)
    device.clock_ahead = late[role] + timedelta(hours=1)
    refused(device, "digits/1", url, TrustError, rf"{role}(\.json)? is expired")
    assert nothing_staged(device)


def test_key_compromise_of_a_family(made, device, url):
    """A family's key alone signs nothing that is in force."""
    evil = copied(made, "evil")
    evil.publish_tiny(6.0, "9", padding=EVIL)
    number = evil.roles().families["digits"].signed.version
    shutil.copytree(evil.path / "targets", made.path / "targets", dirs_exist_ok=True)
    shutil.copytree(evil.path / "packs", made.path / "packs", dirs_exist_ok=True)
    current = made.roles().families["digits"].signed.version
    shutil.copy(evil.metadata / f"{number}.digits.json", made.metadata / f"{current}.digits.json")
    refused(device, "digits/9", url, TrustError, "hash that is signed|goes on after its end")


def test_key_compromise_and_rotation_of_a_family(made, device, url):
    """The keys of family, snapshot and timestamp are stolen; the family's was replaced, by targets, since."""
    evil = copied(made, "evil")
    evil.publish_tiny(6.0, "9", padding=EVIL)
    thief = stolen(made, "digits")
    (old,), _ = made.roles().keys("digits")
    rotate(made.path, ["digits"], made.keyring, utc_now())
    device.update("digits/1", url)
    shutil.copytree(evil.path / "targets", made.path / "targets", dirs_exist_ok=True)
    shutil.copytree(evil.path / "packs", made.path / "packs", dirs_exist_ok=True)
    forged(made, ["digits"], made.keyring)  # the numbers go on
    path = made.metadata / f"{made.roles().families['digits'].signed.version}.digits.json"
    metadata = evil.roles().families["digits"]
    metadata.signed.version = int(path.name.split(".")[0])
    metadata.sign(thief.signers("digits", [old], 1)[0])
    path.write_bytes(metadata.to_bytes())
    _named_again(made, "digits", path)
    refused(device, "digits/9", url, TrustError, "lacks signatures")


def test_key_compromise_and_rotation(made, device, url):
    """All keys of the publishing machine are stolen; root replaces them, and what they sign is worth nothing."""
    evil = copied(made, "evil")
    thief = stolen(made, "timestamp", "snapshot", "targets", "digits")
    rotate(made.path, ["timestamp", "snapshot", "targets", "digits"], made.keyring, utc_now())
    device.update("digits/1", url)
    evil.keyring = thief
    evil.publish_tiny(6.0, "9", padding=EVIL)
    forged(evil, ["digits", "targets"], thief, _far_ahead)
    shown(made, evil)  # which has no second root: it is held back
    refused(device, "digits/9", url, TrustError, "lacks signatures")


def _far_ahead(roles):
    for metadata in (roles.timestamp, roles.snapshot, roles.targets, roles.families["digits"]):
        metadata.signed.version += 100


def test_tampered_chunk(made, device, url):
    pack = max(made.packs(), key=lambda path: path.stat().st_size)
    at = pack.stat().st_size // 2
    flip(pack, at)
    tampered = pack.read_bytes()[at - 40 : at + 40]
    refused(device, "digits/1", url, FerrymanError, "damaged|hash it must have")
    assert not device.holds(tampered)


@pytest.mark.parametrize("budget", [None, 20_000])
def test_tampered_delta(made, device, url, budget):
    """It is not used; the pieces are fetched in its place where the data budget has room for them, and else not."""
    device.update("digits/1", url)
    changed = bytearray(BULK)
    for at in range(0, len(changed), 9_000):
        changed[at] ^= 1
    release = made.publish_tiny(2.0, "2", padding=bytes(changed))
    pack, offset, length = made.piece_file(release, recipe=1)
    flip(pack, offset + length // 2)
    tampered = pack.read_bytes()[offset : offset + length]
    if budget is None:
        done = device.update("digits/2", url)
        assert device.serving() == release.package_sha256
        assert any("pieces are damaged on the server or on the way" in note for note in done.notes)
    else:
        said = refused(device, "digits/2", url, BudgetError, "before that: .*damaged", update_max_bytes=budget)
        assert (said.state, said.error.party) == ("refused", "budget")
    assert not device.holds(tampered)


@pytest.mark.parametrize("path", ["../../escaped", "/tmp/escaped", "artifacts/../../../escaped", "a/./b", "a\\..\\b"])
def test_path_escape_by_the_signer(made, device, url, path, monkeypatch, tmp_path):
    """A package whose manifest leads out of the slot, signed by a true key."""
    package = write_tiny_package(tmp_path / "evil.ferry", added=6.0, padding=EVIL)

    def opened(name):
        found = open_package(name)
        model = "artifacts/model.tflite"
        inner = found.read
        found.manifest = _moved(found.manifest, model, path)
        found.read = lambda asked: inner(model if asked == path else asked)
        return found

    monkeypatch.setattr(publishing, "open_package", opened)
    made.publish(package, "9")
    refused(device, "digits/9", url, PackageError, "path")
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/tmp/escaped").exists()


def _moved(manifest, old: str, new: str):
    from msgspec.structs import replace as changed

    return changed(
        manifest,
        payloads=tuple(changed(one, path=new) if one.path == old else one for one in manifest.payloads),
        variants=tuple(changed(one, payload=new) for one in manifest.variants),
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda release: release["payloads"][1].update(path="../../escaped"), "has not the artifacts/model.tflite"),
        (
            lambda release: release["payloads"][1]["recipes"][0]["index"].update(pack="../../../lock"),
            "is not the SHA-256 of a pack",
        ),
        (lambda release: release["payloads"][1]["recipes"][0]["index"].update(offset=-1), "impossible size"),
        (lambda release: release["payloads"][1].update(size_bytes=1 << 50), "payloads are larger"),
        (
            lambda release: release["payloads"][1]["recipes"][0].update(index_bytes=1 << 40),
            "an index of 1099511627776 bytes",
        ),
        (lambda release: release["payloads"][1].update(recipes=[]), "has no size, or no recipe"),
        (lambda release: release.update(payloads=[]), "does not come first"),
        (lambda release: release.update(schema=99), "has schema 99"),
        (lambda release: release.update(family="speech"), "says it is speech/1"),
        (lambda release: release.update(package_sha256="../../slots/a"), "is not the SHA-256 of a pack"),
    ],
    ids=["path", "pack", "offset", "size", "index", "recipes", "payloads", "schema", "family", "package"],
)
def test_malformed_release_by_the_signer(made, device, url, change, match, tmp_path):
    signed_release(made, "digits/1", change)
    refused(device, "digits/1", url, FerrymanError, match)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("planted", ["download", "package", "payload folder", "payload"])
def test_symlink_on_the_device(made, device, url, planted, tmp_path):
    """Somebody who may write the download's folder has it lead elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.tflite").write_bytes(b"precious")
    folder = device.root / "download" / made.release("digits/1").package_sha256
    place = {
        "download": device.root / "download",
        "package": folder,
        "payload folder": folder / "artifacts",
        "payload": folder / "artifacts" / "model.tflite",
    }[planted]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside / "model.tflite" if planted == "payload" else outside)
    if planted == "payload":
        device.update("digits/1", url)  # a file of its own takes the link's place
    else:
        refused(device, "digits/1", url, FerrymanError, "link")
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"model.tflite": b"precious"}


def test_the_table_lists_exactly_these_attacks():
    listed = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text()))
    here = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))
    assert listed == here - {"test_without_an_attack_the_device_takes_it", "test_the_table_lists_exactly_these_attacks"}
