"""The agent as a service of systemd: what it tells, and that it tells nothing more once it hangs."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import psutil
import pytest

from ferryman.devices import mqtt_connection
from ferryman.devices.agent import agent as agent_module
from ferryman.devices.agent import desk, publisher, systemd
from ferryman.devices.agent.agent import Agent, AgentConfig
from ferryman.devices.agent.systemd import Service
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.mqtt import Link
from ferryman.runtime import alive, isolated
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.install import install
from tests.support.agent import AgentProcess
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto
from tests.support.notified import NotifySocket
from tests.support.packages import write_tiny_package

X = np.arange(4, dtype=np.float32).reshape(1, 4)
STUCK_S = 3.0
"""More than the second between two rounds of paho's loop, on a busy machine."""


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto.config


@pytest.fixture
def notify(tmp_path):
    with NotifySocket(tmp_path) as made:
        yield made


@pytest.mark.slow
@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
def test_what_systemd_hears_of_a_real_one(tmp_path, broker, notify, monkeypatch):
    package = write_tiny_package(tmp_path / "one.ferry")
    install(package, tmp_path / "root", golden=lambda _directory, _manifest: ())
    for name, value in notify.environment(watchdog_s=1.0).items():
        monkeypatch.setenv(name, value)
    with AgentProcess(broker, tmp_path / "root") as agent, AgentClient(broker, "pi") as client:
        status = notify.wait_for(lambda f: f.startswith("STATUS="), 60)
        assert "READY=1" in notify.heard
        assert status.startswith("STATUS=serves add-1 "), status
        notify.wait_for(lambda f: f == "WATCHDOG=1")
        if not status.endswith(connected := f"; broker {broker.address} connected"):
            notify.wait_for(lambda f: f.endswith(connected), 60)
        client.infer([X])
        (worker,) = agent.workers()
        assert "NOTIFY_SOCKET" not in worker.environ()
        agent.process.terminate()
        assert agent.wait(60) == 0
    notify.read()
    assert "STOPPING=1" in notify.heard


@pytest.mark.slow
@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
def test_the_stacks_of_one_that_systemd_ends_are_in_its_log(tmp_path, broker, notify, monkeypatch):
    for name, value in notify.environment(watchdog_s=5.0).items():
        monkeypatch.setenv(name, value)
    with AgentProcess(broker, tmp_path / "root") as agent:
        notify.wait_for(lambda f: f == "READY=1", 60)
        agent.process.send_signal(6)  # what systemd sends when the watchdog was not patted
        agent.wait(60)
        assert "_send_until_stopped" in agent.log.read_text()


class Hang:
    """Put in the place of something that a thread calls: from `begins` on it does not return, until `ends`."""

    def __init__(self):
        self.begins, self.ends = threading.Event(), threading.Event()

    def instead_of(self, monkeypatch, owner, name):
        whole = getattr(owner, name)

        def call(*arguments, **named):
            if self.begins.is_set():
                self.ends.wait(60)
            return whole(*arguments, **named)

        monkeypatch.setattr(owner, name, call)


@pytest.fixture
def hang():
    made = Hang()
    yield made
    made.ends.set()


@pytest.fixture
def serving(tmp_path, broker, notify, monkeypatch):
    """Starts an agent in this process, whose threads look often and may be silent for STUCK_S; ends it afterwards."""
    monkeypatch.setattr(alive, "_pulses", [])
    for module in (desk, publisher, mqtt_connection, systemd):
        monkeypatch.setattr(module, "STUCK_S", STUCK_S)
    monkeypatch.setattr(agent_module, "POLL_S", 0.1)
    monkeypatch.setattr(desk, "_POLL_S", 0.1)
    stop, threads = threading.Event(), []

    def serve():
        with Service(notify.environment(watchdog_s=0.3)) as service:
            config = AgentConfig(device="pi", root=tmp_path / "root", broker=broker)
            Agent(config).run(stop, service)

    def start():
        threads.append(threading.Thread(target=serve))
        threads[0].start()
        notify.wait_for(lambda f: f == "READY=1")

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "thread"),
    [
        (agent_module.Upkeep, "look", "the main thread"),
        (agent_module.Recorder, "put", "the main thread"),
        (agent_module.HealthWatch, "idle", "the thread that answers requests"),
        (publisher.Publisher, "_turn", "the publisher"),
        (agent_module.Presence, "status", "the connection to the broker"),
    ],
)
def test_a_thread_that_hangs_ends_the_pats(serving, notify, broker, monkeypatch, hang, owner, name, thread):
    hang.instead_of(monkeypatch, owner, name)
    serving()
    notify.wait_for(lambda f: f == "WATCHDOG=1")
    with AgentClient(broker, "pi") as client:
        client.status()
        hang.begins.set()
        if thread == "the connection to the broker":  # it calls that only where somebody asks
            asking = threading.Thread(target=partial(client.status, timeout_s=60))
            asking.start()
        notify.wait_for(lambda f: f.startswith("STATUS=hangs") and thread in f)
        notify.read()
        time.sleep(0.5)
        assert "WATCHDOG=1" not in notify.read()
        hang.ends.set()
        notify.wait_for(lambda f: f == "WATCHDOG=1", 60)
        if thread == "the connection to the broker":
            asking.join(60)


def test_a_link_that_died_ends_the_pats(serving, notify, monkeypatch):
    def die(_link):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Link, "_attempt", die)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    serving()
    assert notify.wait_for(lambda f: f.startswith("STATUS=hangs")) == "STATUS=hangs: the link to the broker has died"
    notify.read()
    time.sleep(0.5)
    assert "WATCHDOG=1" not in notify.read()


def test_waiting_for_a_worker_that_takes_long_is_no_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "_POLL_MAX_S", 0.05)
    package = tmp_path / "model.tflite"
    package.write_bytes(b"")
    hung = tmp_path / "python"
    hung.write_text("#!/bin/sh\nexec sleep 60\n")
    hung.chmod(0o755)
    beats = []
    monkeypatch.setattr(isolated, "beat", lambda: beats.append(1))
    with pytest.raises(RuntimeFault, match="did not answer"):
        isolated.IsolatedSession(package, "tflite", python=hung, timeout_s=1.0)
    assert len(beats) > 1
    assert not [p for p in psutil.Process().children() if p.name() == "sleep"]


def test_what_fails_beside_serving_is_begun_anew(monkeypatch, caplog):
    monkeypatch.setattr(agent_module, "ANEW_S", 0.01)
    runs, stop = [], threading.Event()

    def run(_stop):
        runs.append(1)
        if len(runs) < 3:
            raise OSError("no such sensor")

    agent_module._begun_anew("samples", run, stop)
    assert len(runs) == 3
    assert caplog.text.count("samples failed; begun anew") == 2
