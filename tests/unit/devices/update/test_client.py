"""Updates up to staged payloads, against real repositories: what travels, what resumes, what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ferryman.devices.agent.update import http as http_module
from ferryman.devices.agent.update.client import UpdateClient
from ferryman.devices.agent.update.config import Cancelled, UpdateConfig
from ferryman.runtime.contracts.errors import (
    BudgetError,
    CallerError,
    DeviceError,
    LinkError,
    PackageError,
    RepositoryError,
    TrustError,
)
from ferryman.runtime.install import install
from ferryman.runtime.package import open_package
from ferryman.runtime.pieces.codecs import CODECS
from ferryman.update_cli import update
from tests.support.bad_server import Bad, serving
from tests.support.disk import small_disk
from tests.support.packages import write_tiny_package, write_varied_package
from tests.support.repository import flip, make_repository
from tests.support.updates import UpdatingDevice

MODEL = "artifacts/model.tflite"
SIZE = 2_000_000


def noise(seed, size=SIZE):
    return np.random.default_rng(seed).bytes(size)


def edited(data, at=SIZE // 2, size=300, seed=9):
    return data[:at] + noise(seed, size) + data[at + size :]


PAD = noise(1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """digits/1; digits/2, a small change; digits/3, the same change again without a delta."""
    made = make_repository(tmp_path_factory.mktemp("published"))
    made.publish_tiny(1.0, "1", padding=PAD)
    made.publish_tiny(2.0, "2", padding=edited(PAD))
    made.publish_tiny(3.0, "3", padding=edited(PAD, seed=10), delta_from=0)
    return made


@pytest.fixture
def repository(published, tmp_path):
    """A copy that may be damaged."""
    copied = shutil.copytree(published.path, tmp_path / "copy")
    return type(published)(copied, published.keys, published.offline)


@pytest.fixture
def server(repository):
    with serving(repository.path) as server:
        yield server


@pytest.fixture
def device(tmp_path, repository, server, monkeypatch):
    monkeypatch.setattr(http_module, "_BACKOFF_S", 0.001)
    return UpdatingDevice(tmp_path / "device", repository.root, server.url)


def sent_packs(server):
    return sum(1 for path, _ in server.asked if path.startswith("packs/"))


def staged_model(staged):
    return (staged.directory / MODEL).read_bytes()


def test_the_first_one_brings_everything_once(device, server):
    staged = device.fetch("digits/1")
    assert staged_model(staged).endswith(PAD)
    assert staged.notes == ()
    assert staged.variants == ()
    sent = server.sent
    assert SIZE < staged.planned_bytes < SIZE * 1.01
    assert staged.planned_bytes <= staged.wire_bytes < staged.planned_bytes + 12_000
    again = device.fetch("digits/1")
    assert {way.kind for way in again.ways} == {"staged"}
    assert again.planned_bytes == 0
    assert server.sent - sent < 1500, "only the timestamp"


def test_an_update_travels_as_a_delta(device, server):
    device.update("digits/1")
    sent = server.sent
    staged = device.update("digits/2")
    assert [way.kind for way in staged.ways] == ["delta", "delta"]
    assert server.sent - sent < 12_000
    assert device.store.active().slot.release == "digits/2"


def test_pieces_that_are_here_are_not_fetched(device, server):
    """No delta was published; the index of what is here was kept when it came."""
    device.update("digits/1")
    sent = server.sent
    staged = device.update("digits/3")
    assert staged.ways[0].kind == "chunks"
    assert 1000 < server.sent - sent < 600_000
    assert staged_bytes_of(device, "digits/3").endswith(edited(PAD, seed=10))


def staged_bytes_of(device, name):
    slot = device.store.active()
    assert slot.slot.release == name
    return (slot.directory / MODEL).read_bytes()


def test_the_index_of_what_is_here_is_fetched_where_it_pays(device, server):
    device.update("digits/1")
    shutil.rmtree(device.root / "pieces")
    sent = server.sent
    staged = device.update("digits/3")
    assert server.sent - sent < 600_000
    assert staged.notes == ()


def test_without_knowing_pieces_all_of_it_comes(device, server, repository):
    """What was pushed by hand names no release."""
    from ferryman.runtime.install import install

    package = write_tiny_package(repository.path.parent / "p.ferry", added=1.0, padding=PAD)
    install(package, device.root, golden=lambda _directory, _manifest: ())
    assert device.fetch("digits/3").planned_bytes > SIZE


def test_a_package_that_was_pushed_is_a_base_too(device, server, repository):
    from ferryman.runtime.install import install

    package = write_tiny_package(repository.path.parent / "p.ferry", added=1.0, padding=PAD)
    install(package, device.root, golden=lambda _directory, _manifest: ())
    assert device.fetch("digits/2").planned_bytes < 10_000


def test_indices_of_what_is_gone_are_forgotten(device, repository):
    for name in ("digits/1", "digits/2", "digits/3"):
        device.update(name)
    device.fetch("digits/2")
    kept = {path.stem for path in (device.root / "pieces").glob("*.index")}
    of = {
        name: {recipe.index.sha256 for payload in repository.release(name).payloads for recipe in payload.recipes}
        for name in ("digits/1", "digits/3")
    }
    assert kept & of["digits/3"]
    assert not kept & of["digits/1"]


# Variants.


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    made = make_repository(tmp_path_factory.mktemp("varied"))
    package = write_varied_package(made.path.parent / "v.ferry", paddings={"large": 700_000, "small": 0})
    made.publish(package, "1")
    other = write_varied_package(made.path.parent / "w.ferry", paddings={"large": 700_001, "small": 0})
    made.publish(other, "2")
    return made


@pytest.fixture
def varied_device(varied, tmp_path):
    with serving(varied.path) as server:
        yield UpdatingDevice(tmp_path / "device", varied.root, server.url)


def test_only_what_is_asked_for_comes(varied_device):
    staged = varied_device.update("digits/1", ["small"])
    assert staged.variants == ("small",)
    paths = {way.payload.path for way in staged.ways}
    assert paths == {"artifacts/small.tflite", "own/small.msgpack"}
    installed = varied_device.store.active()
    assert [one.name for one in installed.manifest.variants] == ["small"]


def test_equal_payloads_are_linked(varied_device):
    varied_device.update("digits/1")
    staged = varied_device.fetch("digits/2")
    assert {way.payload.path: way.kind for way in staged.ways}["artifacts/small.tflite"] == "same"
    here = varied_device.store.active().directory / "artifacts/small.tflite"
    assert here.stat().st_ino == (staged.directory / "artifacts/small.tflite").stat().st_ino


def test_an_equal_payload_that_is_damaged_is_fetched(varied_device):
    varied_device.update("digits/1")
    here = varied_device.store.active().directory / "artifacts/small.tflite"
    flip(here, 10)
    damaged = here.read_bytes()
    staged = varied_device.fetch("digits/2")
    assert any("small.tflite: same from" in note and "damaged on this device" in note for note in staged.notes)
    assert (staged.directory / "artifacts/small.tflite").read_bytes() != damaged == here.read_bytes()


def test_where_there_are_no_links_it_is_copied(varied_device, monkeypatch):
    varied_device.update("digits/1")

    def no_links(*_given, **_named):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    staged = varied_device.fetch("digits/2")
    assert (staged.directory / "artifacts/small.tflite").stat().st_nlink == 1


def test_a_variant_that_is_none(varied_device):
    with pytest.raises(CallerError, match="no variant huge; there are: large, small"):
        varied_device.fetch("digits/1", ["huge"])


def test_what_cannot_run_here_is_not_fetched(tmp_path):
    made = make_repository(tmp_path)
    package = write_tiny_package(tmp_path / "p.ferry", isa=("no-such-set",), padding=PAD)
    made.publish(package, "1")
    with serving(made.path) as server:
        device = UpdatingDevice(tmp_path / "device", made.root, server.url)
        with pytest.raises(DeviceError, match="no-such-set"):
            device.fetch("digits/1")
        assert server.sent < 20_000


def test_what_variants_share_comes_once(tmp_path):
    """Two artifacts with the same bytes in them."""
    from ferryman.runtime.package import write_package
    from tests.support.packages import SIGNATURE

    with open_package(write_varied_package(tmp_path / "v.ferry")) as opened:
        variants, artifacts = (
            opened.manifest.variants,
            {"artifacts/large.tflite": PAD, "artifacts/small.tflite": PAD[400_000:]},
        )
        golden = opened.golden()
        artifacts["own/small.msgpack"] = opened.read("own/small.msgpack")
    package = tmp_path / "shared.ferry"
    write_package(
        package,
        name="shared",
        signature=SIGNATURE,
        variants=variants,
        artifacts=artifacts,
        golden=golden,
        golden_sqnr_min_db=60.0,
        created_with={},
    )
    made = make_repository(tmp_path)
    made.publish(package, "1")
    with serving(made.path) as server:
        staged = UpdatingDevice(tmp_path / "device", made.root, server.url).fetch("digits/1")
        assert (staged.directory / "artifacts/small.tflite").read_bytes() == PAD[400_000:]
        assert server.sent < SIZE * 1.15


# Budgets.


def test_a_budget_that_is_too_small_says_what_it_takes(device, server):
    with pytest.raises(
        BudgetError, match=r"release digits/1 needs 20\d{5} bytes .* may cost 500000, of which this one spent"
    ):
        device.fetch("digits/1", update_max_bytes=500_000)
    assert server.sent < 10_000
    with pytest.raises(BudgetError, match=r"may spend 500000 a day"):
        device.fetch("digits/1", day_max_bytes=500_000)


def test_the_callers_budget_holds_beside_the_devices(device, server):
    with device.client(update_max_bytes=10_000_000) as client, pytest.raises(BudgetError, match="may cost 100000"):
        client.fetch(client.check("digits/1"), update_max_bytes=100_000)


def test_no_silent_fallback_to_the_full_package(device, server):
    """The budget allows the delta; the base is damaged; the full package is not taken."""
    device.update("digits/1")
    flip(device.store.directory("a") / MODEL, 1_000_200)
    before = device.files()
    with pytest.raises(
        BudgetError, match=r"needs 9\d{4} bytes .* before that: .*model.tflite: delta from .* is damaged on this device"
    ):
        device.fetch("digits/2", update_max_bytes=60_000)
    assert device.files() == before
    assert server.sent < SIZE * 1.02


def test_a_delta_that_fails_is_told_and_the_next_is_taken(device, server):
    device.update("digits/1")
    flip(device.store.directory("a") / MODEL, 1_000_200)
    staged = device.fetch("digits/2")
    assert "delta from" in staged.notes[0]
    assert "is damaged on this device" in staged.notes[0]
    assert staged_model(staged).endswith(edited(PAD))
    assert staged.wire_bytes < SIZE / 2, "the pieces that are intact still count"


def test_the_day_ends_what_it_allows(device, server):
    device.update("digits/1", day_max_bytes=2_100_000)
    with pytest.raises(BudgetError, match=r"next day begins in 24\.0 h"):
        device.fetch("digits/3", day_max_bytes=2_100_000)


# Attacks and damage.


def test_a_tampered_piece_is_refused_and_the_rest_is_kept(device, server, repository):
    device.update("digits/1")
    before = device.files()
    shutil.rmtree(device.root / "pieces")
    release = repository.release("digits/3")
    pack, offset, length = repository.piece_file(release, MODEL)
    flip(pack, offset + length // 2)
    (device.root / "slots" / "a" / MODEL).unlink()
    before.pop("slots/a/" + MODEL)
    with pytest.raises(
        TrustError, match=r"packs/.*\.pack, \d+ bytes at \d+: .*; damaged on the server or on the way, or an attack"
    ):
        device.fetch("digits/3")
    assert device.files() == before
    sent = server.sent
    flip(pack, offset + length // 2)
    staged = device.fetch("digits/3")
    assert staged_model(staged).endswith(edited(PAD, seed=10))
    assert server.sent - sent <= SIZE * 1.02


def test_a_tampered_delta_is_told_and_the_pieces_are_taken(device, server, repository):
    device.update("digits/1")
    pack, offset, length = repository.piece_file(repository.release("digits/2"), MODEL, recipe=1)
    flip(pack, offset + length // 2)
    staged = device.fetch("digits/2")
    assert "the base is intact, so its pieces are damaged" in staged.notes[0]
    assert staged_model(staged).endswith(edited(PAD))


def test_a_tampered_index_is_refused(device, repository):
    index = repository.release("digits/1").payloads[1].recipes[0].index
    flip(repository.path / "packs" / index.pack[:2] / f"{index.pack}.pack", index.offset + 20)
    with pytest.raises(TrustError, match="an index that is not the one that is signed"):
        device.fetch("digits/1")


def test_an_index_of_a_delta_that_this_ferryman_cannot_read_is_told(device, monkeypatch):
    device.update("digits/1")
    for codec in ("copy", "edits", "patch"):
        monkeypatch.delitem(CODECS, codec)
    staged = device.fetch("digits/2")
    assert "is not known here" in staged.notes[0]
    assert staged_model(staged).endswith(edited(PAD))


def test_a_missing_pack_is_final(device, server, repository):
    for pack in repository.packs():
        if pack.stat().st_size > 100_000:
            pack.unlink()
    with pytest.raises(RepositoryError, match=r"\.pack answers 404"):
        device.fetch("digits/1")
    assert len({path for path, _ in server.asked if path.startswith("packs/")}) == sent_packs(server)


@pytest.mark.parametrize("where", ["download", "package", "folder", "file"])
def test_no_link_is_followed(device, where, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "model.tflite").write_bytes(b"precious")
    with device.client() as client:
        release = client.check("digits/1")
    places = {
        "download": device.root / "download",
        "package": device.root / "download" / release.package_sha256,
        "folder": device.root / "download" / release.package_sha256 / "artifacts",
        "file": device.root / "download" / release.package_sha256 / MODEL,
    }
    place = places[where]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(victim if where != "file" else victim / "model.tflite")
    if where == "file":
        assert staged_model(device.fetch("digits/1")).endswith(PAD)
        assert not place.is_symlink()
    else:
        with pytest.raises((PackageError, DeviceError), match=r"is no folder, or a link; remove it|is a symbolic link"):
            device.fetch("digits/1")
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == {"model.tflite": b"precious"}


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "a\0b"])
def test_no_path_leaves_the_folder(tmp_path, path):
    from ferryman.devices.agent.update.stage import Download

    with pytest.raises(PackageError, match="not a plain relative path"), Download(tmp_path, "0" * 64).opened(path):
        pass


def test_what_shares_its_bytes_with_a_slot_is_never_written(device):
    device.update("digits/1")
    with device.client() as client:
        release = client.check("digits/3")
    place = device.root / "download" / release.package_sha256 / MODEL
    place.parent.mkdir(parents=True)
    os.link(device.store.directory("a") / MODEL, place)
    before = device.files()
    assert staged_model(device.fetch("digits/3")).endswith(edited(PAD, seed=10))
    assert device.files() == before


# Resuming.


def test_a_link_that_drops_costs_no_byte_twice(device, server):
    whole = device.fetch("digits/1").wire_bytes
    sent = server.sent
    device.root = device.root.parent / "second"
    device.__post_init__()
    server.bad = Bad(drop_every=30_000)
    staged = device.fetch("digits/1")
    assert server.sent - sent == sent, "a byte came twice"
    assert whole < staged.wire_bytes < whole * 1.05


def test_what_is_verified_is_not_fetched_again(device, server):
    server.bad = Bad(drop_every=900_000)

    def outage(_step, done, _total):
        if done:
            server.bad.statuses = [503] * 99

    with device.client() as client, pytest.raises(LinkError, match="answers 503"):
        client.fetch(client.check("digits/1"), progress=outage)
    cut = server.sent
    assert 900_000 < cut < SIZE
    server.bad = Bad()
    assert staged_model(device.fetch("digits/1")).endswith(PAD)
    assert server.sent < SIZE + 256 * 1024 + 20_000, "more than a piece came twice"


def test_staged_pieces_that_rot_are_fetched_again_alone(device, server):
    staged = device.fetch("digits/1")
    flip(staged.directory / MODEL, 700_000)
    sent = server.sent
    assert staged_model(device.fetch("digits/1")).endswith(PAD)
    assert server.sent - sent < 300_000


def test_a_cancel_keeps_what_there_is(device, server):
    server.bad = Bad(bytes_s=2_000_000)
    cancelled = threading.Event()

    def progress(_step, done, _total):
        if done > 700_000:
            cancelled.set()

    with device.client(cancelled=cancelled) as client, pytest.raises(Cancelled):
        client.fetch(client.check("digits/1"), progress=progress)
    server.bad = Bad()
    device.fetch("digits/1")
    assert server.sent < SIZE * 1.5


def test_progress_counts_up_to_the_plan(device):
    told = []
    with device.client() as client:
        client.fetch(client.check("digits/1"), progress=lambda *given: told.append(given))
    assert [step for step, _, _ in told] == ["download"] * len(told)
    done = [count for _, count, _ in told]
    assert done == sorted(done)
    assert done[0] < done[-1] == told[-1][2]


def test_stale_downloads_are_swept(device):
    first = device.fetch("digits/1")
    (device.root / "download" / "stray").write_bytes(b"x")
    second = device.fetch("digits/2")
    assert not first.directory.exists()
    assert [path.name for path in (device.root / "download").iterdir()] == [second.directory.name]


# The disk, and others.


def test_a_full_disk_is_said_before_anything_is_fetched(device, server, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as place:
        device.root = place / "device"
        device.__post_init__()
        with pytest.raises(DeviceError, match=r"needs \d+ bytes free for the download, found \d+"):
            device.fetch("digits/1")
        assert server.sent < 20_000


def test_a_disk_that_fills_up_meanwhile(device, server, tmp_path):
    with small_disk(tmp_path / "disk", "6m") as place:
        device.root = place / "device"
        device.__post_init__()
        filler = place / "filler"

        def progress(_step, done, _total):
            if done and not filler.exists():
                with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(4096))

        # The room was taken before the first byte came, so all is well but for records.
        with device.client() as client, contextlib.suppress(DeviceError):
            client.fetch(client.check("digits/1"), progress=progress)
        assert filler.exists()
        filler.unlink()
        assert staged_model(device.fetch("digits/1")).endswith(PAD)


def test_one_at_a_time(device):
    with device.client(), pytest.raises(DeviceError, match=rf"another update \(process {os.getpid()}\)"):
        device.client()
    with device.client():
        pass


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot write"):
        UpdateClient(tmp_path / "file", UpdateConfig(url="http://x"))


# The command.


def run(device, *arguments):
    options = ["--repository", device.url, "--root", str(device.root), "--proxy", ""]
    return CliRunner().invoke(update, [*arguments, *options], help_option_names=["-h", "--help"])


def test_a_dry_run_tells_what_it_would_cost(device, server):
    device.update("digits/1")
    before = device.files()
    done = run(device, "digits/2", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "digits/2 takes" in done.output
    assert f"{MODEL}: from " in done.output
    assert device.files() == before
    shown = json.loads(run(device, "digits", "--dry-run", "--json").stdout)
    assert shown["release"] == "digits/3"
    assert shown["install"] is None
    assert shown["planned_bytes"] < shown["full_bytes"]


def test_an_update_by_command(device, tmp_path):
    device.update("digits/1")
    failed = run(device, "digits/9", "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["party"] == "repository"
    assert not Path(tmp_path / "device" / "download").exists() or not list((device.root / "download").iterdir())


def test_a_package_that_is_bad_here_is_refused_before_it_is_fetched(device, monkeypatch):
    device.update("digits/1")
    device.update("digits/2")
    device.store.rollback()
    spent = []
    for name in ("plan", "fetch"):
        monkeypatch.setattr(UpdateClient, name, lambda *_, **__: spent.append(1))
    for dry in ((), ("--dry-run",)):
        failed = run(device, "digits/2", "--json", *dry)
        assert failed.exit_code == 1
        assert "digits/2" in (said := json.loads(failed.stdout)["message"])
        assert "was rolled back by hand on this device" in said
        assert "--force" in said
    assert not spent
    monkeypatch.undo()
    assert run(device, "digits/2", "--dry-run", "--force").exit_code == 0


def test_what_was_pushed_takes_the_name_of_its_release(device, tmp_path):
    install(write_tiny_package(tmp_path / "same.ferry", padding=PAD), device.root, golden=lambda *_: ())
    done = run(device, "digits/1", "--dry-run")
    assert (done.exit_code, device.store.read_state().active.release) == (0, None), done.output
    assert "digits/1 serves already" in run(device, "digits/1").output
    assert device.store.read_state().active.release == "digits/1"


def test_an_update_by_command_that_proves_it(tmp_path):
    """The golden vectors run on the interpreter that is here."""
    made = make_repository(tmp_path)
    made.publish_tiny(1.0, "1")
    with serving(made.path) as server:
        device = UpdatingDevice(tmp_path / "device", made.root, server.url)
        done = run(device, "digits", "--json")
        shown = json.loads(done.stdout)
        assert shown["install"]["changed"], done.output
        assert shown["install"]["golden"]
        again = json.loads(run(device, "digits", "--json").stdout)
        assert again["serves_already"]
        assert not list((device.root / "download").iterdir())


@pytest.mark.parametrize("where", ["update", "pieces"])
def test_no_link_is_written_through(device, where, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    folder = device.root / where
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.symlink_to(victim)
    with pytest.raises(DeviceError, match="is a symbolic link"):
        device.fetch("digits/1")
    assert list(victim.iterdir()) == []
