"""A repository behind the built-in server and behind nginx, as documented; a publish killed at every system call."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tuf.ngclient import Updater

from ferryman.devices.fleet.repository.upkeep import check
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.release import Release
from tests.support.cuts import cuts, record
from tests.support.disk import small_disk
from tests.support.nginx import nginx
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.repository import TestRepository, make_repository, utc_now
from tests.support.strace import calls, killed_at, traced, why_not
from tests.support.tuf_client import TufClient


@pytest.fixture
def made(tmp_path):
    return make_repository(tmp_path)


@pytest.fixture(params=["built-in", "nginx"])
def url(request, made, tmp_path):
    server = made.serve() if request.param == "built-in" else nginx(tmp_path / "nginx", made.path)
    with server as found:
        yield found


def _get(url, path, method="GET", **headers):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def test_a_client_finds_a_release_and_parts_of_a_pack(made, url, tmp_path):
    release = made.publish_tiny(1.0, padding=os.urandom(200_000))
    (tmp_path / "device").mkdir()
    updater = Updater(
        str(tmp_path / "device"), f"{url}metadata/", str(tmp_path / "device"), f"{url}targets/", bootstrap=made.root
    )
    target = updater.get_targetinfo("digits/1.json")
    assert decode(Path(updater.download_target(target)).read_bytes(), Release) == release
    pack, offset, length = made.piece_file(release)
    path = f"/{pack.relative_to(made.path)}"
    status, body, headers = _get(url, path, Range=f"bytes={offset}-{offset + length - 1}")
    assert (status, body) == (206, pack.read_bytes()[offset : offset + length])
    assert headers["Content-Range"] == f"bytes {offset}-{offset + length - 1}/{pack.stat().st_size}"
    assert _get(url, path)[:2] == (200, pack.read_bytes())
    status, body, headers = _get(url, path, "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(pack.stat().st_size))
    assert _get(url, path, Range=f"bytes={pack.stat().st_size}-")[0] == 416
    assert _get(url, path, Range="bytes=0-0,2-2")[0] == 200  # several at once would cost a server more than a client
    assert "max-age" in headers["Cache-Control"]
    assert _get(url, "/metadata/timestamp.json")[2]["Cache-Control"] == "no-cache"


def test_nothing_else_is_served(made, url):
    made.publish_tiny(1.0)
    (made.path / "packs" / "link").symlink_to(made.keys)
    for path in (
        "/",
        "/lock",
        "/packs/",
        "/metadata",
        "/packs/../lock",
        "/packs/%2e%2e/lock",
        "/metadata/../../keys",
        "/packs/link/x",
        f"/packs/link/{next(made.keys.iterdir()).name}",
        "/metadata/2.root.json",
    ):
        status, body, _ = _get(url, path)
        assert status in {400, 403, 404}, path
        assert b"PRIVATE" not in body
    assert _get(url, "/metadata/timestamp.json", "DELETE")[0] in {403, 405, 501}
    assert _get(url, "/metadata/timestamp.json", "PUT")[0] in {403, 405, 501}


def test_a_full_disk_leaves_the_repository_before(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as place:
        made = make_repository(place)
        made.publish_tiny(1.0, "1")
        client = TufClient(tmp_path / "device", made.path, made.root)
        large = write_tiny_package(tmp_path / "large.ferry", added=2.0, padding=os.urandom(3 << 20))
        with pytest.raises(OSError, match="No space left"):
            made.publish(large, "2")
        assert client.release("digits/1")
        assert client.release("digits/2") is None
        assert check(made.path) == []
        assert made.publish_tiny(3.0, "2").version == "2"  # what was half done is gone
        assert client.release("digits/2")


PUBLISH = """
import sys
from datetime import datetime
from pathlib import Path
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.publish import publish
publish(Path(sys.argv[1]), Path(sys.argv[2]), Keyring([Path(sys.argv[3])]), datetime.fromisoformat(sys.argv[4]))
"""
NOW = utc_now().isoformat()
traceable = pytest.mark.skipif(bool(why_not()), reason=f"strace --inject does not work here: {why_not()}")


class Scene:
    """A repository with one release, a device that has seen it, and a package to publish next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = make_repository(folder)
        bulk = os.urandom(50_000)
        self.made.publish_tiny(1.0, "1", padding=bulk)
        self.package = write_tiny_package(folder / "next.ferry", added=2.0, padding=bulk, name="digits")
        self.client = TufClient(folder / "device", self.made.path, self.made.root)
        self.client.updater()

    def at(self, path: Path) -> TestRepository:
        """The same repository in another place."""
        return TestRepository(path, self.made.keys, self.made.offline)

    def arguments(self, path: Path) -> tuple[str, ...]:
        return str(self.package), str(path), str(self.made.keys), NOW

    def seen(self, path: Path, name: str, *, again: bool) -> bool:
        """Whether the second release is there for devices old and new; the first is, whatever was done."""
        ours = self.at(path)
        known = TufClient(self.folder / f"{name}-known", path, self.made.root)
        shutil.copytree(self.client.folder, known.folder, symlinks=True, dirs_exist_ok=True)
        device = TufClient(self.folder / f"{name}-new", path, self.made.root)
        assert device.release("digits/1") is not None
        (found,) = {one.release("digits/2") is not None for one in (device, known)}
        assert check(path) == []
        if again:
            assert ours.publish(self.package).package_sha256 == sha256_of(self.package)
            assert known.release("digits/2") is not None
        for one in (known, device):
            shutil.rmtree(one.folder)
        return found


@traceable
@pytest.mark.slow
def test_power_cuts_that_lose_what_was_not_synced(tmp_path):
    scene = Scene(tmp_path)
    path = scene.made.path
    shutil.copytree(path, tmp_path / "pristine")
    did = record(PUBLISH, scene.arguments(path), path, tmp_path / "log")
    path.rename(tmp_path / "real")
    (tmp_path / "pristine").rename(path)
    (tmp_path / "cuts").mkdir()
    found = {}
    for made, how, place in cuts(did, path, tmp_path / "cuts", draws=1):
        try:
            found[made, how] = scene.seen(place, "cut", again=how == "any" and made % 5 == 0)
        except Exception as error:
            error.add_note(f"after {made} of {len(did)} calls ({did[max(made - 1, 0)]}), keeping {how}")
            raise
        shutil.rmtree(place)
    assert not found[0, "most"]
    assert found[len(did), "least"], "what was published is on the disk"


@traceable
@pytest.mark.slow
def test_a_publish_killed_at_every_call_leaves_what_clients_accept(tmp_path):
    scene = Scene(tmp_path)
    undisturbed = shutil.copytree(scene.made.path, tmp_path / "undisturbed" / "repository")
    assert traced(PUBLISH, scene.arguments(undisturbed), tmp_path / "log").code == 0
    points = calls(tmp_path / "log", undisturbed)
    assert len(points) > 40

    def killed(number: int) -> bool:
        path = shutil.copytree(scene.made.path, tmp_path / str(number) / "repository")
        killed_at(PUBLISH, scene.arguments(path), path, tmp_path / f"log{number}", points[number])
        seen = scene.seen(path, str(number), again=True)
        shutil.rmtree(path)
        return seen

    with ThreadPoolExecutor(2) as pool:
        published = list(pool.map(killed, range(len(points))))
    assert published == sorted(published)  # old up to some call, new from there on
    assert not published[0]
    assert published[-1]
