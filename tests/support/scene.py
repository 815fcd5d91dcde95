"""A scenario of `tests.support.installs` on a store of its own, and the ways in which it is cut short there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ferryman.runtime.slots import SlotStore
from ferryman.runtime.states import BY_NAME, STATES, at_rest
from tests.support.cuts import Did, cuts, record
from tests.support.installs import PROGRAM, SCENARIOS, Packages, Scenario, served
from tests.support.strace import Call, calls, killed_at, traced

OF_STEP = {state.step: state.name for state in STATES if state.step}


class Scene:
    """A scenario's store before it, and what was seen of one that nobody cut short."""

    def __init__(self, name: str, packages: Packages, place: Path) -> None:
        self.scenario: Scenario = SCENARIOS[name]
        self.packages, self.place = packages, place
        self.template = place / "template"
        self.scenario.before(self.template, packages)
        self.points = self._count()

    def _count(self) -> list[Call]:
        root = shutil.copytree(self.template, self.place / "counted")
        ended = traced(PROGRAM, self.arguments(root), self.place / "log", "-s", "64")
        assert ended.code == 0, ended.stderr
        assert served(SlotStore(root), self.packages) == self.scenario.ends_with
        return calls(self.place / "log", root)

    def arguments(self, root: Path) -> tuple[str, ...]:
        return self.packages.arguments(self.scenario.what, root)

    def copy(self, name: str) -> Path:
        return shutil.copytree(self.template, self.place / name / "root")

    def state(self, point: Call) -> str:
        """Of the table."""
        return self.scenario.state or OF_STEP.get(point.step, "staged")

    def check(self, root: Path, state: str) -> int:
        """See that what is left is what the table says; returns which package serves."""
        store = SlotStore(root)
        found = served(store, self.packages)
        assert found in self.scenario.may_serve, (state, found)
        expected = set(BY_NAME[state].cut)
        if self.scenario.what == "install":  # nothing is staged, and it is confirmed at once
            expected = {"idle"}
        if "over a trial" in self.scenario.name and state in ("staged", "clearing"):
            expected.add("trial")  # that of the package before
        assert at_rest(store, root / "download") in expected, state
        return found

    def finish(self, root: Path) -> None:
        """Do it again, and see that it comes to its end and leaves nothing behind."""
        ended = traced(PROGRAM, self.arguments(root), root.parent / "log of the end")
        again = self.scenario.what == "rollback" and SlotStore(root).read_state().trial is None
        assert (ended.code == 0) != (again and "no previous slot" in ended.stderr), ended.stderr
        assert served(SlotStore(root), self.packages) == self.scenario.ends_with
        assert {path.name for path in root.iterdir()} - {"download"} == {"incoming", "lock", "slots", "state.json"}


def kill_at(scene: Scene, point: Call) -> int:
    """Kill it at a call, and have it done again to the end: what serves after the kill."""
    root = scene.copy(f"{point.name}-{point.nth}")
    killed_at(PROGRAM, scene.arguments(root), root, root.parent / "log", point)
    found = scene.check(root, scene.state(point))
    scene.finish(root)
    shutil.rmtree(root.parent)
    return found


def recorded(scene: Scene, program: str) -> tuple[list[Did], Path]:
    """What a program does to the scenario's store, and where that is, as it was before."""
    root = shutil.copytree(scene.template, scene.place / "recorded")
    pristine = shutil.copytree(root, scene.place / "pristine")
    did = record(program, scene.arguments(root), root, scene.place / "record")
    root.rename(scene.place / "real")
    pristine.rename(root)
    return did, root


def each_cut(scene: Scene, program: str, draws: int) -> Iterator[tuple[str, str, Path]]:
    """Cut the power after each call, on the model of a disk: what was done, in which state, and what is left."""
    did, root = recorded(scene, program)
    work = scene.place / "cuts"
    work.mkdir()
    for made, how, place in cuts(did, root, work, draws):
        last = did[max(made - 1, 0)]
        yield (
            f"after {made} of {len(did)} calls ({last}), keeping {how}",
            scene.scenario.state or OF_STEP.get(last.step, "staged"),
            place,
        )
        shutil.rmtree(place)


def cut_each(scene: Scene, program: str, draws: int) -> list[int]:
    """What serves after each power cut; an error has a note that says which it was."""
    found = []
    for note, state, place in each_cut(scene, program, draws):
        try:
            found.append(scene.check(place, state))
        except Exception as error:
            error.add_note(note)
            raise
    return found
