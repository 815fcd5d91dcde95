"""Whatever cuts an install short, the store is old and whole, or new and whole.

SIGKILL at every system call that a program makes under the store's root; an error instead of every such call; power
cuts after each, on a model of a disk that loses what was not synced. What is found is held against the table of states.
The golden check is the identity here (its process changes nothing on disk); test_push_ssh.py runs the real one.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.slots import SlotStore
from tests.support.cuts import Disk
from tests.support.installs import PROGRAM, SCENARIOS, Packages, served, write_packages
from tests.support.scene import Scene, cut_each, kill_at, recorded
from tests.support.strace import Call, traced, why_not

_WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=f"strace --inject does not work here: {_WHY_NOT}")
LONG = ("first install", "update", "push over a trial", "first download", "download", "download over a trial")
SHORT = tuple(name for name in SCENARIOS if name not in LONG)
ERRORS = ("ENOSPC", "EIO", "EROFS")


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Packages:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def scene(request, packages, tmp_path) -> Scene:
    return Scene(request.param, packages, tmp_path)


def kill_at_each(scene: Scene, points: Iterable[Call]) -> list[int]:
    """What serves after a kill at each call, in their order."""

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(partial(kill_at, scene), points))


@pytest.mark.parametrize("scene", ["update"], indirect=True)
def test_all_is_on_the_disk_before_the_state_names_it(scene):
    root, found = scene.place / "counted", scene.points
    activation = max(i for i, call in enumerate(found) if call.name.startswith("rename"))
    before, after = found[:activation], found[activation + 1 :]

    def last(names: tuple[str, ...], path: Path) -> int:
        """Position of the last of these calls on exactly this path; -1: there was none."""
        exact = re.compile(rf'["<]{re.escape(str(path))}[">]')
        return max((i for i, c in enumerate(before) if c.name.startswith(names) and exact.search(c.line)), default=-1)

    slot = root / "slots" / "a"
    files = [path for path in slot.rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in [*files, root / "state.json.new"]:
        assert last(("fsync",), file) > last(("open", "write", "pwrite"), file) >= 0, file
    for folder in [slot, *(path for path in slot.rglob("*") if path.is_dir())]:
        newest_entry = max(last(("open", "mkdir"), entry) for entry in folder.iterdir())
        assert last(("fsync",), folder) > newest_entry >= 0, folder
    assert last(("fsync",), slot.parent) > last(("mkdir",), slot) >= 0
    assert [call.name for call in after] == ["fsync"]
    assert f"<{root}>" in after[0].line


@pytest.mark.parametrize("scene", ["download"], indirect=True)
def test_kill_at_the_first_and_last_call_of_every_step(scene):
    steps = list(dict.fromkeys(call.step for call in scene.points))
    assert steps == ["", "clear", "write", "activate"]  # reading and proving change nothing
    ends = [[call for call in scene.points if call.step == step] for step in steps]
    found = kill_at_each(scene, dict.fromkeys(one for calls_of in ends for one in (calls_of[0], calls_of[-1])))
    assert found[-1] == 3
    assert set(found[:-1]) == {2}


@pytest.mark.parametrize("scene", ["start", "crash loop", "confirm"], indirect=True)
def test_kill_around_the_one_rename_of_a_trials_step(scene):
    (switch,) = (i for i, call in enumerate(scene.points) if call.name.startswith("rename"))
    found = kill_at_each(scene, scene.points[switch - 1 :])
    assert found == [scene.scenario.may_serve[0]] * 2 + [scene.scenario.ends_with]


@pytest.mark.slow
@pytest.mark.parametrize("scene", list(SCENARIOS), indirect=True)
def test_kill_at_every_call(scene):
    assert len(scene.points) > (20 if scene.scenario.name in LONG else 5)
    found = kill_at_each(scene, scene.points)
    # What serves changes by single renames, in one order.
    assert list(dict.fromkeys(found)) == [*scene.scenario.may_serve]
    assert found == sorted(found, key=scene.scenario.may_serve.index)
    assert found.count(scene.scenario.ends_with) == 1 or scene.scenario.may_serve == (scene.scenario.ends_with,)


def refuse_each(scene: Scene, points: Iterable[Call]) -> None:
    """An error instead of each call: it is told, and what served or shall serve does."""

    def refuse(number: int, point: Call) -> None:
        root = scene.copy(f"{point.name}-{point.nth}")
        inject = f"--inject={point.name}:error={ERRORS[number % len(ERRORS)]}:when={point.nth}"
        ended = traced(PROGRAM, scene.arguments(root), root.parent / "log", inject)
        if ended.code:
            said = ended.stderr.strip().splitlines()[-1]
            assert said.startswith("ferryman.runtime.contracts.errors."), (point, ended.stderr)
            scene.check(root, scene.state(point))
        else:  # it did not matter
            assert served(SlotStore(root), scene.packages) == scene.scenario.ends_with
        scene.finish(root)
        shutil.rmtree(root.parent)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(refuse, *zip(*enumerate(points), strict=True)))


def refusable(scene: Scene) -> list[Call]:
    return [call for call in scene.points if call.name != "flock"]


@pytest.mark.parametrize("scene", ["download"], indirect=True)
def test_a_disk_that_fails_now_and_then_is_told_and_loses_nothing(scene):
    refuse_each(scene, refusable(scene)[3::12])


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["push over a trial", "download", "fail"], indirect=True)
def test_an_error_instead_of_every_call(scene):
    refuse_each(scene, refusable(scene))


@pytest.mark.parametrize("scene", ["start", "crash loop", "confirm", "download"], indirect=True)
def test_power_cuts_that_lose_what_was_not_synced(scene):
    assert set(cut_each(scene, PROGRAM, draws=2)) == {*scene.scenario.may_serve}


@pytest.mark.slow
@pytest.mark.parametrize("scene", list(SCENARIOS), indirect=True)
def test_many_power_cuts_that_lose_what_was_not_synced(scene):
    found = cut_each(scene, PROGRAM, draws=12)
    assert len(found) >= 16 * (30 if scene.scenario.name in LONG else 7)
    assert set(found) == {*scene.scenario.may_serve}


@pytest.mark.parametrize("scene", ["download"], indirect=True)
@pytest.mark.parametrize("forgets", ["slots.sync_directory", "os.fsync"])
def test_the_model_notices_an_install_that_forgets_to_sync(scene, forgets):
    sloppy = PROGRAM.replace("store = slots", f"{forgets} = lambda *_: None\nstore = slots", 1)
    with pytest.raises((FerrymanError, AssertionError)) as caught:
        cut_each(scene, sloppy, draws=2)
    assert "calls" in caught.value.__notes__[0]


@pytest.mark.parametrize("scene", ["download over a trial"], indirect=True)
def test_the_model_of_a_disk_ends_where_the_real_one_does(scene):
    did, root = recorded(scene, PROGRAM)
    disk = Disk(root)
    for one in did:
        disk.do(one)
    disk.cut(scene.place / "model", "most", random.Random(0))  # noqa: S311  # nothing is secret
    assert contents(scene.place / "model") == contents(scene.place / "real")


def contents(root: Path) -> dict[Path, bytes | None]:
    """Of every file, below a root; folders are None."""
    return {path.relative_to(root): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
