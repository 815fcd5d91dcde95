"""Devices that announced themselves at a real broker, found and written into the devices file."""

from __future__ import annotations

import json
import threading

import pytest
from click.testing import CliRunner

from ferryman.cli import main
from ferryman.devices import topics
from ferryman.devices.broker import parse_broker
from ferryman.devices.fleet.inventory import MqttDevice, SshDevice, read_devices
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from tests.support import seeded
from tests.support.broker import running_broker

FILE = """\
# ours

[shelf-1]  # over SSH
host = "shelf-1.lan"
user = "pi"
"""
STATUSES = (
    Status(device="shelf-1", online=True),
    Status(device="shelf-2", online=False, model="Raspberry Pi 4", labels={"site": "lab"}),
    Status(device="shelf-3", online=True, model="Raspberry \x1b[2JPi 5", standing={"soc": "BCM2712"}),
    Status(device="roof", online=True),
    Status(device="all", online=True),
)


def keep(url, messages):
    """Have a broker keep them."""
    left = threading.Semaphore(0)
    link = Link(parse_broker(url), "test-keeper")
    link.start()
    try:
        link.wait_ready(60)
        for topic, payload in messages:
            link.publish(Message(topic=topic, payload=payload, retain=True), lambda _: left.release())
        for _ in messages:
            assert left.acquire(timeout=60)
    finally:
        link.stop()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("broker")) as broker:
        said = [(topics.status(one.device), encode(one)) for one in STATUSES]
        keep(broker.url, [*said, (topics.status("liar"), encode(STATUSES[0])), (topics.status("mad"), b"\xff{")])
        yield broker.url


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "devices.toml"
    path.write_text(FILE)
    monkeypatch.setenv("FERRYMAN_DEVICES", str(path))
    return path


def discover(url, *words, exit_code=0):
    done = CliRunner().invoke(main, ["devices", "discover", "--mqtt", url, "--seconds", "1", *map(str, words)])
    assert done.exit_code == exit_code, done.output
    return done


def test_devices_are_shown_with_what_they_say_and_nothing_is_written(url, file):
    done = discover(url, "--json")
    found = {one["device"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"shelf-1", "shelf-2", "shelf-3", "roof"}
    assert found["shelf-1"]["listed"] == "shelf-1.lan:22"
    assert (found["shelf-2"]["model"], found["shelf-2"]["labels"]) == ("Raspberry Pi 4", {"site": "lab"})
    assert (found["shelf-3"]["soc"], found["shelf-3"]["online"]) == ("BCM2712", True)
    assert "3 left out" in done.stderr
    assert file.read_text() == FILE
    assert "\x1b" not in discover(url).stdout


def test_those_that_are_meant_are_written_at_once_and_known_ones_stay_as_they_are(url, file):
    done = discover(url, "--add", "shelf-*", "--add", "roof", "--label", "floor=2")
    assert "3 devices written to" in done.stderr
    assert "shelf-1 in" in done.stderr
    made = read_devices()
    assert isinstance(made["shelf-1"], SshDevice)
    assert made["shelf-3"] == MqttDevice(name="shelf-3", broker=url, labels={"floor": "2"})
    assert set(made) == {"local", "shelf-1", "shelf-2", "shelf-3", "roof"}
    assert file.read_text().startswith(FILE)
    written = file.read_text()
    assert "4 devices in" in discover(url, "--add", "all").stderr
    assert file.read_text() == written


def test_all_that_is_asked_is_written_or_nothing(url, file):
    done = discover(url, "--add", "roof", "--add", "attic-*", exit_code=1)
    assert "'attic-*' means none of the devices found: roof, shelf-1" in done.stderr
    assert file.read_text() == FILE


def test_what_a_store_knows_is_found_though_the_broker_does_not(url, file, tmp_path):
    database = tmp_path / "store.sqlite"
    store = open_store(str(database))
    seeded.join(store, Status(device="old", online=False, model="Zero 2"), Status(device="roof", online=False))
    store.close()
    discover(url, "--database", database, "--add", "model~zero")
    assert read_devices()["old"] == MqttDevice(name="old", broker=url)
    assert "roof" not in read_devices()


def test_a_file_that_is_not_there_is_made(url, tmp_path):
    path = tmp_path / "new" / "devices.toml"
    discover(url, "--devices", path, "--add", "roof")
    assert set(read_devices(path)) == {"local", "roof"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--database", "x"], "--database goes with --mqtt"),
        (["--label", "a=b"], "--label is of what --add writes"),
        (["--mqtt", "mqtt://h", "--broker", "mqtt://h"], "--mqtt names the broker already"),
        (["--mqtt", "mqtt://h", "--user", "me"], "of devices on this network"),
        (["--mqtt", "http://h"], "found scheme 'http'"),
        (["--mqtt", "mqtt://h", "--add", "a b"], "a name has letters"),
        (["--mqtt", "mqtt://h", "--add", "all", "--label", "x"], "expected NAME=VALUE"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anybody_listens(words, message):
    done = CliRunner().invoke(main, ["devices", "discover", *words])
    assert done.exit_code in {1, 2}
    assert message in done.stderr
