"""Push to a phone and back, every cut of the link on the way, in mksh and toybox."""

from __future__ import annotations

import contextlib

import pytest

from ferryman.devices.fleet.phone.push import rollback_phone
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    LinkError,
    PackageError,
    ParityError,
    RuntimeCrash,
)
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of
from tests.support.phone import STAND_IN, WHY_NOT, DirectLink, stand_in_bundle, write_phone_package
from tests.unit.devices.fleet.phone.scene import Scene

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_push_push_back(scene):
    pushed = scene.push(scene.first)
    assert pushed.active.name == "a"
    assert pushed.active.variants == ("fp32-executorch",)
    (golden,) = pushed.install.golden
    assert (golden.interpreter, golden.version, golden.sqnr_db) == ("executorch", "1.5.1", 200.0)
    assert (golden.latency_ns, golden.memory_bytes) == (1_000_000, 7_000_000)
    assert scene.serving == sha256_of(scene.first)
    assert not (scene.system.home / "slots/a/artifacts/model.tflite").exists(), "no phone runs it"
    assert scene.push(scene.second).active.name == "b"
    assert scene.serving == sha256_of(scene.second)
    back = rollback_phone(scene.device, connect=lambda _: DirectLink(scene.system))
    assert back.name == "a"
    assert scene.serving == sha256_of(scene.first)
    with pytest.raises(DeviceError, match="no previous slot"):
        rollback_phone(scene.device, connect=lambda _: DirectLink(scene.system))
    assert scene.left() == ["incoming", "runner", "slots", "state.json"]
    assert not list((scene.system.home / "incoming").iterdir())


def test_what_is_there_is_not_sent_again(scene):
    scene.push(scene.first)
    link = DirectLink(scene.system)
    said = []
    link.on_ask = lambda _, what: said.append(what)
    assert scene.push(scene.first, link).install is None
    assert not [what for what in said if what.startswith("put")]


def test_another_pick_is_proven_anew(scene):
    scene.push(scene.first)
    pushed = scene.push(scene.first, pick="fastest")
    assert pushed.active.answers == "fp32-executorch on executorch, the fastest"
    with pytest.raises(DeviceError, match="no variant of add-1 is within"):
        scene.push(scene.first, pick="fastest-0.1ms")


def test_a_slot_that_was_damaged_is_pushed_over(scene):
    scene.push(scene.first)
    (scene.system.home / "slots/a/artifacts/model.pte").write_bytes(b"something else")
    scene.push(scene.second)
    with pytest.raises(DeviceError, match="not what was installed"):
        rollback_phone(scene.device, connect=lambda _: DirectLink(scene.system))
    assert scene.push(scene.first).install.changed


def test_a_runner_of_another_version_takes_the_place_of_the_one_before(scene, tmp_path):
    scene.push(scene.first)
    (before,) = (scene.system.home / "runner").iterdir()
    scene.push(scene.second, bundle_file=stand_in_bundle(tmp_path / "new.tar.gz", version="2"))
    (after,) = (scene.system.home / "runner").iterdir()
    assert before != after


def test_a_runner_that_was_damaged_is_sent_again(scene):
    scene.push(scene.first)
    (folder,) = (scene.system.home / "runner").iterdir()
    (folder / "ferryman_runner").write_text("#!/bin/false\n")
    scene.push(scene.second)
    assert scene.serving == sha256_of(scene.second)


def refused(scene, package, error, match, **options):
    """A push that fails, after which the first package serves and the next push succeeds."""
    scene.push(scene.first)
    with pytest.raises(error, match=match):
        scene.push(package, **options)
    assert scene.serving == sha256_of(scene.first)
    assert scene.left() == ["incoming", "runner", "slots", "state.json"]
    scene.push(scene.second)
    assert scene.serving == sha256_of(scene.second)


@pytest.mark.parametrize(
    ("package", "error", "match"),
    [
        ({"promised": 5}, ParityError, "computes something else"),
        ({"artifact": b"\0\0\0\0BAD!"}, PackageError, "phone: ferryman_runner run: method load failed"),
        ({"artifact": b"\0\0\0\0DIE!"}, RuntimeCrash, "died of SIGSEGV"),
        ({"isa": ("asimddp", "sve2")}, DeviceError, "needs the instruction sets sve2"),
        ({"executorch": "2.0"}, DeviceError, "fp32-executorch needs executorch >= 2.0, found executorch 1.5.1"),
        ({"executorch": None}, DeviceError, "fp32-tflite needs TFLite, and a phone runs ExecuTorch alone"),
        ({"operators": 5}, DeviceError, "operators of version 5, found version 4"),
    ],
)
def test_what_the_phone_cannot_run_leaves_the_old_slot(scene, tmp_path, package, error, match):
    refused(scene, write_phone_package(tmp_path / "bad.ferry", added=3, **package), error, match)


