"""The parts of a chaos run: devices, links, broker, collectors and store, each with the ways in which it can fail."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ferryman.devices.agent.outbox import FILE, MAX_BYTES, Outbox
from ferryman.runtime.contracts.record import encode
from tests.chaos import mutations
from tests.chaos.device import DeviceConfig
from tests.chaos.disk import Disk, can_mount
from tests.chaos.faults import Begin, Heal
from tests.chaos.journal import reached
from tests.chaos.oracle import AGENT_KINDS, End, Rules
from tests.chaos.postgres import Postgres
from tests.chaos.process import Process
from tests.support import netns
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto

HOUR_NS, DAY_NS = 3600 * 10**9, 86400 * 10**9
STORE_BYTES = {"sqlite": 2 << 30, "postgresql": 6 << 30}
OUTBOX_DISK_BYTES = 256 << 20
SMALL_OUTBOX_BYTES = (160 << 10, 512 << 10)
"""Of the device that is to overflow, in a short run and in a long one."""
TAKEN_BYTES = 48 << 20
"""So much may wait in the outbox whose disk is filled: were it held to less, it would find room in pages it has."""
PAUSE_S = 0.03
"""Between the appends of a device that does not wait until what it appended is taken."""
BATCH, DISK_SPAN_S = 50, 20.0
"""Records in an append, about; so long does the device with that disk append at least: it shall be full meanwhile."""
RECORD_BYTES = 350
"""In an outbox, about."""
SHARES = {"wire": 3, "old": 3, "disk": 2, "small": 2, "agent": 2}
"""How the samples are shared among the devices."""
PORTS = range(20_000, 30_000)
"""Below those that outgoing connections get: one of these to a broker that is down could else connect to itself."""
BROKER = """set_tcp_nodelay true
max_queued_messages 100000
max_inflight_messages 200
"""


class Plan(NamedTuple):
    """What a run is made of, by its seed alone."""

    seed: int
    samples: int
    store: str
    mutation: str = ""

    @property
    def pace(self) -> float:
        """How long it is between faults: a short run has as many of each kind as can be."""
        return 0.4 if self.samples < 200_000 else 0.6


@dataclass
class Device:
    """One device: what it appends, how it sends, what it may do."""

    config: DeviceConfig
    rules: Rules
    processes: list[Process] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.config.name

    def appended(self) -> int:
        return reached(Path(self.config.journal))

    def end(self) -> End:
        outbox = Outbox(Path(self.config.outbox), max_bytes=self.config.max_bytes)
        try:
            counts = outbox.counts()
            return End(outbox.newest(), counts.records, counts.dropped)
        finally:
            outbox.close()


class Scene:
    """All parts, running; `targets` are those that can fail."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self.plan = plan
        self.left_out: list[str] = []
        """Faults that cannot be had here, and why."""
        self.targets: dict[str, Mapping[str, Begin]] = {}
        self.devices: list[Device] = []
        self.collectors: list[Process] = []
        self._folder = folder
        self._stack = stack
        self._chance = random.Random(f"{plan.seed}/scene")  # noqa: S311  # no secret
        self.persistent = self._chance.random() < 0.5
        self.broker = self._start_broker()
        self.postgres: Postgres | None = None
        self.store = self._start_store()
        self._start_collectors()
        self._start_devices()
        stack.callback(self._end_processes)

    @property
    def processes(self) -> list[Process]:
        return [*self.collectors, *(process for device in self.devices for process in device.processes)]

    def watch(self) -> None:
        """Start again what has ended by itself."""
        for process in self.processes:
            process.supervise()

    def _start_broker(self) -> Mosquitto:
        folder = self._folder / "broker"
        folder.mkdir()
        kept = f"persistence true\npersistence_location {folder}/\nautosave_interval 1\n" if self.persistent else ""
        listen = "127.0.0.1" if netns.why_not() else "0.0.0.0"  # noqa: S104  # the namespaces come from elsewhere
        broker = Mosquitto(folder, BROKER + kept, listen=listen, port=_free_port(self._chance))
        broker.start()
        self._stack.callback(broker.kill)

        def end(how: Callable[[], None], _: random.Random) -> Heal:
            how()
            return broker.start

        self.targets["broker"] = {
            "kill": partial(end, broker.kill), "stop": partial(end, broker.stop), "freeze": _freeze(broker.signal),
        }  # fmt: skip
        return broker

    def _start_store(self) -> str:
        folder, kind = self._folder / "store", self.plan.store
        disk = None
        if not can_mount():
            self.left_out.append("full disks: mounting takes root")
        elif self._chance.random() < 0.7:
            disk = Disk(folder, STORE_BYTES[kind])
            self._stack.callback(disk.close)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        if kind == "sqlite":
            if disk:
                self.targets["store-disk"] = {"fill": _fill(disk)}
            return str(folder / "store.sqlite")
        self.postgres = server = Postgres(folder, _free_port(self._chance))
        self._stack.callback(server.stop, "immediate")

        def hurt(how: Callable[[random.Random], object], chance: random.Random) -> Heal:
            how(chance)
            return server.start

        self.targets["database"] = {
            "kill": partial(hurt, lambda _: server.kill()),
            "kill-backend": partial(hurt, lambda chance: server.kill_backend(chance.getrandbits(16))),
            "stop-immediate": partial(hurt, lambda _: server.stop("immediate")),
        }
        if disk:
            self.targets["store-disk"] = {"fill": _fill(disk, server.start)}
        return server.url

    def _start_collectors(self) -> None:
        command = [str(Path(sys.executable).with_name("ferryman"))]
        if self.plan.mutation in mutations.COLLECTOR:
            command = [sys.executable, "-m", "tests.chaos.mutations", self.plan.mutation]
        broker = f"mqtt://127.0.0.1:{self.broker.port}"
        for number in range(2 if self.plan.store == "postgresql" else 1):
            name = f"collector{number}"
            arguments = ["collect", "--broker", broker, "--database", self.store]
            process = Process(name, self._folder, [*command, *arguments])
            self.collectors.append(process)
            self._add(f"collector:{number}", process)
            if self.plan.store == "postgresql":  # with one collector, its clock tells the order in which records came
                self.targets[f"clock:{name}"] = {"jump": partial(_jump, process, 2 * HOUR_NS)}
            process.start()

    def _start_devices(self) -> None:
        totals = {name: self.plan.samples * share // sum(SHARES.values()) for name, share in SHARES.items()}
        totals["small"] += self.plan.samples - sum(totals.values())
        for number, (name, total) in enumerate(totals.items()):
            self._start_device(name, number, total)

    def _start_device(self, name: str, number: int, total: int) -> None:
        folder = self._folder / name
        folder.mkdir()
        outbox = folder / FILE
        prefix, host = self._link(name, number)
        if name == "disk" and can_mount():
            disk = Disk(folder / "disk", OUTBOX_DISK_BYTES)
            self._stack.callback(disk.close)
            outbox = disk.place / FILE
            self.targets[f"outbox-disk:{name}"] = {
                "fill": _fill(disk),
                "fill-and-cut": partial(_both, _fill(disk), self.targets.get(f"link:{name}", {}).get("cut", _nothing)),
            }
        overflows, bytes_all = name == "small", total * RECORD_BYTES
        config = DeviceConfig(
            name=name,
            url=f"mqtt://{host}:{self.broker.port}" + ("?version=3.1.1" if name == "old" else ""),
            outbox=str(outbox),
            journal=str(folder / "journal"),
            total=total,
            overflows=overflows,
            publish=name != "agent",
            mutation=self.plan.mutation,
            taken_bytes=TAKEN_BYTES if name == "disk" else min(4 << 20, max(64 << 10, bytes_all // 10)),
            pause_s={"small": PAUSE_S, "disk": max(PAUSE_S, DISK_SPAN_S * BATCH / total)}.get(name, 0.0),
            max_bytes=min(SMALL_OUTBOX_BYTES[1], max(SMALL_OUTBOX_BYTES[0], bytes_all // 8))
            if overflows
            else MAX_BYTES,
        )
        (folder / "config.json").write_bytes(encode(config))
        ordered = self.plan.store == "sqlite"
        device = Device(config, Rules(may_drop=overflows, ordered=ordered))
        command = [*prefix, str(DEVICE_PYTHON), "-m", "tests.chaos.device", str(folder / "config.json")]
        device.processes.append(Process(name, self._folder, command))
        self._add(f"device:{name}", device.processes[0])
        if name == "agent":
            device.rules = Rules(own_kinds=AGENT_KINDS, ordered=ordered)
            ferryman = [*prefix, str(DEVICE_PYTHON.with_name("ferryman")), "-v", "agent"]
            arguments = ["--device", name, "--broker", config.url, "--root", str(folder)]
            device.processes.append(Process("ferryman-agent", self._folder, [*ferryman, *arguments]))
            self._add("agent", device.processes[1])
        for process in device.processes:
            self.targets[f"clock:{process.name}"] = {"jump": partial(_jump, process, 30 * DAY_NS)}
            process.start()
        self.devices.append(device)

    def _link(self, name: str, number: int) -> tuple[list[str], str]:
        """What a command begins with to run at the far end of a link of its own, and where the broker is from there."""
        if reason := netns.why_not():
            self.left_out.append(f"links that flap: {reason}")
            return [], "127.0.0.1"
        link = self._stack.enter_context(netns.far_device(number))

        def cut(_: random.Random) -> Heal:
            link.down()
            return link.up

        def slow(chance: random.Random) -> Heal:
            link.slow(chance.randint(20_000, 200_000))
            return link.fast

        self.targets[f"link:{name}"] = {"cut": cut, "slow": slow}
        return ["ip", "netns", "exec", link.name], link.host

    def _add(self, target: str, process: Process) -> None:
        def end(how: signal.Signals, _: random.Random) -> Heal:
            process.end(how)
            return process.start

        self.targets[target] = {
            "kill": partial(end, signal.SIGKILL),
            "stop": partial(end, signal.SIGTERM),
            "freeze": _freeze(process.signal),
        }

    def _end_processes(self) -> None:
        for process in self.processes:
            process.end()


@contextmanager
def running(plan: Plan, folder: Path) -> Iterator[Scene]:
    """A scene in an empty folder, which keeps what was written there when it ends."""
    with ExitStack() as stack:
        yield Scene(plan, folder, stack)


def keep(scene: Scene, folder: Path) -> None:
    """Copy what stands on disks in memory, which go with the scene."""
    for device in scene.devices:
        outbox = Path(device.config.outbox)
        if outbox.parent.name == "disk":
            shutil.copytree(outbox.parent, folder / device.name / "disk-kept")
    if scene.plan.store == "sqlite" and "store-disk" in scene.targets:
        shutil.copytree(Path(scene.store).parent, folder / "store-kept")


def _freeze(send: Callable[[signal.Signals], None]) -> Begin:
    def begin(_: random.Random) -> Heal:
        send(signal.SIGSTOP)
        return lambda: send(signal.SIGCONT)

    return begin


def _fill(disk: Disk, after: Heal = lambda: None) -> Begin:
    def begin(_: random.Random) -> Heal:
        disk.fill()

        def heal() -> None:
            disk.free()
            after()

        return heal

    return begin


def _both(one: Begin, other: Begin, chance: random.Random) -> Heal:
    heals = [one(chance), other(chance)]

    def heal() -> None:
        for each in heals:
            each()

    return heal


def _nothing(_: random.Random) -> Heal:
    return lambda: None


def _jump(process: Process, most_ns: int, chance: random.Random) -> Heal:
    """The wall clock goes wrong by up to so much, is right again, or says that it is 1970."""
    shift_ns = chance.choice([0, -time.time_ns(), *(chance.randint(-most_ns, most_ns) for _ in range(4))])
    if most_ns < DAY_NS:
        shift_ns = max(shift_ns, -most_ns)  # a host has a clock that is kept
    process.shift(shift_ns)
    return lambda: None


def _free_port(chance: random.Random) -> int:
    for port in chance.sample(PORTS, k=100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104  # as the broker will
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
