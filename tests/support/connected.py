"""Many devices in one process, a real MQTT connection each: `python -m tests.support.connected PORT FIRST COUNT`.

Each connects with its own client id and last will, tells its birth, sends its samples message by message, sends again
what has no receipt, and is done when it has receipts for all. Then a line says so; the connections stay until the end.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import time

from ferryman.devices import topics
from ferryman.devices.fleet.collector.framing import cut, read_publish, write_length, write_publish
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from tests.support.mqtt_load import BOOT, envelope

MESSAGES, SAMPLES = 10, 10
EVERY_S = 3.0
AGAIN_S = 30.0
KEEPALIVE_S = 60
CONNECTING_MAX = 200


def name(number: int) -> str:
    return f"sim-{number:05}"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def connect(device: str) -> bytes:
    """MQTT 3.1.1, clean session, a retained will of QoS 1 (section 3.1)."""
    will = encode(Status(device=device, online=False, birth=1, boot=BOOT))
    body = text("MQTT") + b"\x04\x2e" + KEEPALIVE_S.to_bytes(2, "big") + text(f"agent-{device}")
    body += text(topics.status(device)) + text(will)
    return b"\x10" + write_length(len(body)) + body


def subscribe(device: str) -> bytes:
    body = b"\0\1" + text(topics.receipt(device)) + b"\1"
    return b"\x82" + write_length(len(body)) + body


class Device:
    """From connecting to the last receipt."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._without = set(range(1, MESSAGES * SAMPLES + 1))
        self.sent_again = 0

    async def run(self, port: int, connecting: asyncio.Semaphore) -> None:
        async with connecting:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(connect(self._device))
            assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
            writer.write(subscribe(self._device))
            assert (await reader.readexactly(5))[-1] == 1
        birth = encode(Status(device=self._device, online=True, birth=1, boot=BOOT))
        writer.write(self._publish(topics.status(self._device), birth, 1, retain=True))
        listening = asyncio.create_task(self._listen(reader))
        sent_at: dict[int, float] = {}
        await asyncio.sleep(random.uniform(0, EVERY_S))  # noqa: S311
        for number in range(MESSAGES):
            self._send(writer, number)
            sent_at[number] = time.monotonic()
            await asyncio.sleep(EVERY_S)
        while self._without and not listening.done():
            for number, at in sent_at.items():
                if number * SAMPLES + 1 in self._without and time.monotonic() > at + AGAIN_S:
                    self.sent_again += 1
                    self._send(writer, number)
                    sent_at[number] = time.monotonic()
            await asyncio.sleep(0.2)
            if time.monotonic() % KEEPALIVE_S < 0.2:
                writer.write(b"\xc0\0")
        await listening
        self.writer = writer

    def _send(self, writer: asyncio.StreamWriter, number: int) -> None:
        payload = envelope(self._device, number * SAMPLES + 1, SAMPLES)
        writer.write(self._publish(topics.telemetry(self._device), payload, number + 2))

    @staticmethod
    def _publish(topic: str, payload: bytes, identifier: int, *, retain: bool = False) -> bytes:
        packet = write_publish(topic, payload, v5=False, identifier=identifier)
        return bytes((packet[0] | retain,)) + packet[1:]

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        data = b""
        while self._without:
            read = await reader.read(65536)
            assert read, f"{self._device}: the broker closed the connection"
            packets, data, _ = cut(data + read)
            for first, body in packets:
                if first & 0xF0 == 0x30:
                    _, _, payload, _ = read_publish(first, body, v5=False)
                    for begin, end in decode(payload, Receipt).ranges:
                        self._without.difference_update(range(begin, end + 1))


async def run(port: int, first: int, count: int) -> None:
    connecting = asyncio.Semaphore(CONNECTING_MAX)
    devices = [Device(name(number)) for number in range(first, first + count)]
    await asyncio.gather(*(device.run(port, connecting) for device in devices))
    print(count, sum(device.sent_again for device in devices), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def raise_limit() -> int:
    """As many open files as the system lets this process and its children have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


if __name__ == "__main__":
    raise_limit()
    asyncio.run(run(*map(int, sys.argv[1:])))
