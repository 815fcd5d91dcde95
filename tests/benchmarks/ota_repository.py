"""A repository: what models that share layers take together, how long a publish lasts, and how fast it is served."""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import numpy as np

from ferryman.devices.fleet.repository.manage import add_family
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.support.nginx import nginx
from tests.support.packages import write_tiny_package
from tests.support.repository import TestRepository, make_repository, utc_now

SHARED = Goal("two models that share 9 of 10 layers: repository / both packages", "<=", 0.56)
SERVED = Goal("built-in server beside nginx, 1 MB ranges, 4 clients", ">=", 0.5)
_LAYER = 200_000
_RANGE_BYTES = 1_000_000
_CLIENTS, _ASKED = 4, 25
_ROUNDS = 7


def _layers(seeds: range | list[int]) -> bytes:
    """Random float32 weights, as hard to compress as trained ones."""
    return b"".join(np.random.default_rng(seed).normal(0, 0.05, _LAYER).astype(np.float32).tobytes() for seed in seeds)


def measure() -> Iterator[Bar | Figure]:
    """Publish two families that share layers, then serve what they became."""
    progress("publishing models that share layers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_repository(folder)
        add_family(made.path, "speech", made.keyring, utc_now())
        first = write_tiny_package(folder / "first.ferry", padding=_layers(range(10)))
        second = write_tiny_package(folder / "second.ferry", added=2.0, padding=_layers([*range(4), 99, *range(5, 10)]))
        alone_s = seconds_of(lambda: made.publish(first, "1"))
        size_bytes = first.stat().st_size
        shared_s = seconds_of(lambda: made.publish(second, "1", family="speech"))
        stored = sum(path.stat().st_size for path in made.packs())
        delta_s = seconds_of(lambda: made.publish(second, "2"))
        yield SHARED.measured([stored / (size_bytes + second.stat().st_size)])
        yield figure("  publish, nothing shared", [size_bytes / alone_s / 1e6], "MB/s")
        yield figure("  publish, 9 of 10 layers stored already", [size_bytes / shared_s / 1e6], "MB/s")
        yield figure("  publish, all stored already, with a delta", [size_bytes / delta_s / 1e6], "MB/s")
        yield from _serving(made, folder)


def _serving(made: TestRepository, folder: Path) -> Iterator[Bar | Figure]:
    progress("serving beside nginx")
    pack = max(made.packs(), key=lambda path: path.stat().st_size)
    path = f"/{pack.relative_to(made.path)}"
    with _built_in(made.path) as ours, nginx(folder / "nginx", made.path) as theirs:
        for url in (ours, theirs):
            _ask(url, path)
        seconds = interleave(
            _ROUNDS, lambda: seconds_of(lambda: _ask(ours, path)), lambda: seconds_of(lambda: _ask(theirs, path))
        )
    yield SERVED.measured(seconds[1] / seconds[0])
    total = _CLIENTS * _ASKED * _RANGE_BYTES / 1e6
    yield figure("  built-in server", total / seconds[0], "MB/s")
    yield figure("  nginx", total / seconds[1], "MB/s")


@contextmanager
def _built_in(path: Path) -> Iterator[str]:
    """In a process of its own, as a user runs it: its threads must not share the clients' interpreter."""
    program = (
        "import sys; from pathlib import Path; from ferryman.devices.fleet.repository.serve import RepositoryServer\n"
        "server = RepositoryServer(Path(sys.argv[1])); print(server.url, flush=True); server.serve_forever()"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _ask(url: str, path: str) -> None:
    threads = [Thread(target=_client, args=(url, path)) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _client(url: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    for number in range(_ASKED):
        start = number * 17_000
        connection.request("GET", path, headers={"Range": f"bytes={start}-{start + _RANGE_BYTES - 1}"})
        response = connection.getresponse()
        got = len(response.read())
        if response.status != 206 or got != _RANGE_BYTES:
            raise RuntimeError(f"{url} answered {response.status} with {got} bytes")
    connection.close()


PARTS = (Part((SHARED, SERVED), measure),)
