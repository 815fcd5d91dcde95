"""A load of MQTT messages that costs next to nothing to send: packets encoded beforehand, written as they are.

`python -m tests.support.mqtt_load PORT FILE COUNT RATE` sends FILE (packets of QoS 1, one after another) once a line
comes in on its standard input, at most RATE messages a second, and ends when the broker has acknowledged all.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ferryman.devices import topics
from ferryman.devices.fleet.collector.framing import write_publish

ROOT = Path(__file__).parents[2]
WINDOW = 4000
"""Messages without the broker's acknowledgement."""
_CHUNK = 100
_IDENTIFIERS = 60_000
BOOT = "59847469ac76d26d.5ed1cf13-3af4-4bfa-98a0-f7498931f709"
BORN_NS = time.time_ns()
"""Samples are of this hour: those of earlier ones would be rolled up meanwhile."""
_VALUES = {
    "inferences": 120.0,
    "errors": 0.0,
    "latency_ms": 4.31,
    "cpu_percent": 37.5,
    "memory_used_mb": 1204.4,
    "agent_memory_mb": 121.9,
    "temperature_c": 51.4,
    "throttled": 0.0,
}


def item(sequence: int, uptime_ns: int) -> list[object]:
    """One sample, as an agent takes it; each with values of its own, or compression would gain too much."""
    values = {name: round(value * (1 + sequence % 997 / 10_000), 3) for name, value in _VALUES.items()}
    body = {"period_s": 10.0, "values": values, "package_sha256": "5f" * 32}
    return [sequence, "sample", BORN_NS + uptime_ns, uptime_ns, True, body]


def envelope(device: str, first: int, count: int) -> bytes:
    """A message of `count` samples, `first` and those after it; compressed where it is several."""
    items = [item(sequence, sequence * 1_000_000) for sequence in range(first, first + count)]
    message = {"schema": 2, "device": device, "boot": BOOT, "historical": False, "items": items}
    plain = msgspec.json.encode(message)
    return plain if count == 1 else zlib.compress(plain)


def messages(devices: int, per_device: int, samples: int) -> Iterator[tuple[str, bytes]]:
    """Topic and payload: of each device in turn, its next `samples` samples."""
    names = [f"sim-{number:05}" for number in range(devices)]
    for turn in range(per_device):
        for name in names:
            yield topics.telemetry(name), envelope(name, turn * samples + 1, samples)


def write(path: Path, what: Iterable[tuple[str, bytes]]) -> int:
    """Encode them all into a file, a table of where each begins beside it; returns how many."""
    count, at = 0, 0
    with path.open("wb") as file, path.with_suffix(".at").open("wb") as table:
        for count, (topic, payload) in enumerate(what, 1):
            packet = write_publish(topic, payload, v5=False, identifier=count % _IDENTIFIERS + 1)
            at += file.write(packet)
            if count % _CHUNK == 0:
                table.write(at.to_bytes(8, "little"))
        table.write(at.to_bytes(8, "little"))
    return count


class Sender:
    """Ready to send when told."""

    def __init__(self, port: int, path: Path, count: int, per_s: float) -> None:
        command = [sys.executable, "-m", "tests.support.mqtt_load", str(port), str(path), str(count), str(per_s)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Until the broker has acknowledged all."""
        assert self._process.wait(60) == 0

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def sender(port: int, path: Path, count: int, per_s: float = math.inf) -> Iterator[Sender]:
    one = Sender(port, path, count, per_s)
    try:
        yield one
    finally:
        one.end()


def main() -> None:
    port, path, count, per_s = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    data = memoryview(path.read_bytes())
    table = path.with_suffix(".at").read_bytes()
    ends = [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 8)]
    broker = socket.create_connection(("127.0.0.1", port))
    broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name = f"load-{os.getpid()}".encode()
    variable = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
    broker.sendall(b"\x10" + bytes((len(variable),)) + variable)
    assert broker.recv(4) == b"\x20\x02\x00\x00"
    print("ready", flush=True)
    sys.stdin.readline()
    at = sent = acknowledged = 0
    began = time.monotonic()
    for end in [*ends, None]:
        while acknowledged // 4 < (count if end is None else sent - WINDOW):
            read = len(broker.recv(65536))
            assert read, "the broker closed the connection"
            acknowledged += read
        if end is not None:
            time.sleep(max(0.0, began + sent / per_s - time.monotonic()))
            broker.sendall(data[at:end])
            at, sent = end, min(count, sent + _CHUNK)


if __name__ == "__main__":
    main()