def test_a_full_phone_says_so(scene, tmp_path):
    scene.system.says("df", "echo Filesystem; echo /dev/fuse 100 90 8 99% /data")
    with pytest.raises(DeviceError, match=r"needs .* bytes free, found 8,192; make room"):
        scene.push(scene.first)


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda s: s.says("mkdir", "echo 'mkdir: x: Permission denied' >&2; exit 1"), "set `root` in the devices file"),
        (lambda s: s.says("mkdir", "echo 'mkdir: x: No space left on device' >&2; exit 1"), "its storage is full"),
        (lambda s: s.properties.update({"ro.product.cpu.abilist": "armeabi-v7a"}), "runs armeabi-v7a on"),
    ],
)
def test_what_the_phone_refuses_says_what_to_do(scene, break_it, match):
    break_it(scene.system)
    with pytest.raises(DeviceError, match=match):
        scene.push(scene.first)


def test_a_phone_that_runs_nothing_there_says_what_to_do(scene, tmp_path):
    denied = stand_in_bundle(tmp_path / "denied.tar.gz", script="#!/no/such/shell\n")
    with pytest.raises(DeviceError):
        scene.push(scene.first, bundle_file=denied)


def test_a_bundle_that_is_none(scene, tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(CallerError, match="no runner that"):
        scene.push(scene.first, bundle_file=tmp_path / "x.tar.gz")
    with pytest.raises(CallerError, match="make runner-"):
        scene.push(scene.first, bundle_file=tmp_path / "y.tar.gz")


def count_steps(scene):
    link = DirectLink(scene.system)
    scene.push(scene.second, link)
    return link.asked


def cut_everywhere(scene, cuts, *, done_first):
    """Cut a push at each of these, and do it again: of the two slots, what the state names is whole all the time."""
    packages = (scene.first, scene.second)
    store = SlotStore(scene.system.home)
    for turn, cut_at in enumerate(cuts):
        old, new = packages[(turn + 1) % 2], packages[turn % 2]
        with contextlib.suppress(LinkError):
            scene.push(new, DirectLink(scene.system, cut_at, done_first=done_first))
        state = store.read_state()
        assert state.active.package_sha256 in (sha256_of(old), sha256_of(new)), cut_at
        store.verify(state.active)
        if state.previous:
            store.verify(state.previous)
        if cut_at % 3 == 0:
            scene.system.boot()
        scene.push(new)
        assert scene.serving == sha256_of(new), cut_at


@pytest.mark.parametrize("done_first", [False, True])
def test_a_link_that_is_cut_at_some_steps(scene, done_first):
    scene.push(scene.first)
    steps = count_steps(scene)
    assert steps > 20
    cut_everywhere(scene, (steps // 3, steps - 4), done_first=done_first)


@pytest.mark.slow
@pytest.mark.parametrize("done_first", [False, True])
def test_a_link_that_is_cut_at_every_step(scene, done_first):
    scene.push(scene.first)
    cut_everywhere(scene, range(1, count_steps(scene) + 1), done_first=done_first)


@pytest.mark.parametrize("said", ["9" * 5000, "-5", "²", "99999999999999"])
def test_a_date_of_nonsense_is_none(scene, said):
    scene.system.says("date", f"echo {said}")
    scene.push(scene.first)
    assert SlotStore(scene.system.home).active().slot.installed_at_ns == 0


LIES = {
    "a version without end": ('"executorch": "1.5.1"', '"executorch": "9" * 100_000'),
    "cores without end": ('"cores": 4', '"cores": 10 ** 4000'),
    "memory below nothing": ('"rss_bytes": 9_000_000', '"rss_bytes": -9'),
    "memory that nothing has": ('"uss_bytes": 7_000_000', '"uss_bytes": 2**62'),
    "runs in no time": ("1_000_000 + index % 7", "0"),
    "a first run in no time": ('"first_run_ns": 4_000_000', '"first_run_ns": 0'),
    "runs of centuries": ("1_000_000 + index % 7", "2**63 - 1"),
    "a run in no time": ('"run_ns": 2000', '"run_ns": 0'),
    "a shape that is to be guessed": ('"shape": [1, 4]', '"shape": [-1, 4]'),
    "a shape without end": ('"shape": [1, 4]', '"shape": [10**30, 4]'),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_runner_that_tells_what_cannot_be_is_not_believed(scene, tmp_path, lie):
    scene.push(scene.first)
    honest, lying = LIES[lie]
    assert honest in STAND_IN
    bundle = stand_in_bundle(tmp_path / "lying.tar.gz", "2", STAND_IN.replace(honest, lying))
    with pytest.raises(DeviceError, match="did not answer as a runner of this version"):
        scene.push(scene.second, bundle_file=bundle)
    assert scene.serving == sha256_of(scene.first)
