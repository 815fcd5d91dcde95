import hashlib
import io
import os

import pytest

from ferryman.devices.fleet.repository import publish as publishing
from ferryman.devices.fleet.repository.chunks import MAX_BYTES
from ferryman.devices.fleet.repository.files import locked
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.manage import add_family
from ferryman.devices.fleet.repository.packs import EMPTY, Packs
from ferryman.devices.fleet.repository.publish import publish, withdraw
from ferryman.devices.fleet.repository.releases import read_payload
from ferryman.devices.fleet.repository.upkeep import check
from ferryman.runtime.contracts.errors import CallerError, PackageError, RepositoryError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.release import LossyUpdate, Release
from ferryman.runtime.contracts.tensor import DynamicDim, Signature, TensorSpec
from ferryman.runtime.package import MANIFEST, open_package
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.repository import flip, make_repository, utc_now
from tests.support.tuf_client import TufClient

MODEL = "artifacts/model.tflite"


@pytest.fixture
def made(tmp_path):
    return make_repository(tmp_path)


def _recipes(release, path=MODEL):
    return next(one for one in release.payloads if one.path == path).recipes


def _snapshot(made):
    """Every file that a client could see."""
    return {
        path: path.read_bytes()
        for folder in ("metadata", "targets", "packs")
        for path in (made.path / folder).rglob("*")
        if path.is_file()
    }


