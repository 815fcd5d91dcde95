"""Installs: whatever cuts one short, the old or the new package is whole; and what a staged one saves over a push."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

from msgspec.structs import replace

from ferryman.runtime.contracts.slot import SlotState
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.staged import install_staged
from ferryman.runtime.trial import count_start
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.support.installs import PROGRAM, TRIAL, accept, write_packages
from tests.support.interpreters import ROOT
from tests.support.packages import stage, write_tiny_package
from tests.support.scene import Scene, each_cut, kill_at
from tests.support.strace import why_not

KILLS = Goal("installs killed at a system call that end in old or new", ">=", 1.0)
CUTS = Goal("installs that lose power and end in old or new", ">=", 1.0)
WRITE = Goal("write of a pushed package over that of a staged one", ">=", 2.0)
_DRAWS = 4
_BYTES = 20_000_000
_ROUNDS = 7


def measure_cuts() -> Iterator[Bar | Figure]:
    """Each kill and each cut is checked against the table of states too; one that misses it counts as bad."""
    if reason := why_not():
        raise CannotRun(f"strace --inject does not work here: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "packages").mkdir()
        packages = write_packages(folder / "packages")
        killed: list[float] = []
        cut: list[float] = []
        for what in ("download", "crash loop"):
            progress(f"kills and power cuts: {what}")
            place = folder / what
            place.mkdir()
            scene = Scene(what, packages, place)
            killed += [_ends_well(partial(kill_at, scene, point)) for point in scene.points]
            cut += [
                _ends_well(partial(scene.check, left, state)) for _, state, left in each_cut(scene, PROGRAM, _DRAWS)
            ]
        yield KILLS.measured([sum(killed) / len(killed)])
        yield figure("  kills", [len(killed)], "kills")
        yield CUTS.measured([sum(cut) / len(cut)])
        yield figure("  power cuts", [len(cut)], "cuts")


def _ends_well(work: Callable[[], object]) -> float:
    try:
        work()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what this looks for
        progress(f"bad: {error}")
        return 0.0
    return 1.0


def measure_write() -> Iterator[Bar | Figure]:
    """One file of 20 MB, pushed and staged in turn, on a disk."""
    progress(f"writing {_BYTES // 1_000_000} MB, pushed and staged")
    place = ROOT / ".cache"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        padding = os.urandom(_BYTES)
        files = [write_tiny_package(folder / f"{n}.ferry", added=float(n), padding=padding) for n in range(4)]
        store = SlotStore(folder / "root")
        folders = [store.root / "download" / str(n) for n in range(4)]
        manifests = [stage(file, place) for file, place in zip(files, folders, strict=True)]
        turn = cycle((0, 1))  # the same one again would be nothing to do

        def pushed() -> float:
            os.sync()
            return install(files[next(turn)], store.root, golden=accept).write_ns / 1e9

        def linked() -> float:
            at = 2 + next(turn)
            manifest, sha256 = manifests[at]
            os.sync()
            done = install_staged(store, folders[at], manifest, package_sha256=sha256, release="add/2", golden=accept)
            return done.write_ns / 1e9

        by_push, by_link = interleave(_ROUNDS, pushed, linked)
        store.write_state(_on_trial(store))
        starts = [seconds_of(lambda: count_start(store)) for _ in range(_ROUNDS)]
    yield WRITE.measured(by_push / by_link)
    yield figure("  write of a pushed package", by_push * 1e3, "ms")
    yield figure("  write of a staged package", by_link * 1e3, "ms")
    yield figure("  writing a start down", [one * 1e3 for one in starts], "ms")


def _on_trial(store: SlotStore) -> SlotState:
    rules = replace(TRIAL.rules, starts_max=10 * _ROUNDS)
    return replace(store.read_state(), trial=replace(TRIAL, rules=rules))


PARTS = (Part((KILLS, CUTS), measure_cuts), Part((WRITE,), measure_write))
