"""The agent on disks that refuse: a card that the kernel makes read-only, a root that is so on purpose."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ferryman.devices.agent.agent import STORAGE_EVERY_S
from ferryman.devices.agent.recorder import UNRECORDED_MAX
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.store.store import open_store
from ferryman.runtime.install import install
from tests.support.agent import AgentProcess, StatusWatch
from tests.support.disk import card_disk, small_disk
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.telemetry import collecting, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready"),
]
X = np.arange(4, dtype=np.float32).reshape(1, 4)
NOTICE_S = STORAGE_EVERY_S + 60


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto.config


@pytest.fixture
def card(tmp_path):
    """With y = x + 1 installed."""
    with card_disk(tmp_path / "card") as disk:
        package = write_tiny_package(tmp_path / "1.ferry")
        install(package, disk.place, golden=lambda _directory, _manifest: ())
        yield disk


def added(client):
    (output,) = client.infer([X]).outputs
    return float((output.to_array() - X)[0, 0])


def test_a_card_that_fails_ends_no_serving_and_what_is_lost_is_counted(broker, card):
    agent = AgentProcess(broker, card.place, options=["--sample", "1"])
    with agent, StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
        status.wait_for(lambda s: s.online, 60)
        assert added(client) == 1
        card.fail()
        status.wait_for(lambda s: s.storage == "read-only", NOTICE_S)
        assert added(client) == 1
        deadline = time.monotonic() + 3 * UNRECORDED_MAX
        while not (seen := client.status()).outbox_dropped:
            assert time.monotonic() < deadline, seen
            time.sleep(0.5)
        assert seen.outbox_pending >= UNRECORDED_MAX
        agent.process.terminate()
        assert agent.wait(60) == 0
    text = agent.log.read_text()
    assert text.count("kept in memory") == 1, "not once a second"
    assert "Traceback" not in text


def test_on_a_read_only_root_it_serves_and_its_telemetry_reaches_the_disk_once_that_takes_it(tmp_path, broker, card):
    card.remount("ro")
    agent = AgentProcess(broker, card.place)
    with agent, StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
        born = status.wait_for(lambda s: s.storage == "read-only", 60)
        assert (born.online, born.package_name) == (True, "add-1")
        assert added(client) == 1
        assert f"{card.place} cannot be written (read-only)" in agent.log.read_text()
        assert "--outbox" in agent.log.read_text()
        with AgentProcess(broker, card.place) as second:
            assert second.wait(60) == 1
        assert "another agent serves" in agent.log.read_text()  # both write there
        card.remount("rw")
        status.wait_for(lambda s: not s.storage, NOTICE_S)
        store = open_store(tmp_path / "store.sqlite")
        with collecting(broker, store):
            until(lambda: client.status().outbox_pending == 0)
        store.close()
        assert client.status().outbox_dropped == 0
        agent.process.terminate()
        assert agent.wait(60) == 0
    assert "Traceback" not in agent.log.read_text()


def test_a_read_only_root_with_its_outbox_in_memory_sends_all(tmp_path, broker, card):
    card.remount("ro")
    with small_disk(tmp_path / "run", "4m") as folder:
        agent = AgentProcess(
            broker, card.place, options=["--outbox", str(folder / "ferryman"), "--outbox-max", "1MB", "--sample", "1"]
        )
        with agent, StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
            born = status.wait_for(lambda s: s.online, 60)
            assert (born.storage, born.package_sha256) == ("", sha256_of(tmp_path / "1.ferry"))
            store = open_store(tmp_path / "store.sqlite")
            with collecting(broker, store):
                until(lambda: store.totals().records >= 3)  # the slots, and samples
            store.close()
            assert (client.status().outbox_dropped, client.status().storage) == (0, "")
            assert (folder / "ferryman" / "outbox.sqlite").exists()
            agent.process.terminate()
            assert agent.wait(60) == 0
