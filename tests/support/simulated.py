"""A fleet of light devices: each has a slot store, an MQTT connection and an update loop of its own, all of the real
code; some hundred share a process. What serving a model would show is made up, and no golden vectors are run.

`python -m tests.support.simulated devices BROKER_PORT URL FOLDER SEED NAME...` is a process of devices;
`... server REPOSITORY DROPPED` serves a repository and drops a share of the connections unanswered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ferryman.devices import topics
from ferryman.devices.agent import updating as updating_module
from ferryman.devices.agent.update.client import UpdateClient
from ferryman.devices.agent.update.config import UpdateConfig
from ferryman.devices.agent.updating import Hands, Updating
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.repository.serve import RepositoryServer
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired, Health, Reported
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore

BAD = "add-13"
"""A package of this name serves badly on every device."""
KINDS = ("pi4", "pi5", "phone")
MS = 1_000_000


def no_golden(_directory: Path, _manifest: object) -> tuple[()]:
    return ()


class LightDevice:
    """One device."""

    def __init__(self, name: str, root: Path, broker: BrokerConfig, url: str) -> None:
        self.name = name
        self.kind = KINDS[int(name.rpartition("-")[2]) % len(KINDS)]
        self.store = SlotStore(root)
        config = UpdateConfig(url=url, timeout_s=20.0, patience_s=60.0)
        hands = Hands(
            client=lambda cancelled: UpdateClient(root, config, cancelled=cancelled),
            ready=lambda _: "",
            health=self._health,
            report=self._report,
            golden=lambda _pick: no_golden,
        )
        self._began = time.monotonic()
        self._trial: str | None = None
        will = Message(topic=topics.status(name), payload=encode(Status(device=name, online=False)), retain=True)
        self._link = Link(broker, f"ferryman-agent-{name}", will=will)
        self.updating = Updating(self.store, name, self.kind, hands)
        self._link.subscribe(topics.desired(name), self._on_desired)
        self._link.on_ready(self._announce)

    def start(self) -> None:
        self.updating.note_start()
        self._link.start()
        threading.Thread(target=self.updating.run, args=(threading.Event(),), daemon=True).start()

    def _on_desired(self, delivery: Any) -> None:
        if delivery.payload:
            self.updating.desire(decode(delivery.payload, Desired))

    def _announce(self) -> None:
        active = self.store.read_state().active
        status = Status(
            device=self.name,
            online=True,
            package_sha256=active.package_sha256 if active else None,
            package_name=active.package_name if active else None,
            labels={"site": "simulated"},
            model=self.kind,
        )
        self._say(topics.status(self.name), encode(status))
        self._report(self.updating.said)

    def _report(self, reported: Reported) -> None:
        self._say(topics.reported(self.name), encode(reported))

    def _say(self, topic: str, payload: bytes) -> None:
        with contextlib.suppress(LinkError):  # said again on the next connection
            self._link.publish(Message(topic=topic, payload=payload, retain=True))

    def _health(self) -> Health | None:
        state = self.store.read_state()
        if state.active is None:
            return None
        if state.active.package_sha256 != self._trial:
            self._trial, self._began = state.active.package_sha256, time.monotonic()
        bad = state.active.package_name == BAD
        return Health(
            seconds=time.monotonic() - self._began,
            starts=state.trial.starts if state.trial else 1,
            requests=40,
            errors=20 if bad else 0,
            latency_ns=2 * MS,
            before_latency_ns=2 * MS,
        )


def run_devices(port: int, url: str, folder: Path, seed: int, names: Sequence[str]) -> None:
    """Run devices until killed."""
    # Times are shorter than a device's own, or the test would wait for them.
    updating_module.RETRY_FIRST_S, updating_module.RETRY_CAP_S, updating_module.WATCH_S = 0.5, 5.0, 0.3
    chance = random.Random(seed)  # noqa: S311  # no secret
    threading.stack_size(256 << 10)
    for name in names:
        LightDevice(name, folder / name, BrokerConfig(host="127.0.0.1", port=port), url).start()
        time.sleep(chance.uniform(0, 0.01))
    print("ready", flush=True)
    signal.pause()


class FlakyServer(RepositoryServer):
    """Drops a share of the connections unanswered, and counts what went over the others, both ways, heads too."""

    dropped = 0.0
    chance = random.Random(5)  # noqa: S311  # no secret
    wire_bytes = 0
    _counting = threading.Lock()

    def shutdown_request(self, request: Any) -> None:
        info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        acknowledged, received = struct.unpack_from("QQ", info, 120)  # struct tcp_info of linux/tcp.h
        with self._counting:
            self.wire_bytes += acknowledged + received
        super().shutdown_request(request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.chance.random() < self.dropped:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)


def run_server(repository: Path, dropped: float, port: int) -> None:
    FlakyServer.dropped = dropped
    with FlakyServer(repository, port=port) as server:
        print(server.url, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            server.serve_forever()
        finally:
            print(server.wire_bytes, flush=True)


@dataclass
class Fleet:
    """Processes of devices."""

    names: list[str]
    folder: Path
    processes: int
    broker_port: int
    url: str
    _running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    kills: int = 0

    def provision(self, package: Path, root: bytes) -> None:
        """Give every device the package and the repository's root."""
        model = self.folder / "model"
        (model / "trust").mkdir(parents=True)
        (model / "trust" / "root.json").write_bytes(root)
        install(package, model, golden=no_golden)
        for name in self.names:
            shutil.copytree(model, self.folder / name)

    def start(self) -> None:
        for part in range(self.processes):
            self._start(part)
        for process in self._running.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def _start(self, part: int) -> None:
        words = ["devices", self.broker_port, self.url, self.folder, part, *self.names[part :: self.processes]]
        self._running[part] = spawn(words, self.folder / f"devices-{part}.log")

    def kill_and_start(self, part: int) -> None:
        """With all its devices, wherever they are."""
        _end(self._running[part])
        self.kills += 1
        self._start(part)

    def stop(self) -> None:
        for process in self._running.values():
            _end(process)

    def serving(self) -> dict[str, str]:
        """Device -> name of the package that serves, every file of it verified; or what is wrong with it."""
        found = {}
        for name in self.names:
            try:
                found[name] = SlotStore(self.folder / name).active().slot.package_name
            except DeviceError as error:
                found[name] = f"bricked: {error}"
        return found


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def spawn(words: Sequence[object], log: Path) -> subprocess.Popen[str]:
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.simulated", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    what, *given = sys.argv[1:]
    if what == "devices":
        run_devices(int(given[0]), given[1], Path(given[2]), int(given[3]), given[4:])
    else:
        run_server(Path(given[0]), float(given[1]), int(given[2]))
