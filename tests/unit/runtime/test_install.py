from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    FerrymanError,
    PackageError,
    ParityError,
    WireError,
)
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.slot import HealthRules, Slot, SlotState, Trial
from ferryman.runtime.golden import GoldenResult
from ferryman.runtime.install import InstallResult, Prepared, install, prepare, repick
from ferryman.runtime.install_cli import confirm_command, install_command, prepare_command, rollback_command
from ferryman.runtime.picking import pick_variant
from ferryman.runtime.slots import SlotStore
from tests.support.disk import disk_free, small_disk
from tests.support.packages import sha256_of, write_tiny_package


def accept(_directory, _manifest):
    return ()


@pytest.fixture
def store(tmp_path):
    """add-2 serves from b, add-1 is the way back in a."""
    store = SlotStore(tmp_path / "root")
    for added in (1.0, 2.0):
        install(write_tiny_package(tmp_path / f"{added:g}.ferry", added=added), store.root, golden=accept)
    return store


@pytest.fixture
def new(tmp_path):
    return write_tiny_package(tmp_path / "new.ferry", added=3.0)


def serving(store):
    """Name of what serves, every hash read back."""
    return store.active().manifest.name


def test_install_writes_the_inactive_slot_and_keeps_the_old_one(store, new):
    steps = []
    result = install(new, store.root, golden=accept, progress=lambda *step: steps.append(step))
    assert (result.changed, result.active.name, result.active.package_name) == (True, "a", "add-3")
    assert result.previous is not None
    assert store.verify(result.previous).manifest.name == "add-2"
    assert serving(store) == "add-3"
    assert min(result.write_ns, result.read_back_ns, result.golden_ns, result.activate_ns) > 0
    assert list(dict.fromkeys(step for step, _, _ in steps)) == [
        "verify",
        "clear",
        "write",
        "read back",
        "golden vectors",
        "activate",
    ]
    assert ("write", result.written_bytes, result.written_bytes) in steps


def test_installing_what_serves_changes_nothing(store, tmp_path):
    before = store.read_state()
    result = install(tmp_path / "2.ferry", store.root, golden=accept)
    assert not result.changed
    assert store.read_state() == before


def test_a_damaged_active_slot_is_installed_again(store, tmp_path):
    (store.directory("b") / "artifacts" / "model.tflite").write_bytes(b"rot")
    result = install(tmp_path / "2.ferry", store.root, golden=accept)
    assert (result.changed, result.active.name) == (True, "a")
    assert serving(store) == "add-2"


@pytest.mark.parametrize("error", [ParityError("12 dB"), KeyboardInterrupt()])
def test_failing_golden_vectors_leave_the_old_slot_serving(store, new, error):
    def refuse(directory, manifest):
        assert (directory / manifest.variants[0].payload).is_file()
        raise error

    with pytest.raises(type(error)):
        install(new, store.root, golden=refuse)
    assert serving(store) == "add-2"
    assert store.read_state().previous is None  # its files are gone, so it is no way back
    assert not store.directory("a").exists()


def test_an_install_that_destroyed_the_way_back_says_so(store, new):
    def refuse(_directory, _manifest):
        raise ParityError("12 dB")

    with pytest.raises(ParityError, match=r"^12 dB; add-2 serves still, but add-1, the way back, made room .* is gone"):
        install(new, store.root, golden=refuse)
    with pytest.raises(ParityError, match=r"^12 dB$"):  # there was none any more
        install(new, store.root, golden=refuse)


def test_a_rollback_on_a_full_disk_says_so_and_changes_nothing(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = SlotStore(disk / "root")
        for added in (1.0, 2.0):
            install(write_tiny_package(tmp_path / f"{added:g}.ferry", added=added), store.root, golden=accept)
        before = store.read_state()
        (disk / "other").write_bytes(bytes(disk_free(disk)))
        done = CliRunner().invoke(rollback_command, ["--root", str(store.root)])
        assert done.exit_code == 1
        assert re.search(r"Error: device: .* is full: .*; make room on the device", done.output)
        with pytest.raises(DeviceError, match=r"bytes free, found \d+; make room"):
            prepare(store.root, "0" * 64, 1000)
        assert store.read_state() == before
        (disk / "other").unlink()
        assert CliRunner().invoke(rollback_command, ["--root", str(store.root)]).exit_code == 0


def test_a_bad_package_costs_nothing(store, new):
    before = store.read_state()
    new.write_bytes(new.read_bytes()[:-1])
    with pytest.raises(PackageError):
        install(new, store.root, golden=accept)
    with pytest.raises(CallerError, match="no-such"):
        install(new.with_name("no-such.ferry"), store.root, golden=accept)
    assert store.read_state() == before
    assert before.previous is not None
    store.verify(before.previous)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"isa": ("avx9000",)}, "fp32-tflite needs the instruction sets avx9000"),
        ({"interpreters": {"tflite-runtime": "99.1"}}, r"fp32-tflite needs one of tflite-runtime >= 99\.1"),
        ({"operators": 99}, r"fp32-tflite needs ferryman's operators of version 99, found version 4 \(install a newer"),
    ],
)
def test_a_package_this_device_cannot_run_costs_nothing(store, tmp_path, needs, message):
    before = store.read_state()
    package = write_tiny_package(tmp_path / "alien.ferry", added=4.0, **needs)
    with pytest.raises(DeviceError, match=message):
        install(package, store.root, golden=accept)
    assert store.read_state() == before
    assert before.previous is not None
    store.verify(before.previous)


