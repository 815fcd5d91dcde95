"""Updates over links that lose, delay, drop, flap, crawl and end; processes that are killed; memory that is flat."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.devices.agent.update.local import Indices
from ferryman.devices.agent.update.stage import Download
from ferryman.devices.fleet.repository import chunks
from ferryman.runtime.pieces.index import Index
from tests.support.bad_server import Bad, serving
from tests.support.lossy import lossy_device
from tests.support.netns import far_device
from tests.support.nginx import nginx
from tests.support.packages import write_tiny_package
from tests.support.repository import make_repository
from tests.support.updates import UpdatingDevice

ROOT = Path(__file__).parents[2]
MODEL = "artifacts/model.tflite"
SIZE = 4_000_000
PIECE_MAX = 256 << 10
BUFFERS = 600_000
"""What the kernels of both ends may hold of a connection that ends."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("links"), SIZE)


def publish(folder, size):
    """Noise cannot be compressed; nobody need try for minutes."""
    made = make_repository(folder)
    package = write_tiny_package(folder / "p.ferry", padding=np.random.default_rng(size).bytes(size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "compress", lambda data: data)
        made.publish(package, "1")
    return made


@pytest.fixture
def device(repository, tmp_path):
    return UpdatingDevice(tmp_path / "device", repository.root)


def command(device, url, **config):
    given = UpdateConfig(url=url, proxy="", **{"timeout_s": 2.0, "patience_s": 60.0, **config})
    return [
        sys.executable,
        "-m",
        "tests.support.fetch_process",
        str(device.root),
        "digits/1",
        msgspec.json.encode(given),
    ]


def start(argv, run=subprocess.Popen, **options):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    return run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT, **options)


