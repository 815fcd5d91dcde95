"""The agent in the device environment, with a package active and a real mosquitto: how soon, and how much memory."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import psutil

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.client import AgentClient
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.support import mosquitto
from tests.support.interpreters import ROOT
from tests.support.packages import write_tiny_package

COMMAND = ROOT / ".venv-device" / "bin" / "ferryman"
MEMORY = Goal("idle agent, resident memory with all children", "<", 60.0, "MB")
START = Goal("agent start until its online status is at the broker", "<", 1.0, "s")
DEVICE = "bench"
_STARTS = 9
_SETTLE_S = 3.0
_WAIT_S = 30.0


class _Watcher:
    """Hears the agent's status as any subscriber would."""

    def __init__(self, broker: BrokerConfig) -> None:
        self._heard: queue.Queue[tuple[float, Status]] = queue.Queue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.connect(broker.host, broker.port)
        self._client.subscribe(topics.status(DEVICE), qos=1)
        self._client.loop_start()

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self._heard.put((time.perf_counter(), decode(message.payload, Status)))

    def wait(self, *, online: bool) -> float:
        """When the next status of that kind came."""
        while True:
            when, status = self._heard.get(timeout=_WAIT_S)
            if status.online == online:
                return when

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def measure() -> Iterator[Bar | Figure]:
    """Start it several times, and look at the last one's memory."""
    if mosquitto.BINARY is None:
        raise CannotRun("mosquitto is not installed: apt-get install mosquitto")
    if not COMMAND.exists():
        raise CannotRun(f"{COMMAND} is missing: `make bench` sets it up")
    progress("agent start and memory")
    with tempfile.TemporaryDirectory() as name, mosquitto.Mosquitto(Path(name)) as broker:
        folder = Path(name)
        root = folder / "device"
        package = write_tiny_package(folder / "tiny.ferry")
        subprocess.run([COMMAND, "install", package, "--root", root], check=True, capture_output=True)
        watcher = _Watcher(broker.config)
        try:
            starts = []
            for _ in range(_STARTS):
                with _agent(broker.config, root) as (process, started):
                    starts.append(watcher.wait(online=True) - started)
                    if len(starts) == _STARTS:
                        memory = list(_memory(process, broker.config))
                watcher.wait(online=False)
        finally:
            watcher.close()
    yield START.measured(starts[1:])  # the first one reads the files from the disk
    yield figure("  the first start", starts[:1], "s")
    yield from memory


@contextlib.contextmanager
def _agent(broker: BrokerConfig, root: Path) -> Iterator[tuple[psutil.Popen, float]]:
    url = f"mqtt://{broker.host}:{broker.port}"
    started = time.perf_counter()
    process = psutil.Popen([COMMAND, "agent", "--device", DEVICE, "--broker", url, "--root", root])
    try:
        yield process, started
    finally:
        process.terminate()
        process.wait(_WAIT_S)


def _memory(process: psutil.Popen, broker: BrokerConfig) -> Iterator[Bar | Figure]:
    time.sleep(_SETTLE_S)
    rss, pss = _read_memory(process)
    yield MEMORY.measured(rss)
    yield figure("  idle, proportional share (PSS)", pss, "MB")
    with AgentClient(broker, DEVICE) as client:
        reply = client.infer([np.zeros((1, 4), np.float32)])
    time.sleep(_SETTLE_S)
    rss, pss = _read_memory(process)
    yield figure(f"  after one inference on {reply.interpreter}, resident", rss, "MB")
    yield figure("  the same, proportional share (PSS)", pss, "MB")


def _read_memory(process: psutil.Popen) -> tuple[list[float], list[float]]:
    """Resident and proportional memory of the whole tree, some times over."""
    rss, pss = [], []
    for _ in range(10):
        tree = [one.memory_full_info() for one in (process, *process.children(recursive=True))]
        rss.append(sum(one.rss for one in tree) / 1e6)
        pss.append(sum(one.pss for one in tree) / 1e6)
        time.sleep(0.1)
    return rss, pss


PARTS = (Part((START, MEMORY), measure),)