def test_a_disk_without_room_is_told_before_anything_is_destroyed(store, new, monkeypatch):
    before = store.read_state()
    real = os.statvfs(store.root)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*real[:4], 0, *real[5:])))
    with pytest.raises(DeviceError, match="bytes free, found"):
        install(new, store.root, golden=accept)
    with pytest.raises(DeviceError, match="make room"):
        prepare(store.root, "0" * 64, 10_000)
    assert store.read_state() == before


def test_a_write_the_kernel_refuses_leaves_the_old_slot_serving(store, tmp_path):
    large = write_tiny_package(tmp_path / "large.ferry", added=4.0, padding=bytes(300_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(DeviceError, match=rf"is full: \[Errno {errno.EFBIG}\]"):
            install(large, store.root, golden=accept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert serving(store) == "add-2"
    assert not store.directory("a").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_full_for_real(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        store = SlotStore(disk / "root")
        install(write_tiny_package(tmp_path / "1.ferry"), store.root, golden=accept)
        large = write_tiny_package(tmp_path / "large.ferry", added=2.0, padding=bytes(700_000))

        def fill(step, _done, _total):
            if step == "write":  # someone else takes the room after the check
                (disk / "other").write_bytes(bytes(500_000))

        with pytest.raises(DeviceError, match=r"full: .*No space left on device"):
            install(large, store.root, golden=accept, progress=fill)
        assert serving(store) == "add-1"
        assert not store.directory("b").exists()
        (disk / "other").unlink()
        install(large, store.root, golden=accept)
        assert serving(store) == "add-2"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("damage", [b"", bytes(3_000_000)], ids=["cut", "overwritten"])
def test_a_package_damaged_while_it_is_installed_is_at_fault_not_the_disk(store, tmp_path, damage):
    large = write_tiny_package(tmp_path / "large.ferry", added=4.0, padding=bytes(2_000_000))

    def meanwhile(step, done, _total):
        if step == "write" and not done:
            return
        if step == "write" and large.stat().st_size > 0:
            large.write_bytes(damage)

    with pytest.raises(PackageError, match=r"large\.ferry: .* while it was open; copy it again"):
        install(str(large), str(store.root), golden=accept, progress=meanwhile)
    assert serving(store) == "add-2"
    assert not store.directory("a").exists()


def test_two_installs_at_once_are_one_install_and_one_error(store, new, tmp_path):
    other = write_tiny_package(tmp_path / "other.ferry", added=5.0)

    def meanwhile(_directory, _manifest):
        with pytest.raises(DeviceError, match=f"another install .process {os.getpid()}. is at work"):
            install(other, store.root, golden=accept)
        with pytest.raises(DeviceError, match="another install"):
            prepare(store.root, sha256_of(other), 1)
        return ()

    install(new, store.root, golden=meanwhile)
    assert serving(store) == "add-3"


def test_an_uploaded_package_is_removed_whatever_comes_of_it(store, new, tmp_path):
    for good in (False, True):
        upload = store.incoming / "upload.part"
        upload.write_bytes(new.read_bytes() if good else b"cut off")
        try:
            install(upload, store.root, golden=accept)
        except FerrymanError:
            assert not good
        assert list(store.incoming.iterdir()) == []
    assert new.exists()


def test_leftovers_are_swept_and_live_uploads_are_not(store, new):
    dead, live = store.incoming / "dead.part", store.incoming / "live.part"
    for path in (dead, live):
        path.touch()
    long_ago = time.time() - 1000
    os.utime(dead, (long_ago, long_ago))
    ahead = store.incoming / "ahead.part"
    ahead.touch()
    os.utime(ahead, (time.time() + 1000, time.time() + 1000))  # the clock was set back since
    (store.directory("a") / "half-written").touch()
    install(new, store.root, golden=accept)
    assert list(store.incoming.iterdir()) == [live]
    assert not (store.directory("a") / "half-written").exists()


def test_prepare_says_where_to_upload_and_whether_to(store, tmp_path):
    wanted = prepare(store.root, "f" * 64, 1000)
    assert wanted.active is None
    assert wanted.upload_to.startswith(str(store.incoming / f"{'f' * 64}."))
    assert prepare(store.root, "f" * 64, 1000).upload_to != wanted.upload_to  # two pushes at once do not meet
    assert prepare(store.root, sha256_of(tmp_path / "2.ferry"), 1000).active == store.read_state().active


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "short", "F" * 64, "f" * 63 + "/"])
def test_prepare_takes_a_hash_and_nothing_else(store, name):
    with pytest.raises(CallerError, match="SHA-256"):
        prepare(store.root, name, 1000)


def test_a_rollback_to_nothing_makes_nothing(tmp_path):
    done = CliRunner().invoke(rollback_command, ["--root", str(tmp_path / "root")])
    assert "name a DEVICE" in done.output
    assert not (tmp_path / "root").exists()
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(rollback_command, ["--root", str(tmp_path / "empty")]).exit_code == 1
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in the name of others")
def test_what_root_rolls_back_or_confirms_stays_the_owners(tmp_path):
    with tempfile.TemporaryDirectory() as folder:  # one that others may enter
        Path(folder).chmod(0o755)
        store = SlotStore(Path(folder) / "root")
        for added in (1.0, 2.0):
            install(write_tiny_package(tmp_path / f"{added:g}.ferry", added=added), store.root, golden=accept)
        trial = Trial(desired_version=1, rollout="r", rules=HealthRules(), began_at_ns=1)
        store.write_state(replace(store.read_state(), trial=trial))
        for path in (store.root, *store.root.rglob("*")):
            os.chown(path, 65534, 65534)
        for command in (confirm_command, rollback_command):
            before = store.read_state()
            assert CliRunner().invoke(command, ["--root", str(store.root)]).exit_code == 0
            assert store.read_state() != before
            assert {path.stat().st_uid for path in (store.root, *store.root.rglob("*"))} == {65534}
            assert os.geteuid() == 0


def test_commands_answer_in_json(tmp_path):
    package = write_tiny_package(tmp_path / "p.ferry")
    root = ["--root", str(tmp_path / "root"), "--json"]

    def call(command, *words):
        done = CliRunner().invoke(command, [*words, *root])
        return done.exit_code, done.stdout

    code, answer = call(prepare_command, sha256_of(package), "1000")
    assert code == 0
    assert decode(answer.encode(), Prepared).active is None
    code, answer = call(install_command, str(package))  # with the real golden check
    result = decode(answer.encode(), InstallResult)
    assert code == 0
    assert result.golden[0].sqnr_db > 100
    code, answer = call(rollback_command)
    assert code == 1
    assert decode(answer.encode(), WireError).party == "device"
    code, answer = call(install_command, str(tmp_path / "no-such"))
    assert code == 1
    assert decode(answer.encode(), WireError).party == "caller"


def found(variant, interpreter, sqnr_db, latency_ns, memory_bytes=None):
    return GoldenResult(
        variant=variant,
        interpreter=interpreter,
        version="1",
        sqnr_db=sqnr_db,
        latency_ns=latency_ns,
        memory_bytes=memory_bytes,
    )


@pytest.mark.parametrize(
    ("pick", "variant", "interpreter"),
    [
        ("first", None, None),
        ("fastest", "4bit", "litert"),
        ("smallest", "2bit", "litert"),
        ("closest", "fp32", "executorch"),
    ],
)
def test_what_answers_is_picked_by_what_the_golden_vectors_show(pick, variant, interpreter):
    results = (
        *(found("fp32", "executorch", 120.0, 900), found("fp32", "litert", 119.0, 800)),
        *(found("4bit", "executorch", 30.0, 400), found("4bit", "litert", 30.0, 300)),
        *(found("2bit", "litert", 12.0, 350), found("2bit", "old", 12.0, None)),
    )
    sizes = {"fp32": 32, "4bit": 4, "2bit": 2}
    payloads = [SimpleNamespace(path=name, size_bytes=size) for name, size in sizes.items()]
    manifest = SimpleNamespace(payloads=payloads, variant=lambda name: SimpleNamespace(payload=name, share=None))
    slot = Slot(name="a", package_sha256="", package_name="", manifest_sha256="", installed_at_ns=0)
    picked = pick_variant(slot, manifest, results, pick)
    assert (picked.pick, picked.variant, picked.interpreter) == (pick, variant, interpreter)


NESTED = (
    *(found("25", "executorch", 130.0, 2_000_000, 30 * 10**6), found("25", "litert", 125.0, 1_000_000, 25 * 10**6)),
    *(found("50", "executorch", 130.0, 4_000_000, 40 * 10**6), found("50", "litert", 125.0, 3_000_000, 35 * 10**6)),
    *(found("100", "executorch", 130.0, 8_000_000, 60 * 10**6), found("100", "litert", 125.0, None, None)),
)


@pytest.mark.parametrize(
    ("pick", "variant", "interpreter"),
    [
        ("largest", "100", "executorch"),
        ("largest-8ms", "100", "executorch"),
        ("largest-7.999ms", "50", "executorch"),
        ("largest-3ms", "50", "litert"),
        ("largest-59mb", "50", "executorch"),
        ("largest-4ms-39mb", "50", "litert"),
        ("fastest-29mb", "25", "litert"),
    ],
)
def test_the_largest_within_a_budget_is_picked(pick, variant, interpreter):
    assert picked_of_nested(pick) == (variant, interpreter)


def test_where_nothing_is_within_the_budget_the_old_slot_stays(store, new):
    with pytest.raises(
        DeviceError, match=r"no variant of net is within largest-0.5ms on this device: 25 on executorch"
    ):
        picked_of_nested("largest-0.5ms")
    first = install(new, store.root)
    with pytest.raises(DeviceError, match=r"is within fastest-0\.001ms"):
        repick(
            store.root,
            "fastest-0.001ms",
            golden=lambda _, manifest: (found(manifest.variants[0].name, "litert", 130.0, 2_000),),
        )
    assert store.read_state().active == first.active


@pytest.mark.parametrize(
    "pick", ["", "last", "first-20ms", "largest-ms", "largest-60mb-20ms", "fastest-1e9ms", "largest "]
)
def test_another_pick_is_refused(store, new, pick):
    with pytest.raises(CallerError, match="is not known; there are: first, fastest"):
        install(new, store.root, pick=pick)


def picked_of_nested(pick):
    shares = {"25": 0.3, "50": 0.55, "100": 1.0}
    payloads = [SimpleNamespace(path="all", size_bytes=1)]
    manifest = SimpleNamespace(
        name="net", payloads=payloads, variant=lambda name: SimpleNamespace(payload="all", share=shares[name])
    )
    slot = Slot(name="a", package_sha256="", package_name="", manifest_sha256="", installed_at_ns=0)
    found = pick_variant(slot, manifest, NESTED, pick)
    return found.variant, found.interpreter


def test_another_is_picked_in_place_and_the_way_back_stays(store, new):
    def golden(_directory, manifest):
        return (found(manifest.variants[0].name, "ai-edge-litert", 200.0, 5),)

    first = install(new, store.root, golden=golden)
    again = install(new, store.root, pick="fastest", golden=golden)
    assert again.changed
    assert again.written_bytes == 0
    assert (again.active.name, again.previous) == (first.active.name, first.previous)
    assert (again.active.variant, again.active.interpreter) == (
        store.active().manifest.variants[0].name,
        "ai-edge-litert",
    )
    assert not install(new, store.root, pick="fastest", golden=golden).changed
    gone = msgspec.structs.replace(again.active, interpreter="tflite-runtime")  # not installed here
    store.write_state(SlotState(active=gone, previous=again.previous))
    assert install(new, store.root, pick="fastest", golden=golden).active == again.active
    assert prepare(store.root, sha256_of(new), 1).active == again.active
    assert repick(store.root, "first", golden=golden).active.variant is None
    store.rollback()
    assert serving(store) == "add-2"


def test_the_closest_of_those_as_fast_is_the_fastest():
    payloads = [SimpleNamespace(path="all", size_bytes=1)]
    manifest = SimpleNamespace(payloads=payloads, variant=lambda _: SimpleNamespace(payload="all", share=None))
    slot = Slot(name="a", package_sha256="", package_name="", manifest_sha256="", installed_at_ns=0)
    results = [
        found("4bit", "litert", 30.0, 300),
        found("int8", "litert", 40.0, 320),
        found("fp32", "litert", 99.0, 340),
    ]
    assert pick_variant(slot, manifest, results, "fastest").variant == "int8"
