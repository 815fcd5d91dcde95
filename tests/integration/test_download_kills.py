"""Whatever cuts a download short, the old package serves, and the next fetch goes on from what is verified.

SIGKILL at every system call that a fetch makes under the store's root, an error instead of some, and power cuts after
each on a model of a disk: row `downloading` of the table of states, and the device's records of trust and of cost.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ferryman.devices.agent.update.local import Indices
from ferryman.devices.agent.update.stage import Download
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.pieces.index import Index
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.states import BY_NAME
from tests.support.cuts import cuts, record
from tests.support.repository import TestRepository, make_repository
from tests.support.strace import Call, calls, traced, why_not
from tests.support.updates import UpdatingDevice

_WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=f"strace --inject does not work here: {_WHY_NOT}")
PROGRAM = """
import sys, threading
from pathlib import Path
from ferryman.devices.agent.update.client import UpdateClient
from ferryman.devices.agent.update.config import UpdateConfig

class Inline(threading.Thread):
    def start(self):
        self.run() if self.name == "fetch" else super().start()

threading.Thread = Inline  # strace counts calls by thread: requests are made by one
with UpdateClient(Path(sys.argv[1]), UpdateConfig(url=sys.argv[2], proxy="")) as client:
    client.fetch(client.check("digits/2"))
"""
ERRORS = ("ENOSPC", "EIO", "EROFS")
NOISE = random.Random(8).randbytes(400_000)  # noqa: S311  # no secret
METADATA_BYTES = 20_000
"""More than all metadata, indices and heads of requests take."""


class Scene:
    """A device that serves release 1, and a URL that has release 2: half of it pieces of 1, half new."""

    def __init__(self, place: Path, made: TestRepository, url: str) -> None:
        self.place, self.made, self.url = place, made, url
        made.publish_tiny(1.0, "1", padding=NOISE[:200_000])
        self.device = UpdatingDevice(place / "template", made.root, url)
        self.device.update("digits/1")
        self.old = self.device.files()
        self.release: Release = made.publish_tiny(2.0, "2", padding=NOISE[100_000:300_000] + NOISE[:1000])
        root = shutil.copytree(self.device.root, place / "counted")
        ended = traced(PROGRAM, self.arguments(root), place / "log")
        assert ended.code == 0, ended.stderr
        self.points = [call for call in calls(place / "log", root) if " = -1 " not in call.line]
        assert self.whole(root)

    def arguments(self, root: Path) -> tuple[str, ...]:
        return str(root), self.url

    def copy(self, name: str) -> Path:
        return shutil.copytree(self.device.root, self.place / name / "root")

    def whole(self, root: Path) -> bool:
        download = Download(root, self.release.package_sha256)
        return all(download.complete(payload) for payload in self.release.payloads)

    def verified_bytes(self, root: Path) -> int:
        """Staged, in pieces that are whole."""
        download, found = Download(root, self.release.package_sha256), 0
        for payload in self.release.payloads:
            for recipe in payload.recipes:
                index = Indices(root).get(payload, recipe, 1 << 62 if recipe.base else 0)
                if isinstance(index, Index):
                    lacking = set(download.lacking(payload, index))
                    here = (piece.size for number, piece in enumerate(index.pieces) if number not in lacking)
                    found = max(found, sum(here))
        return found

    def check(self, root: Path, cut: tuple[str, ...]) -> None:
        """The old package serves, to the byte; what is there is a state of the table; a fetch comes to its end."""
        device = UpdatingDevice(root, self.made.root, self.url)
        assert device.files() == self.old
        state = SlotStore(root).read_state()
        assert state.trial is None
        assert state.active is not None
        SlotStore(root).verify(state.active)
        assert "staged" in cut if self.whole(root) else "downloading" in cut
        here = self.verified_bytes(root)
        staged = device.fetch("digits/2")
        assert self.whole(root)
        assert device.files() == self.old
        assert staged.wire_bytes < self.release.package_bytes - here + METADATA_BYTES


@pytest.fixture
def scene(tmp_path):
    made = make_repository(tmp_path)
    with made.serve() as url:
        yield Scene(tmp_path, made, url)


CUT = (*BY_NAME["downloading"].cut, "staged")
"""The last calls are those after which it is staged."""


def each(scene: Scene, points: Iterable[Call], kill: bool) -> list[bool]:
    """Cut it short at each call, or have the call fail: whether it was, for bytes come in blocks of any size."""

    def one(number: int, point: Call) -> bool:
        root = scene.copy(f"{number}-{point.name}")
        how = "signal=KILL" if kill else f"error={ERRORS[number % len(ERRORS)]}"
        inject = f"--inject={point.name}:{how}:when={point.nth}"
        ended = traced(PROGRAM, scene.arguments(root), root.parent / "log", inject)
        try:
            if kill:
                assert ended.code in (0, -signal.SIGKILL), ended.stderr
            elif ended.code:
                said = ended.stderr.strip().splitlines()[-1]
                assert said.startswith("ferryman.runtime.contracts.errors."), ended.stderr
            scene.check(root, CUT)
        except BaseException as error:
            error.add_note(str(point))
            raise
        shutil.rmtree(root.parent)
        return ended.code != 0

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(one, *zip(*enumerate(points), strict=True)))


def test_a_kill_in_the_middle_of_a_download(scene):
    (first, *_) = [point for point in scene.points if point.name == "pwrite64" and "/download/" in point.line]
    assert each(scene, [first], kill=True) == [True]


@pytest.mark.slow
def test_kill_at_every_call(scene):
    assert len(scene.points) > 50
    found = each(scene, scene.points, kill=True)
    assert found.count(True) > 0.9 * len(found)


@pytest.mark.slow
def test_an_error_instead_of_every_third_call(scene):
    found = each(scene, [one for one in scene.points if one.name != "flock"][::3], kill=False)
    assert any(found)


@pytest.mark.slow
def test_power_cuts_that_lose_what_was_not_synced(scene, monkeypatch):
    root = scene.copy("recorded")
    did = record(PROGRAM, scene.arguments(root), root, scene.place / "record")
    shutil.rmtree(root)
    shutil.copytree(scene.device.root, root)
    work = scene.place / "cuts"
    work.mkdir()
    for sync in ("fsync", "fdatasync"):  # what goes on afterwards is cut no more, and syncs take most of the time
        monkeypatch.setattr(os, sync, lambda _descriptor: None)
    for made, how, place in cuts(did, root, work, draws=1):
        try:
            scene.check(place, CUT)
        except BaseException as error:
            error.add_note(f"after {made} of {len(did)} calls ({did[max(made - 1, 0)]}), keeping {how}")
            raise
        shutil.rmtree(place)
