"""Those who receive, as processes of their own: a collector, or a bare client that stores nothing.

`python -m tests.support.receivers collector URL DATABASE`, or `... bare-CLIENT URL COUNT` with one of BARE. Each writes
`ready` once it is subscribed, and then a line whenever there is something new: how many have come once, how many again,
CLOCK_MONOTONIC then, the seconds of CPU it has used, and the bytes it holds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig, parse_broker
from ferryman.devices.fleet.collector.bulk import BulkClient
from ferryman.devices.fleet.collector.run import Progress, run_collector

ROOT = Path(__file__).parents[2]
EVERY_S = 0.02


class Line(NamedTuple):
    """What a receiver said last."""

    new: int = 0
    duplicates: int = 0
    at_s: float = 0.0
    """CLOCK_MONOTONIC."""
    cpu_s: float = 0.0
    rss_bytes: int = 0


class Receiver:
    """One such process, from ready to its end."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self.last = Line()
        self.ready_cpu_s = 0.0
        self._changed = threading.Condition()
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "XDG_STATE_HOME": str(log.parent)}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.support.receivers", *arguments],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        self._log = log
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise AssertionError(log.read_text())
        self.ready_cpu_s = sum(psutil.Process(self.process.pid).cpu_times()[:2])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            new, duplicates, at_s, cpu_s, rss = text.split()
            with self._changed:
                self.last = Line(int(new), int(duplicates), float(at_s), float(cpu_s), int(rss))
                self._changed.notify_all()

    def wait(self, count: int, timeout_s: float) -> Line:
        """Once `count` have come."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.last.new >= count, timeout_s):
                raise AssertionError(f"{self.last}, waiting for {count}: {self._log.read_text()[-2000:]}")
            return self.last

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        status = self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@contextmanager
def receiver(*arguments: str, log: Path) -> Iterator[Receiver]:
    one = Receiver(*arguments, log=log)
    try:
        yield one
    finally:
        one.end()


class Teller:
    """Writes the lines."""

    def __init__(self) -> None:
        self._due_s = 0.0
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._said = (-1, -1)

    @staticmethod
    def ready() -> None:
        print("ready", flush=True)

    def tell(self, new: int, duplicates: int = 0, *, now: bool = False) -> None:
        at_s = time.monotonic()
        if (not now and at_s < self._due_s) or self._said == (new, duplicates):
            return
        with self._lock:
            self._due_s, self._said = at_s + EVERY_S, (new, duplicates)
            rss = self._process.memory_info().rss
            print(new, duplicates, f"{at_s:.6f} {sum(os.times()[:2]):.3f}", rss, flush=True)


def collect(broker: BrokerConfig, database: str) -> None:
    teller, stop = Teller(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    once = threading.Event()

    def ready(_: str) -> None:
        if not once.is_set():
            once.set()
            teller.ready()

    def on_progress(progress: Progress) -> None:
        teller.tell(progress.new, progress.duplicates, now=True)

    run_collector(broker, database, stop=stop, on_connected=ready, on_progress=on_progress)


class Counted:
    """Counts to the end; the last is told at once."""

    def __init__(self, total: int) -> None:
        self.done = threading.Event()
        self.count = 0
        self._total = total
        self._teller = Teller()

    def ready(self) -> None:
        self._teller.ready()

    def add(self, count: int = 1) -> None:
        self.count += count
        if self.count >= self._total:
            self._teller.tell(self.count, now=True)
            self.done.set()
        elif self.count % 512 < count:
            self._teller.tell(self.count)


def paho(broker: BrokerConfig, counted: Counted) -> None:
    """As its documentation has it: a callback for each message, acknowledged by paho."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    client = Client(CallbackAPIVersion.VERSION2, "bare", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = lambda *_: counted.add()
    client.on_subscribe = lambda *_: counted.ready()
    client.on_connect = lambda *_: client.subscribe(topics.ALL_TELEMETRY, qos=1)
    client.connect(broker.host, broker.port)
    client.loop_start()
    counted.done.wait()
    client.disconnect()
    client.loop_stop()


def bulk(broker: BrokerConfig, counted: Counted) -> None:
    """The collector's own way to receive, acknowledging at once and storing nothing."""
    from ferryman.devices.mqtt import Link

    def take(client: BulkClient, messages: list[tuple[bytes, bytes, bytes]]) -> None:
        client.send([identifier for _, identifier, _ in messages], ())
        counted.add(len(messages))

    link = Link(
        broker,
        "bare",
        manual_ack=True,
        receive_max=8000,
        new_client=lambda *arguments, **options: BulkClient(b"", (b"/telemetry",), take, *arguments, **options),
    )
    link.subscribe(topics.ALL_TELEMETRY, lambda _: None)
    link.on_ready(counted.ready)
    link.start()
    counted.done.wait()
    link.stop()


def gmqtt(broker: BrokerConfig, counted: Counted) -> None:
    """Acknowledged by gmqtt, before the callback."""
    from gmqtt import Client
    from gmqtt.mqtt.constants import MQTTv50

    async def main() -> None:
        client = Client("bare")
        end = asyncio.Event()

        def on_message(*_: object) -> int:
            counted.add()
            if counted.done.is_set():
                end.set()
            return 0

        client.on_message = on_message
        client.on_subscribe = lambda *_: counted.ready()
        await client.connect(broker.host, broker.port, version=MQTTv50)
        client.subscribe(topics.ALL_TELEMETRY, qos=1)
        await end.wait()
        await client.disconnect()

    asyncio.run(main())


def aiomqtt(broker: BrokerConfig, counted: Counted) -> None:
    """A loop over its messages; acknowledged by the paho in it."""
    from aiomqtt import Client, ProtocolVersion

    async def main() -> None:
        async with Client(broker.host, broker.port, protocol=ProtocolVersion.V5) as client:
            await client.subscribe(topics.ALL_TELEMETRY, qos=1)
            counted.ready()
            async for _ in client.messages:
                counted.add()
                if counted.done.is_set():
                    return

    asyncio.run(main())


BARE: dict[str, Callable[[BrokerConfig, Counted], None]] = {
    "paho": paho,
    "bulk": bulk,
    "gmqtt": gmqtt,
    "aiomqtt": aiomqtt,
}


def main() -> None:
    role, url, what = sys.argv[1:]
    if role == "collector":
        collect(parse_broker(url), what)
        return
    BARE[role.removeprefix("bare-")](parse_broker(url), Counted(int(what)))
    threading.Event().wait()


if __name__ == "__main__":
    main()
