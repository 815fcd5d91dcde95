"""Things that are done to a slot store, each as a program of its own, with what must be there before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ferryman.runtime.contracts.slot import HealthRules, Trial
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of, stage, write_tiny_package, write_varied_package
from tests.support.strace import STEP

PROGRAM = f"""
import os, sys
from pathlib import Path
from ferryman.runtime import install, slots, staged, trial
from ferryman.runtime.contracts.slot import HealthRules, Trial

def say(step, _done, _total):
    os.write(2, b"{STEP}" + step.encode() + b"\\n")

what, root, package, sha256 = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
store = slots.SlotStore(root)
options = dict(golden=lambda _directory, _manifest: (), progress=say)
if what == "install":
    install.install(package, root, **options)
elif what == "install_staged":
    staged.install_staged(
        store, root / "download" / "new", package.with_suffix(".json").read_bytes(), package_sha256=sha256,
        release="add/3", trial=Trial(desired_version=2, rollout="r", rules=HealthRules(), began_at_ns=1), **options)
elif what == "rollback":
    store.rollback()
elif what == "name_active":
    staged.name_active(store, store.read_state().active.package_sha256, "add/2")
elif what == "fail":
    trial.fail(store, "it is slow")
else:
    getattr(trial, what)(store)
"""
TRIAL = Trial(desired_version=1, rollout="r", rules=HealthRules(starts_max=3), began_at_ns=1)


def accept(_directory: object, _manifest: object) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Packages:
    """Of version 1, 2 and 3: the last is the new one."""

    paths: tuple[Path, ...]

    @property
    def sha256(self) -> tuple[str, ...]:
        return tuple(map(sha256_of, self.paths))

    def arguments(self, what: str, root: Path) -> tuple[str, ...]:
        return what, str(root), str(self.paths[2]), self.sha256[2]


def write_packages(folder: Path) -> Packages:
    paths = [write_tiny_package(folder / f"{n}.ferry", added=float(n)) for n in (1, 2)]
    new = write_varied_package(folder / "3.ferry", added=4.0, paddings={"large": 300})
    manifest, _ = stage(new, folder / "staged")
    new.with_suffix(".json").write_bytes(manifest)
    return Packages((*paths, new))


def empty(root: Path, _packages: Packages) -> None:
    root.mkdir()


def confirmed(root: Path, packages: Packages) -> None:
    """Version 2 serves, 1 is the way back."""
    for package in packages.paths[:2]:
        install(package, root, golden=accept)


def on_trial(root: Path, packages: Packages) -> None:
    """Version 2 is on trial, 1 is the way back."""
    confirmed(root, packages)
    store = SlotStore(root)
    store.write_state(replace(store.read_state(), trial=TRIAL))


def looping(root: Path, packages: Packages) -> None:
    """One more start is a crash loop."""
    on_trial(root, packages)
    store = SlotStore(root)
    store.write_state(replace(store.read_state(), trial=replace(TRIAL, starts=3)))


def with_download(before: Callable[[Path, Packages], None]) -> Callable[[Path, Packages], None]:
    def prepared(root: Path, packages: Packages) -> None:
        before(root, packages)
        stage(packages.paths[2], root / "download" / "new")

    return prepared


@dataclass(frozen=True)
class Scenario:
    """What is done, to what, and what may serve when it is cut short: numbers of packages, 0 for nothing."""

    name: str
    what: str
    before: Callable[[Path, Packages], None]
    may_serve: tuple[int, ...]
    ends_with: int
    state: str = ""
    """Of the table of states, where the program tells no steps."""


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("first install", "install", empty, (0, 3), 3),
        Scenario("update", "install", confirmed, (2, 3), 3),
        Scenario("push over a trial", "install", on_trial, (2, 1, 3), 3),
        Scenario("first download", "install_staged", with_download(empty), (0, 3), 3),
        Scenario("download", "install_staged", with_download(confirmed), (2, 3), 3),
        Scenario("download over a trial", "install_staged", with_download(on_trial), (2, 1, 3), 3),
        Scenario("start", "count_start", on_trial, (2,), 2, "starting"),
        Scenario("crash loop", "count_start", looping, (2, 1), 1, "rolling back"),
        Scenario("confirm", "confirm", on_trial, (2,), 2, "confirming"),
        Scenario("fail", "fail", on_trial, (2, 1), 1, "rolling back"),
        Scenario("name", "name_active", confirmed, (2,), 2, "idle"),
        Scenario("name of a trial", "name_active", on_trial, (2,), 2, "trial"),
        Scenario("rollback", "rollback", on_trial, (2, 1), 1, "rolling back"),
    )
}


def served(store: SlotStore, packages: Packages) -> int:
    """Number of the package that serves, every byte of it read back; so is the way back."""
    state = store.read_state()
    if state.previous:
        store.verify(state.previous)
    if state.active is None:
        return 0
    return 1 + packages.sha256.index(store.verify(state.active).slot.package_sha256)
