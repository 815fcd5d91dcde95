"""A fleet's question to a real device: pushed over SSH, measured by its agent, and remembered."""

from __future__ import annotations

import sys
import threading

import pytest

from ferryman import Fleet, ProfileSpec
from ferryman.devices.agent.agent import Agent, AgentConfig
from ferryman.devices.fleet import oracle
from ferryman.devices.fleet.client import AgentClient
from ferryman.profiler.conditions import read_conditions
from ferryman.profiler.standing import standing
from tests.support.agent import StatusWatch
from tests.support.mosquitto import Mosquitto
from tests.support.packages import write_tiny_package
from tests.support.sshd import SSHD, running_sshd

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is not installed: apt-get install openssh-server")
SPEC = ProfileSpec(runs=10, starts=1, interpreters=("ai-edge-litert",))


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """Of `bench`: an agent, and an sshd beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stop = threading.Event()
    with Mosquitto(tmp_path) as mosquitto, running_sshd(tmp_path) as sshd:
        config = AgentConfig(device="bench", root=tmp_path / "root", broker=mosquitto.config)
        agent = threading.Thread(target=Agent(config).run, args=(stop,))
        agent.start()
        file = tmp_path / "devices.toml"
        file.write_text(
            f"""[bench]
            host = "{sshd.host}"
            port = {sshd.port}
            user = "{sshd.user}"
            key = "{sshd.key}"
            known_hosts = "{sshd.known_hosts}"
            root = "{config.root}"
            command = "{sys.executable} -m ferryman.cli"
            broker = "mqtt://{mosquitto.config.host}:{mosquitto.config.port}"
            """
        )
        try:
            with StatusWatch(mosquitto.config, "bench") as status:
                status.wait_for(lambda s: s.online)
            yield Fleet(file)
        finally:
            stop.set()
            agent.join(60)


def test_each_candidate_is_pushed_measured_there_and_remembered(fleet, tmp_path):
    packages = [write_tiny_package(tmp_path / f"p{n}.ferry", added=n + 1.0) for n in range(2)]
    heard = []
    table = fleet.measure(packages, "bench", spec=SPEC, progress=heard.append)
    assert not table.failed, table
    assert [row.candidate for row in table.rows] == ["p0", "p1"]
    assert len({row.measurement.package_sha256 for row in table.rows}) == 2
    assert heard[:2] == ["bench: pushing p0", "bench: p0, fp32-tflite on ai-edge-litert"]

    heard.clear()
    again = fleet.measure(packages, "bench", spec=SPEC, progress=heard.append)
    assert all(row.cached for row in again.rows)
    assert heard == []
    assert [row.measurement for row in again.rows] == [row.measurement for row in table.rows]


def test_an_agent_tells_what_stands(fleet):
    device = fleet._devices["bench"]
    with AgentClient(oracle.broker_of(device), "bench") as agent:
        status = agent.status()
    assert status.standing == standing(read_conditions({}))
    assert status.standing["kernel"]
    state = oracle.read_state(device)
    assert state.standing == status.standing
    assert "ai-edge-litert" in state.interpreters
