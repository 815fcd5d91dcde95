"""Installs of what was downloaded: they keep what serves until the end, and the download until it is over."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import numpy as np
import pytest
from msgspec.structs import replace

from ferryman.devices.agent.serving import Serving
from ferryman.profiler.runner import cases_of
from ferryman.runtime.checks import freed_bytes
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError, ParityError
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.messages import InferRequest
from ferryman.runtime.contracts.slot import HealthRules, Trial
from ferryman.runtime.contracts.tensor import to_tensors
from ferryman.runtime.golden import check_golden
from ferryman.runtime.install import install, prepare, repick
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged
from ferryman.runtime.trial import fail
from tests.support.disk import disk_free, small_disk
from tests.support.packages import sha256_of, stage, write_tiny_package, write_varied_package

TRIAL = Trial(desired_version=1, rollout="r", rules=HealthRules(), began_at_ns=1)
X = np.arange(4, dtype=np.float32).reshape(1, 4)


def accept(_directory, _manifest):
    return ()


@pytest.fixture
def store(tmp_path):
    """add-2 serves from b, add-1 is the way back in a."""
    store = SlotStore(tmp_path / "root")
    for added in (1.0, 2.0):
        install(write_tiny_package(tmp_path / f"{added:g}.ferry", added=added), store.root, golden=accept)
    return store


class Staged:
    """A package staged below a store's root."""

    def __init__(self, store, package, variants=None):
        self.store, self.variants = store, variants
        self.directory = store.root / "download" / "payloads"
        self.manifest, self.sha256 = stage(package, self.directory, variants)

    def install(self, **options):
        return install_staged(
            self.store,
            self.directory,
            self.manifest,
            **{"package_sha256": self.sha256, "release": "add/3", "variants": self.variants, "golden": accept}
            | options,
        )

    def files(self):
        return {path: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}


@pytest.fixture
def staged(store, tmp_path):
    return Staged(store, write_varied_package(tmp_path / "3.ferry", added=4.0))


def test_what_was_staged_serves_on_trial_and_the_old_package_is_the_way_back(staged, store):
    before = staged.files()
    result = staged.install(trial=TRIAL)
    state = store.read_state()
    assert (result.changed, result.written_bytes) == (True, len(staged.manifest))
    assert (state.active.package_sha256, state.active.release, state.active.variants) == (staged.sha256, "add/3", None)
    assert (state.previous.package_name, state.trial) == ("add-2", TRIAL)
    assert staged.files() == before
    assert store.active().manifest.name == "varied-4"
    assert not staged.install(trial=TRIAL).changed


def test_the_way_back_lives_until_the_download_is_whole(staged, store):
    (staged.directory / "artifacts/large.tflite").unlink()
    with pytest.raises(DeviceError, match=r"failed: .*large\.tflite"):
        staged.install()
    assert store.active().manifest.name == "add-2"


