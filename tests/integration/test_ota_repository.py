"""A repository behind the built-in server and behind nginx, as documented; a publish killed at every system call."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tuf.ngclient import Updater

from ferryman.devices.fleet.repository.upkeep import check
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.release import Release
from tests.integration.test_install_kills import _WHY_NOT, CHANGING
from tests.support.nginx import nginx
from tests.support.packages import write_tiny_package
from tests.support.repository import TestRepository, make_repository, utc_now
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
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
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


PUBLISH = """
import sys
from datetime import datetime
from pathlib import Path
from ferryman.devices.fleet.repository.keys import Keyring
from ferryman.devices.fleet.repository.publish import publish
publish(Path(sys.argv[1]), Path(sys.argv[2]), Keyring([Path(sys.argv[3])]), datetime.fromisoformat(sys.argv[4]))
"""
NOW = utc_now().isoformat()
_CALL = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)$")


def _traced(made: TestRepository, package: Path, log: Path, *options: str) -> int:
    argv = ["strace", "-f", "-y", "-s", "0", "-e", f"trace={CHANGING}", *options, "-o", str(log)]
    run = [sys.executable, "-c", PUBLISH, str(package), str(made.path), str(made.keys), NOW]
    done = subprocess.run([*argv, *run], capture_output=True, check=False)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr.decode()
    return done.returncode


def _calls(log: Path, root: Path) -> list[tuple[str, int]]:
    """Name and number of every call under `root` that can change something, in order."""
    counts: dict[tuple[str, str], int] = {}
    found = []
    for line in log.read_text().splitlines():
        if match := _CALL.match(line):
            key = match["pid"], match["name"]
            counts[key] = counts.get(key, 0) + 1
            if str(root) in match["rest"] and not (match["name"].startswith("open") and "O_CREAT" not in line):
                found.append((match["name"], counts[key]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(bool(_WHY_NOT), reason=f"strace --inject does not work here: {_WHY_NOT}")
def test_a_publish_killed_at_every_call_leaves_what_clients_accept(tmp_path):
    made = make_repository(tmp_path)
    bulk = os.urandom(50_000)
    made.publish_tiny(1.0, padding=bulk)
    package = write_tiny_package(tmp_path / "next.ferry", added=2.0, padding=bulk)

    def copied(name: str) -> TestRepository:
        shutil.copytree(made.path, tmp_path / name / "repository")
        return TestRepository(tmp_path / name / "repository", made.keys, made.offline)

    undisturbed = copied("undisturbed")
    client = TufClient(tmp_path / "device", made.path, made.root)
    client.updater()
    assert _traced(undisturbed, package, tmp_path / "log") == 0
    calls = _calls(tmp_path / "log", undisturbed.path)
    assert len(calls) > 40

    def killed_at(number: int) -> bool:
        """Kill a publish at that call; whether it had been published then."""
        name, nth = calls[number]
        ours = copied(str(number))
        option = f"--inject={name}:signal=KILL:when={nth}"
        assert _traced(ours, package, tmp_path / f"log{number}", option) == -signal.SIGKILL
        shutil.copytree(client.folder, tmp_path / str(number) / "device", symlinks=True)
        device = TufClient(tmp_path / str(number) / "new", ours.path, made.root)
        known = TufClient(tmp_path / str(number) / "known", ours.path, made.root)
        known.folder = tmp_path / str(number) / "device"
        seen = {one.release("digits/2") is not None for one in (device, known)}
        assert device.release("digits/1") is not None
        assert check(ours.path) == []
        assert ours.publish(package).package_sha256 == undisturbed.release("digits/2").package_sha256
        assert known.release("digits/2") is not None
        shutil.rmtree(tmp_path / str(number))
        (after,) = seen
        return after

    with ThreadPoolExecutor(2) as pool:
        published = list(pool.map(killed_at, range(len(calls))))
    assert published == sorted(published)  # old up to some call, new from there on
    assert not published[0]
    assert published[-1]