def done(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def holds(device, repository):
    (payload,) = (one for one in repository.release("digits/1").payloads if one.path == MODEL)
    return Download(device.root, repository.release("digits/1").package_sha256).complete(payload)


def staged_bytes(device, repository):
    """Of the payload, in pieces that are whole."""
    release = repository.release("digits/1")
    (payload,) = (one for one in release.payloads if one.path == MODEL)
    index = Indices(device.root).get(payload, payload.recipes[0], 0)
    if not isinstance(index, Index):
        return 0
    lacking = set(Download(device.root, release.package_sha256).lacking(payload, index))
    return sum(piece.size for number, piece in enumerate(index.pieces) if number not in lacking)


@pytest.mark.slow
def test_a_link_that_flaps(device, repository):
    """Up and down, slow when it is up: no byte is asked for twice, and it ends."""
    with far_device() as link, serving(repository.path, Bad(delay_s=0.05), host=link.host) as server:
        link.slow(1_000_000)
        process = start(command(device, server.url, timeout_s=1.0), link.run)
        for _ in range(4):
            time.sleep(0.7)
            link.down()
            time.sleep(1.6)
            link.up()
        found = done(process)
        assert holds(device, repository)
        asked = ranges(server)
    assert found["retries"] >= 2, found
    # Beside the payload: the metadata, and for each retry a request and what its answer's head takes.
    assert found["wire_bytes"] < found["planned_bytes"] + 12_000 + 2_000 * found["retries"]
    starts = [first for first, _ in asked]
    assert starts == sorted(starts), "it went back"


@pytest.mark.slow
def test_a_link_that_loses_delays_and_reorders_packets(device, repository):
    """Of each way one packet of 20; a round trip takes 30 ms and more."""
    with (
        lossy_device(loss=0.05, delay_s=0.015, jitter_s=0.005) as (link, carrier),
        serving(repository.path, host=link.host) as server,
    ):
        found = done(start(command(device, server.url, timeout_s=10.0), link.run))
    assert carrier.lost > 0.02 * carrier.carried > 20
    assert holds(device, repository)
    assert found["wire_bytes"] < found["planned_bytes"] + 20_000 + 2_000 * found["retries"]


def ranges(server):
    """Spans asked for of the pack that holds the most."""
    names = [path for path, asked in server.asked if path.startswith("packs/") and asked]
    largest = max(set(names), key=lambda path: len(server.find(path)))
    spans = [asked.removeprefix("bytes=").split("-") for path, asked in server.asked if path == largest]
    model = [(int(first), int(last)) for first, last in spans]
    return [span for span in model if span[1] - span[0] > 20_000]


@pytest.mark.slow
def test_a_link_that_drops_every_few_kilobytes(device, repository):
    """Fewer than a piece has, and with a delay before each answer."""
    with far_device() as link, serving(repository.path, Bad(drop_every=50_000, delay_s=0.01), link.host) as server:
        found = done(start(command(device, server.url), link.run))
        assert holds(device, repository)
    assert found["retries"] >= SIZE // 50_000 - 1
    assert found["wire_bytes"] < found["planned_bytes"] + 12_000 + 600 * found["retries"]


@pytest.mark.slow
def test_a_link_that_ends_is_an_error_that_says_how_to_go_on(device, repository):
    with far_device() as link, serving(repository.path, host=link.host) as server:
        link.slow(700_000)
        process = start(command(device, server.url, timeout_s=1.0, patience_s=3.0), link.run)
        while not staged_bytes(device, repository):
            time.sleep(0.05)
        link.down()
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "LinkError" in err
        assert "the next try goes on from what is verified" in err
        here = staged_bytes(device, repository)
        assert here > 0
        link.up()
        server.asked.clear()
        assert done(start(command(device, server.url), link.run))["wire_bytes"] < SIZE - here + 20_000
        assert holds(device, repository)


def test_a_bandwidth_cap_holds_on_the_wire(device, repository):
    """As the link counts it, frames and all: at no moment did more pass than the cap allows since it began."""
    cap = 1_000_000
    with far_device() as link, serving(repository.path, host=link.host) as server:
        process = start(command(device, server.url, rate_bytes_s=cap), link.run)
        before, began = link.bytes_to_device(), None
        while process.poll() is None:
            passed = link.bytes_to_device() - before
            began = began or (time.monotonic() if passed > 10_000 else None)
            if began is not None:  # the clock is read last: a pause in between allows more, never less
                assert passed < 1.1 * cap * (time.monotonic() - began) + 400_000
            time.sleep(0.05)
        found = done(process)
    assert found["seconds"] > 0.9 * SIZE / cap - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment(device, repository, seed):
    """kill -9 ten times at random; whole pieces are never asked for again."""
    chance = random.Random(seed)  # noqa: S311
    kills, lost = 0, []
    with serving(repository.path, Bad(bytes_s=2_500_000)) as server:
        while kills < 10:
            before_sent, before = server.sent, staged_bytes(device, repository)
            process = start(command(device, server.url))
            while server.sent - before_sent < 60_000 and process.poll() is None:
                time.sleep(0.01)  # its start takes as long as it takes
            time.sleep(chance.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            after = staged_bytes(device, repository)
            assert after >= before, "what was verified is gone"
            lost.append(server.sent - before_sent - (after - before))
            if holds(device, repository):
                break
        found = done(start(command(device, server.url)))
        assert holds(device, repository)
    assert found["wire_bytes"] >= 0
    # A piece that was on its way, two blocks that waited, what the kernels held, and metadata.
    assert max(lost) < PIECE_MAX + 2 * 65_536 + BUFFERS, lost
    print(f"killed {kills} times; bytes sent and not kept, each time: {lost}")


def test_what_was_whole_before_a_kill_is_not_asked_for_again(device, repository):
    with serving(repository.path, Bad(bytes_s=1_500_000)) as server:
        process = start(command(device, server.url))
        while staged_bytes(device, repository) < SIZE // 3:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        here = staged_bytes(device, repository)
        server.asked.clear()
        server.bad.bytes_s = None
        done(start(command(device, server.url)))
        asked = sum(last - first + 1 for first, last in ranges(server))
        assert asked <= SIZE - here + 2000  # the gap that is cheaper than a request, and the artifact itself
        assert holds(device, repository)


def test_a_cut_within_the_process_costs_nothing_twice(device, repository):
    with serving(repository.path, Bad(drop_every=333_333)) as server:
        found = done(start(command(device, server.url)))
        asked = ranges(server)
    assert found["retries"] >= 11
    lasts = {last for _, last in asked}
    assert len(lasts) == 1
    assert [first for first, _ in asked] == sorted({first for first, _ in asked})
    assert asked[1][0] - asked[0][0] == 333_333, "it did not go on at the very byte"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_package(tmp_path):
    peaks = {}
    for size in (8_000_000, 128_000_000):
        folder = tmp_path / str(size)
        made = publish(folder, size)
        device = UpdatingDevice(folder / "device", made.root)
        with serving(made.path) as server:
            found = done(start(command(device, server.url)))
        peaks[size] = found["peak_kb"] / 1000
        shutil.rmtree(folder)
        print(f"{size / 1e6:.0f} MB: peak {peaks[size]:.1f} MB, {found['ready_kb'] / 1000:.1f} MB before the payloads")
    assert peaks[128_000_000] - peaks[8_000_000] < 8, peaks


def test_a_cancel_is_seen_on_a_dead_link(device, repository):
    """It ends long before the link's own limits would end it."""
    with far_device() as link, serving(repository.path, host=link.host) as server:
        link.slow(400_000)
        process = start(command(device, server.url, timeout_s=300.0, patience_s=900.0), link.run)
        while not server.sent:
            time.sleep(0.05)
        link.down()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_nginx_serves_it_with_ranges(device, repository, tmp_path):
    with nginx(tmp_path / "nginx", repository.path) as url:
        process = start(command(device, url, rate_bytes_s=2_000_000))
        while staged_bytes(device, repository) < SIZE // 4:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        here = staged_bytes(device, repository)
        found = done(start(command(device, url)))
        assert found["wire_bytes"] < SIZE - here + 10_000
        assert holds(device, repository)


def test_threads_end(device, repository):
    before = set(threading.enumerate())
    with serving(repository.path) as server:
        device.url = server.url
        device.fetch("digits/1")
        deadline = time.monotonic() + 30
        while [one for one in set(threading.enumerate()) - before if one.name == "fetch"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