def test_a_release_makes_the_package(made, tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry", name="digits", padding=os.urandom(200_000))
    release = made.publish(package, "1.0")
    found = TufClient(tmp_path / "device", made.path, made.root).release("digits/1.0")
    assert decode(found, Release) == release
    assert release.package_sha256 == sha256_of(package)
    assert release.package_bytes == package.stat().st_size
    with open_package(package) as opened, Packs(made.path) as packs:
        assert [one.path for one in release.payloads] == [MANIFEST, *(one.path for one in opened.manifest.payloads)]
        assert read_payload(release.payloads[0], packs) == encode(opened.manifest)
        for payload in release.payloads[1:]:
            assert read_payload(payload, packs) == opened.read(payload.path)
    assert {path.name for path in made.path.iterdir()} == {"lock", "metadata", "packs", "targets"}


def test_equal_bytes_are_stored_once_over_families_and_versions(made, tmp_path):
    add_family(made.path, "speech", made.keyring, utc_now())
    bulk = os.urandom(600_000)
    first = publish(
        write_tiny_package(tmp_path / "a.ferry", padding=bulk), made.path, made.keyring, utc_now(), family="digits"
    )
    other = publish(
        write_tiny_package(tmp_path / "b.ferry", added=2.0, padding=bulk),
        made.path,
        made.keyring,
        utc_now(),
        family="speech",
    )
    assert first.new_bytes > 600_000
    assert other.new_bytes < MAX_BYTES + 10_000  # the piece that holds the weights, and indices
    assert first.shared_bytes == first.deltas == first.delta_bytes == 0
    assert first.piece_bytes + 5_000 > first.new_bytes > first.piece_bytes > 600_000
    assert other.piece_bytes < MAX_BYTES < other.shared_bytes
    assert len(_recipes(other.release)) == 1  # another family's models are no base


def test_a_delta_is_kept_where_it_is_smaller(made):
    bulk = os.urandom(300_000)
    made.publish_tiny(1.0, padding=bulk)
    release = made.publish_tiny(2.0, padding=bulk)
    whole, delta = _recipes(release)
    assert delta.base == _recipes_base(made, "digits/1")
    assert delta.stored_bytes + delta.index.length < 400 < whole.stored_bytes
    assert len(_recipes(made.publish_tiny(3.0, padding=os.urandom(300_000)))) == 1  # nothing is alike


def _recipes_base(made, name):
    return next(one.sha256 for one in made.release(name).payloads if one.path == MODEL)


def test_deltas_are_made_from_so_many_newest_releases(made):
    bulk = os.urandom(100_000)
    for number in range(4):
        made.publish_tiny(float(number), padding=bulk)
    release = made.publish_tiny(9.0, padding=bulk, delta_from=2)
    assert [one.base for one in _recipes(release)[1:]] == [_recipes_base(made, f"digits/{n}") for n in (4, 3)]
    assert len(_recipes(made.publish_tiny(10.0, padding=bulk, delta_from=0))) == 1


def test_the_base_that_was_given_is_among_the_bases_however_old(made, tmp_path):
    bulk = os.urandom(100_000)
    for number in range(5):
        made.publish_tiny(float(number), padding=bulk)
    oldest = tmp_path / "add-0.ferry"
    package = write_tiny_package(tmp_path / "p.ferry", name="digits", added=9.0, padding=bulk)
    done = publish(package, made.path, made.keyring, utc_now(), family="digits", delta_from=2, base=oldest)
    assert done.base == "digits/1"
    bases = [one.base for one in _recipes(done.release)[1:]]
    assert bases == [_recipes_base(made, f"digits/{number}") for number in (5, 4, 1)]
    again = write_tiny_package(tmp_path / "again.ferry", added=10.0, padding=bulk)
    newest = publish(again, made.path, made.keyring, utc_now(), family="digits", delta_from=2, base=package)
    assert newest.base == "digits/6"
    assert len(_recipes(newest.release)) == 3  # it is one of the two


def test_a_base_that_was_never_published_still_makes_a_delta(made, tmp_path):
    bulk = os.urandom(100_000)
    pushed = write_tiny_package(tmp_path / "pushed.ferry", added=1.0, padding=bulk)
    package = write_tiny_package(tmp_path / "p.ferry", name="digits", added=2.0, padding=bulk)
    seen = []
    done = publish(
        package,
        made.path,
        made.keyring,
        utc_now(),
        base=pushed,
        hinting=lambda path, old, new: seen.append((path, old, new)) or (),
    )
    assert done.base is None
    whole, delta = _recipes(done.release)
    with open_package(pushed) as before, open_package(package) as now:
        old, new = before.read(MODEL), now.read(MODEL)
        assert delta.base == hashlib.sha256(old).hexdigest()
        assert _recipes(done.release, MANIFEST)[0].base is None
    assert (MODEL, old, new) in seen
    assert delta.stored_bytes + delta.index.length < 400 < whole.stored_bytes
    assert done.best[MODEL] == (delta.stored_bytes + delta.index.length, "pushed.ferry")
    payload = next(one for one in done.release.payloads if one.path == MODEL)
    made_of_it = io.BytesIO()
    with Packs(made.path) as packs:
        packs.rebuild(payload, delta, memoryview(old), made_of_it)
    assert made_of_it.getvalue() == new
    assert check(made.path) == []


def test_a_base_that_shares_files_with_releases_is_tried_once(made, tmp_path):
    bulk = os.urandom(50_000)
    made.publish_tiny(1.0, padding=bulk)
    pushed = write_tiny_package(tmp_path / "pushed.ferry", added=1.0, promised=1.0001, padding=bulk)
    package = write_tiny_package(tmp_path / "p.ferry", name="digits", added=2.0, padding=bulk)
    done = publish(package, made.path, made.keyring, utc_now(), base=pushed)
    assert done.base is None
    assert [one.base for one in _recipes(done.release)] == [None, _recipes_base(made, "digits/1")]
    assert done.best[MODEL][1] == "digits/1"


def test_publishing_again_changes_nothing(made, tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry", name="digits")
    first = publish(package, made.path, made.keyring, utc_now())
    before = _snapshot(made)
    again = publish(package, made.path, made.keyring, utc_now(), version=first.release.version)
    assert (again.is_new, again.release, _snapshot(made)) == (False, first.release, before)
    assert not publish(package, made.path, made.keyring, utc_now()).is_new
    renamed = publish(package, made.path, made.keyring, utc_now(), version="other")
    assert renamed.is_new
    assert renamed.new_bytes < 700  # its indices


def test_a_version_is_never_another_package(made):
    made.publish_tiny(1.0, "1")
    before = _snapshot(made)
    with pytest.raises(CallerError, match="digits/1 is another package"):
        made.publish_tiny(2.0, "1")
    assert _snapshot(made) == before


def test_versions_count_on_and_are_not_used_twice(made, tmp_path):
    assert [made.publish_tiny(float(n)).version for n in range(3)] == ["1", "2", "3"]
    assert made.publish_tiny(7.0, "v7-rc").version == "v7-rc"
    client = TufClient(tmp_path / "device", made.path, made.root)
    withdraw("digits/3", made.path, made.keyring, utc_now())
    assert client.release("digits/3") is None
    assert client.release("digits/2")
    with pytest.raises(CallerError, match="was withdrawn"):
        made.publish_tiny(8.0, "3")
    assert made.publish_tiny(8.0).version == "4"
    assert made.publish_tiny(2.0, "3").version == "3"  # the very package may come back
    with pytest.raises(CallerError, match="no release digits/9"):
        withdraw("digits/9", made.path, made.keyring, utc_now())


@pytest.mark.parametrize("version", ["a/b", "../x", "x" * 65, "."])
def test_a_version_that_cannot_be_a_file_is_refused(made, version):
    with pytest.raises(CallerError, match="version"):
        made.publish_tiny(1.0, version)


def test_the_family_is_the_packages_name_or_is_named(made, tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry")
    before = _snapshot(made)
    with pytest.raises(CallerError, match=r"name is add-1, which is no family here; there are: digits\. .*--family"):
        publish(package, made.path, made.keyring, utc_now())
    assert _snapshot(made) == before
    assert publish(package, made.path, made.keyring, utc_now(), family="digits").release.family == "digits"
    add_family(made.path, "add-1", made.keyring, utc_now())
    assert publish(package, made.path, made.keyring, utc_now()).release.family == "add-1"
    with pytest.raises(CallerError, match="family 'nobody' is not known here"):
        publish(package, made.path, made.keyring, utc_now(), family="nobody")


def _dynamic(symbol, most=8, name="x"):
    spec = TensorSpec(name=name, dtype="float32", shape=(DynamicDim(symbol=symbol, min=1, max=most), 4))
    return Signature(inputs=(spec,), outputs=(spec,))


@pytest.mark.parametrize(
    "other",
    [
        Signature(inputs=(TensorSpec(name="ids", dtype="int64", shape=(1, 32)),), outputs=_dynamic("s0").outputs),
        Signature(inputs=_dynamic("s0").inputs, outputs=_dynamic("s0").outputs * 2),
        _dynamic("s0", most=9),
        _dynamic("s0", name="y"),
    ],
)
def test_another_signature_is_published_only_where_that_is_meant(made, tmp_path, other):
    made.publish(write_tiny_package(tmp_path / "1.ferry", name="digits", signature=_dynamic("s0")))
    again = write_tiny_package(tmp_path / "2.ferry", added=2.0, name="digits", signature=_dynamic("s77"))
    assert made.publish(again).version == "2"  # the symbol is PyTorch's
    text = write_tiny_package(tmp_path / "3.ferry", added=3.0, name="text", signature=other)
    before = _snapshot(made)
    with pytest.raises(
        CallerError, match=r"text has another signature than digits/2 \(digits\): .*--new-signature"
    ) as told:
        made.publish(text)
    for one in (*other.inputs, *_dynamic("s77").outputs):
        assert one.describe() in str(told.value)
    assert _snapshot(made) == before
    assert made.publish(text, new_signature=True).name == "digits/3"
    assert made.publish(text).name == "digits/3"  # it is there already


def test_without_keys_nothing_is_written(made, tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry", name="digits")
    before = _snapshot(made)
    with pytest.raises(CallerError, match="role digits takes 1 of 1 keys"):
        publish(package, made.path, Keyring([tmp_path / "nothing"]), utc_now())
    assert _snapshot(made) == before


def test_a_damaged_package_is_refused_before_anything_is_written(made, tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry", name="digits")
    flip(package, 900)
    before = _snapshot(made)
    with pytest.raises(PackageError, match="seal"):
        publish(package, made.path, made.keyring, utc_now())
    assert _snapshot(made) == before


def test_one_publisher_at_a_time(made, monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.repository.files._WAIT_S", 0.1)
    with locked(made.path), pytest.raises(CallerError, match=f"process {os.getpid()} is changing"):
        made.publish_tiny(1.0)


def test_a_piece_that_went_bad_on_the_disk_is_not_built_upon(made):
    bulk = os.urandom(300_000)
    release = made.publish_tiny(1.0, padding=bulk)
    pack, _, _ = made.piece_file(release)
    flip(pack, pack.stat().st_size // 2)
    before = _snapshot(made)
    with pytest.raises(RepositoryError, match=f"pack {pack.stem}"):
        made.publish_tiny(2.0, padding=bulk, delta_from=0)
    assert {path: data for path, data in _snapshot(made).items() if path in before} == before
    assert made.roles().releases.keys() == {"digits/1.json"}


def test_a_recipe_that_makes_something_else_is_never_signed(made, monkeypatch):
    made.publish_tiny(1.0, padding=os.urandom(100_000))

    def wrong(old, new, hints=()):
        del hints
        return encode_delta(old, new[:-1] + b"?")

    encode_delta = publishing.encode_delta
    monkeypatch.setattr(publishing, "encode_delta", wrong)
    with pytest.raises(RepositoryError, match="its pieces make"):
        made.publish_tiny(2.0, padding=os.urandom(100_000) + b"!")
    assert made.roles().releases.keys() == {"digits/1.json"}


def test_hints_and_what_a_lossy_update_lost_are_carried(made):
    made.publish_tiny(1.0)
    seen = []
    lossy = LossyUpdate(codec="none", base_package_sha256="0" * 64, relative_error=0.5, sqnr_min_db=9.0, ratio=50.0)
    release = made.publish_tiny(2.0, lossy=lossy, hinting=lambda path, old, new: seen.append((path, old != new)) or ())
    assert {path for path, _ in seen} == {MANIFEST, MODEL, "golden/0.msgpack"}
    assert release.lossy == lossy


def test_a_full_disk_leaves_the_repository_as_it_was(made, monkeypatch):
    made.publish_tiny(1.0)
    before = _snapshot(made)

    def full(_self, _data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("ferryman.devices.fleet.repository.packs.NewPack.add", full)
        with pytest.raises(OSError, match="No space left"):
            made.publish_tiny(2.0)
    assert _snapshot(made) == before
    made.publish_tiny(2.0)


def test_a_rebuild_needs_its_base(made):
    made.publish_tiny(1.0, padding=b"x" * 9000)
    release = made.publish_tiny(2.0, padding=b"x" * 9000)
    payload = next(one for one in release.payloads if one.path == MODEL)
    with Packs(made.path) as packs, pytest.raises(RepositoryError):
        packs.rebuild(payload, payload.recipes[1], EMPTY)
