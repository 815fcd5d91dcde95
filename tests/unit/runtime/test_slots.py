from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import DeviceError, PackageError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.slot import Slot, SlotState
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore, activated, inactive, rolled_back
from tests.support.packages import sha256_of, write_tiny_package


def slot(name, package="p"):
    return Slot(name=name, package_sha256=package, package_name=package, manifest_sha256="", installed_at_ns=1)


def put(root, package):
    return install(package, root, golden=lambda _directory, _manifest: ())


@pytest.fixture
def root(tmp_path):
    """A store where add-2 serves from slot b and add-1 is the way back in a."""
    root = tmp_path / "root"
    for added in (1.0, 2.0):
        put(root, write_tiny_package(tmp_path / f"{added:g}.ferry", added=added))
    return root


@given(st.lists(st.sampled_from(["install", "rollback"]), max_size=20))
def test_any_history_keeps_two_different_slots_and_goes_back_to_what_served(steps):
    state = SlotState()
    for number, step in enumerate(steps):
        if step == "install":
            new = slot(inactive(state), str(number))
            assert state.active is None or new.name != state.active.name
            served, state = state.active, activated(state, new)
            assert (state.active, state.previous) == (new, served)
        elif state.previous is None:
            with pytest.raises(DeviceError, match="no previous slot"):
                rolled_back(state)
        else:
            before, state = state.previous, rolled_back(state)
            assert (state.active, state.previous) == (before, None)
        assert decode(encode(state), SlotState) == state


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a/./b", "a\0b"],
)
def test_paths_that_leave_the_slot_are_refused(tmp_path, path):
    store = SlotStore(tmp_path / "root")
    with store.lock(), pytest.raises(PackageError, match="not a plain relative path"):
        store.write("a", path, b"x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["incoming", "lock", "root", "slots"]


@given(st.text(alphabet="ab./\\\0 ", max_size=12))
def test_no_path_whatsoever_writes_outside_the_slot(tmp_path_factory, path):
    root = tmp_path_factory.mktemp("slots") / "root"
    store = SlotStore(root)
    with store.lock():
        try:
            store.write("a", path, b"x")
        except PackageError:
            return
    files = [p for p in root.rglob("*") if p.is_file() and p.name != "lock"]
    assert len(files) == 1
    assert files[0].resolve().is_relative_to(root.resolve() / "slots" / "a")


def test_symbolic_links_in_a_slot_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    store = SlotStore(tmp_path / "root")
    with store.lock():
        store.write("a", "first", b"x")
        (store.directory("a") / "link").symlink_to(outside)
        with pytest.raises(PackageError, match="symbolic link"):
            store.write("a", "link/file", b"x")
        (store.directory("a") / "dangling").symlink_to(outside / "file")
        with pytest.raises(PackageError, match="collides"):
            store.write("a", "dangling", b"x")
        store.clear("a")
        store.directory("b").symlink_to(outside)
        (outside / "precious").touch()
        store.clear("b")
    assert [p.name for p in outside.iterdir()] == ["precious"]


def test_colliding_payloads_are_refused(tmp_path):
    store = SlotStore(tmp_path / "root")
    with store.lock():
        store.write("a", "x", b"1")
        for path in ("x", "x/y"):
            with pytest.raises(PackageError, match="collides"):
                store.write("a", path, b"2")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "link"])
def test_verify_notices_damage(root, damage):
    store = SlotStore(root)
    artifact = store.directory("b") / "artifacts" / "model.tflite"
    data = artifact.read_bytes()
    if damage == "flip":
        artifact.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "truncate":
        os.truncate(artifact, len(data) - 1)
    elif damage == "remove":
        artifact.unlink()
    elif damage == "manifest":
        manifest = store.directory("b") / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b"60.0", b"10.0"))
    else:
        artifact.rename(root / "elsewhere")
        artifact.symlink_to(root / "elsewhere")
    with pytest.raises(DeviceError, match=r"slot b \(add-2\).*push the package again"):
        store.active()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a slot state"),
        (b"{", "not a slot state"),
        (b'{"active": {"name": "c"}}', "not a slot state"),
        (b'{"schema": 2}', "update ferryman"),
        (encode(SlotState(active=slot("a"), previous=slot("a"))), "names slot a twice"),
    ],
)
def test_a_state_someone_damaged_is_an_error_that_says_what_to_do(tmp_path, content, message):
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(DeviceError, match=message):
        SlotStore(tmp_path).read_state()


def test_reading_a_store_that_is_not_there_writes_nothing(tmp_path):
    store = SlotStore(tmp_path / "root")
    assert store.read_state() == SlotState()
    with pytest.raises(DeviceError, match="no package is active"):
        store.active()
    assert not store.root.exists()


def test_rollback_serves_the_previous_package_once(root):
    store = SlotStore(root)
    state = store.rollback()
    assert state.active is not None
    assert (state.active.package_name, state.previous) == ("add-1", None)
    assert store.active().manifest.name == "add-1"
    with pytest.raises(DeviceError, match="no previous slot"):
        store.rollback()


def test_rollback_to_a_damaged_slot_is_refused(root):
    store = SlotStore(root)
    before = store.read_state()
    (store.directory("a") / "artifacts" / "model.tflite").write_bytes(b"rot")
    with pytest.raises(DeviceError, match=r"slot a \(add-1\)"):
        store.rollback()
    assert store.read_state() == before


def test_a_second_process_is_told_who_holds_the_lock(root):
    other = "import sys; from ferryman.runtime.slots import *; SlotStore(Path(sys.argv[1])).rollback()"
    with SlotStore(root).lock():
        done = subprocess.run([sys.executable, "-c", other, str(root)], capture_output=True, text=True, check=False)
    assert f"another install (process {os.getpid()}) is at work in {root}" in done.stderr
    SlotStore(root).rollback()  # free again


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DeviceError, match="cannot write the slot store"), SlotStore(tmp_path / "root").lock():
        pass


def test_an_agent_keeps_the_files_it_has_mapped(root, tmp_path):
    artifact = SlotStore(root).directory("a") / "artifacts" / "model.tflite"
    before = artifact.read_bytes()
    with artifact.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        put(root, write_tiny_package(tmp_path / "3.ferry", added=3.0))
        assert artifact.read_bytes() != before
        assert mapped[:] == before


def test_the_slot_names_the_package_it_came_from(root, tmp_path):
    state = SlotStore(root).read_state()
    assert state.active is not None
    assert state.active.package_sha256 == sha256_of(tmp_path / "2.ferry")
    manifest = (SlotStore(root).directory("b") / "manifest.json").read_bytes()
    assert state.active.manifest_sha256 == hashlib.sha256(manifest).hexdigest()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_where_a_slot_belongs_is_cleared_by_the_next_install(root, tmp_path, kind):
    directory = SlotStore(root).directory("a")
    directory.rename(tmp_path / "away")
    if kind == "file":
        directory.write_text("no folder")
    else:
        directory.symlink_to(tmp_path / "away")
    put(root, write_tiny_package(tmp_path / "3.ferry", added=3.0))
    state = SlotStore(root).read_state()
    assert (state.active.name, state.active.package_name) == ("a", "add-3")
    assert (tmp_path / "away" / "manifest.json").exists()