@pytest.mark.parametrize("damage", ["flip", "link", "pipe", "folder"])
def test_a_staged_payload_is_trusted_only_once_it_was_read_back(staged, store, damage, tmp_path):
    target = staged.directory / "artifacts/large.tflite"
    data = target.read_bytes()
    target.unlink()
    if damage == "flip":
        target.write_bytes(data[:-1] + b"\1")
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        target.symlink_to(tmp_path / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(target)
    else:
        target.mkdir()
    with pytest.raises((PackageError, DeviceError), match=r"large\.tflite"):
        staged.install()
    assert store.active().manifest.name == "add-2"
    assert not store.directory("a").exists()


def test_what_a_failed_install_leaves_staged_is_installed_the_next_time(staged, store):
    before = staged.files()

    def refuse(_directory, _manifest):
        raise ParityError("12 dB")

    for _ in range(2):
        with pytest.raises(ParityError, match="12 dB"):
            staged.install(golden=refuse)
    assert staged.files() == before
    assert all(path.stat().st_nlink == 1 for path in before)
    assert staged.install().changed


def test_where_files_have_one_name_only_they_are_moved(staged, store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    assert staged.install().changed
    assert staged.files() == {}
    assert store.active().manifest.name == "varied-4"


def test_a_download_on_another_file_system_is_the_callers_fault(staged, store, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EXDEV, "elsewhere")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(CallerError, match="below the store's root"):
        staged.install()
    assert store.active().manifest.name == "add-2"


def test_a_payload_that_a_slot_shares_is_not_counted_as_room_that_clearing_makes(staged, store):
    staged.install()
    directory = store.directory("a")
    alone = [directory / "manifest.json"]
    assert freed_bytes(directory) == sum(path.stat().st_blocks * 512 for path in alone)
    (staged.directory / "artifacts/large.tflite").unlink()
    alone.append(directory / "artifacts/large.tflite")
    assert freed_bytes(directory) == sum(path.stat().st_blocks * 512 for path in alone)


def test_a_disk_too_small_for_two_copies_holds_what_is_staged_once(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = SlotStore(disk / "root")
        install(write_tiny_package(tmp_path / "1.ferry"), store.root, golden=accept)
        large = write_varied_package(tmp_path / "large.ferry", added=4.0, paddings={"large": 600_000})
        staged = Staged(store, large)
        assert disk_free(disk) < 600_000
        assert staged.install().active.package_name == "varied-4"


def test_a_full_disk_leaves_the_old_package_serving(staged, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = SlotStore(disk / "root")
        install(write_tiny_package(tmp_path / "1.ferry"), store.root, golden=accept)
        staged = Staged(store, write_varied_package(tmp_path / "n.ferry", added=4.0))
        filler = disk / "other"

        def fill(step, _done, _total):
            if step == "clear":
                with pytest.raises(OSError, match="No space"):
                    filler.write_bytes(bytes(disk_free(disk) + 1))

        with pytest.raises(DeviceError, match=r"is full: .*; make room on the device"):
            staged.install(progress=fill)
        assert store.active().manifest.name == "add-1"
        with pytest.raises(DeviceError, match=r"bytes free, found"):
            staged.install()
        filler.unlink()
        assert staged.install().changed


def test_a_read_only_disk_changes_nothing(tmp_path):
    """One that becomes so in the middle: see tests/integration/test_install_kills.py."""
    with small_disk(tmp_path / "disk") as disk:
        store = SlotStore(disk / "root")
        install(write_tiny_package(tmp_path / "1.ferry"), store.root, golden=accept)
        staged = Staged(store, write_varied_package(tmp_path / "n.ferry", added=4.0))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(DeviceError, match=r"cannot write the slot store .*Read-only file system"):
            staged.install()
        assert store.active().manifest.name == "add-1"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert staged.install().changed


def test_a_disk_that_refuses_to_forget_the_way_back_keeps_it(staged, store, monkeypatch):
    def refuse(_state):
        raise OSError(errno.EIO, "no")

    before = store.read_state()
    monkeypatch.setattr(store, "write_state", refuse)
    with pytest.raises(DeviceError, match="failed"):
        staged.install()
    assert store.read_state() == before
    store.verify(before.previous)


def test_two_installs_at_once_are_one_install_and_one_error(staged, store):
    def meanwhile(_directory, _manifest):
        with pytest.raises(DeviceError, match=f"another install .process {os.getpid()}. is at work"):
            staged.install()
        return ()

    assert staged.install(golden=meanwhile).changed


def test_a_bad_package_is_not_tried_again_unless_it_is_forced(staged, store):
    staged.install(trial=TRIAL)
    fail(store, "it answers slowly")
    assert store.active().manifest.name == "add-2"
    with pytest.raises(
        DeviceError, match=r"served badly \(it answers slowly\) .*; publish another version, or say --force"
    ):
        staged.install()
    assert staged.install(force=True, trial=TRIAL).changed
    assert store.read_state().bad == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "update ferryman here"),
        ({"schema": 0}, "convert the model again"),
        ({"variants": []}, "variants"),
    ],
)
def test_a_manifest_of_another_age_or_of_nothing_costs_nothing(staged, store, change, message):
    before = store.read_state()
    staged.manifest = json.dumps(json.loads(staged.manifest) | change).encode()
    with pytest.raises(PackageError, match=message):
        staged.install()
    assert store.read_state() == before


def test_fields_that_a_later_ferryman_adds_to_a_manifest_do_no_harm(staged, store):
    manifest = json.loads(staged.manifest) | {"later": {"more": 1}}
    manifest["variants"][0]["later"] = 5
    staged.manifest = json.dumps(manifest).encode()
    assert staged.install().changed
    assert store.active().manifest.name == "varied-4"
    assert (store.directory("a") / "manifest.json").read_bytes() == staged.manifest


@pytest.mark.parametrize(("name", "added"), [("large", 4.0), ("small", 1.0)])
def test_a_slot_that_holds_one_variant_proves_serves_picks_and_profiles_it(store, tmp_path, name, added):
    staged = Staged(store, write_varied_package(tmp_path / "3.ferry", added=4.0), (name,))
    paths = {path.relative_to(staged.directory).as_posix() for path in staged.files()}
    assert paths == {f"artifacts/{name}.tflite", "golden/0.msgpack" if name == "large" else "own/small.msgpack"}
    result = staged.install(golden=check_golden, pick="largest")
    assert result.active.variants == (name,)
    assert {one.variant for one in result.active.measured} == {name}
    assert {one.variant for one in repick(store.root, "smallest").golden} == {name}
    serving = Serving(store)
    try:
        reply = serving.infer(InferRequest(inputs=to_tensors([X])), 20.0)
        assert reply.variant == name
        np.testing.assert_array_equal(reply.outputs[0].to_array(), X + np.float32(added))
        other = "small" if name == "large" else "large"
        with pytest.raises(CallerError, match=f"no variant '{other}'; there are: {name}"):
            serving.infer(InferRequest(inputs=to_tensors([X]), variant=other), 20.0)
        active = serving.current()
    finally:
        serving.close()
    cases = cases_of(active.directory, active.manifest, active.slot.package_sha256, ProfileSpec())
    assert {case.variant.name for case in cases} == {name}


def test_a_part_of_a_package_is_not_the_package(store, tmp_path):
    package = write_varied_package(tmp_path / "3.ferry", added=4.0)
    small = Staged(store, package, ("small",))
    small.install()
    assert prepare(store.root, small.sha256, 1000).active is None
    assert not small.install().changed
    both = Staged(store, package, ("small", "large"))
    assert both.install().active.variants is None
    assert not Staged(store, package, ("small",)).install().changed  # more than enough
    store.rollback()
    assert prepare(store.root, small.sha256, 1000).active is None
    assert install(package, store.root, golden=accept).active.variants is None


def test_a_variant_that_the_package_lacks_is_the_callers_fault(staged, store):
    before = store.read_state()
    with pytest.raises(CallerError, match="no variant huge; there are: large, small"):
        staged.install(variants=("huge",))
    assert store.read_state() == before


def test_a_slot_whose_state_names_variants_it_never_had_is_damaged(staged, store):
    staged.install()
    state = store.read_state()
    store.write_state(replace(state, active=replace(state.active, variants=("huge",))))
    with pytest.raises(DeviceError, match=r"slot a \(varied-4\): state.json says of it"):
        store.active()


def test_an_older_slot_shares_its_files_with_what_is_staged(store, tmp_path):
    """A downloader links a payload that a slot has already; clearing that slot takes nothing from it."""
    package = write_tiny_package(tmp_path / "1.ferry", added=1.0)
    staged = Staged(store, package)
    artifact = staged.directory / "artifacts/model.tflite"
    artifact.unlink()
    os.link(store.directory("a") / "artifacts/model.tflite", artifact)
    assert staged.install().active.name == "a"
    assert store.active().slot.package_sha256 == sha256_of(package)
