"""A fetch on the wire: what cuts and kills cost, what a plan promises, memory, and speed beside a plain GET."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import urllib3

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.devices.agent.update.http import Http
from ferryman.devices.agent.update.local import Indices
from ferryman.devices.agent.update.stage import Download
from ferryman.devices.fleet.repository import chunks
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.support.bad_server import Bad, serving
from tests.support.interpreters import ROOT
from tests.support.nginx import nginx
from tests.support.packages import write_tiny_package
from tests.support.repository import TestRepository, make_repository
from tests.support.updates import UpdatingDevice

TWICE = Goal("bytes sent twice over a link that drops every 50 kB", "<=", 0, "B")
OVER_PLAN = Goal("wire bytes / planned, 4 MB, every metadata included", "<=", 1.005)
LOST = Goal("bytes sent and not kept, a kill -9", "<=", 512 << 10, "B")
MEMORY = Goal("peak RSS of a fetch, 128 MB package - 8 MB package", "<=", 8, "MB")
STREAM = Goal("GET with budget, cancel and retries / urllib3 GET", ">=", 0.5)
STAGED = Goal("fetch, staged and verified / urllib3 GET to a file, hashed", ">=", 0.3)
_SIZE = 4_000_000
_LARGE = 64_000_000
_KILLS = 8
_ROUNDS = 7
_MODEL = "artifacts/model.tflite"


def _publish(folder: Path, size: int) -> TestRepository:
    """Noise cannot be compressed; nobody need try for minutes."""
    folder.mkdir(exist_ok=True)
    made = make_repository(folder)
    package = write_tiny_package(folder / "p.ferry", padding=np.random.default_rng(size).bytes(size))
    with mock.patch.object(chunks, "compress", lambda data: data):
        made.publish(package, "1")
    return made


def _device(folder: Path, made: TestRepository, url: str) -> UpdatingDevice:
    shutil.rmtree(folder, ignore_errors=True)
    return UpdatingDevice(folder, made.root, url)


def _process(device: UpdatingDevice) -> subprocess.Popen[bytes]:
    config = msgspec.json.encode(UpdateConfig(url=device.url, proxy=""))
    argv = [sys.executable, "-m", "tests.support.fetch_process", str(device.root), "digits/1", config]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **path}, cwd=ROOT)


def _staged_bytes(device: UpdatingDevice, made: TestRepository) -> int:
    release = made.release("digits/1")
    (payload,) = (one for one in release.payloads if one.path == _MODEL)
    index = Indices(device.root).get(payload, payload.recipes[0], 0)
    if index is None:
        return 0
    lacking = set(Download(device.root, release.package_sha256).lacking(payload, index))
    return sum(piece.size for number, piece in enumerate(index.pieces) if number not in lacking)


def cuts() -> Iterator[Bar | Figure]:
    """Cut the link, and kill the process; the server counts."""
    progress("cuts and kills")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = _publish(folder / "made", _SIZE)
        with serving(made.path) as server:
            device = _device(folder / "a", made, server.url)
            staged = device.fetch("digits/1")
            once = server.sent
            yield OVER_PLAN.measured([staged.wire_bytes / staged.planned_bytes])
            server.bad = Bad(drop_every=50_000)
            device = _device(folder / "b", made, server.url)
            again = device.fetch("digits/1")
            yield TWICE.measured([server.sent - 2 * once])
            yield figure("  wire bytes of those cuts / planned", [again.wire_bytes / again.planned_bytes])
            server.bad = Bad(bytes_s=2_000_000)
            device = _device(folder / "c", made, server.url)
            yield LOST.measured(list(_kills(device, made, server)))


def _kills(device: UpdatingDevice, made: TestRepository, server) -> Iterator[int]:
    chance = random.Random(0)  # noqa: S311
    for _ in range(_KILLS):
        before, kept = server.sent, _staged_bytes(device, made)
        if kept > _SIZE - 500_000:
            device = _device(device.root, made, device.url)
            kept = 0
        process = _process(device)
        while server.sent - before < 150_000:  # its start took as long as it took
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
        yield server.sent - before - (_staged_bytes(device, made) - kept)


def memory() -> Iterator[Bar | Figure]:
    """The peak of a process that fetches, by the kernel's account."""
    progress("memory of a fetch")
    peaks = {}
    for size in (8_000_000, 128_000_000):
        with tempfile.TemporaryDirectory() as name:
            made = _publish(Path(name) / "made", size)
            with serving(made.path) as server:
                out, _ = _process(_device(Path(name) / "device", made, server.url)).communicate()
        peaks[size] = json.loads(out)["peak_kb"] / 1000
        yield figure(f"  peak RSS, {size / 1e6:.0f} MB package", [peaks[size]], "MB")
    yield MEMORY.measured([peaks[128_000_000] - peaks[8_000_000]])


def speed() -> Iterator[Bar | Figure]:
    """The same bytes from the same nginx, to the same disk."""
    if shutil.which("nginx") is None:
        raise CannotRun("nginx is not installed: apt-get install nginx-light")
    progress(f"speed of {_LARGE // 1_000_000} MB beside a plain GET")
    place = ROOT / ".cache"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        made = _publish(folder / "made", _LARGE)
        pack = max(made.packs(), key=lambda path: path.stat().st_size)
        size = pack.stat().st_size
        with nginx(folder / "nginx", made.path) as url:
            target = f"{url}{pack.relative_to(made.path)}"
            http = Http(UpdateConfig(url=url, proxy=""), DataBudget(folder / "usage.json"))
            plain = urllib3.PoolManager()

            def stream() -> None:
                for _ in http.stream(target, 0, size):
                    pass

            def get() -> None:
                response = plain.request("GET", target, preload_content=False)
                while response.read(1 << 16):
                    pass
                response.release_conn()

            def fetch() -> float:
                device = _device(folder / "device", made, url)
                os.sync()
                return seconds_of(lambda: device.fetch("digits/1"))

            def to_file() -> float:
                os.sync()
                return seconds_of(lambda: _to_file(plain, target, folder / "file"))

            ours, theirs, staged, filed = interleave(
                _ROUNDS, lambda: seconds_of(stream), lambda: seconds_of(get), fetch, to_file
            )
            http.close()
            plain.clear()
    yield STREAM.measured(theirs / ours)
    yield STAGED.measured(filed / staged)
    for what, took in (("GET", ours), ("urllib3 GET", theirs), ("fetch", staged), ("urllib3 GET to a file", filed)):
        yield figure(f"  {what}", size / took / 1e6, "MB/s")


def _to_file(pool: urllib3.PoolManager, url: str, path: Path) -> None:
    response = pool.request("GET", url, preload_content=False)
    found = hashlib.sha256()
    with path.open("wb") as file:
        while block := response.read(1 << 16):
            found.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    response.release_conn()


PARTS = (Part((OVER_PLAN, TWICE, LOST), cuts), Part((MEMORY,), memory), Part((STREAM, STAGED), speed))
