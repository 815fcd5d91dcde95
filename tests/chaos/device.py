"""A device of a chaos run, as a process: appends numbered records to a real outbox and sends them over a real link.

Without `publish` only the appends: then a `ferryman agent` sends them.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ferryman.devices import topics
from ferryman.devices.agent.clock import read_clock
from ferryman.devices.agent.outbox import MAX_BYTES, Outbox
from ferryman.devices.agent.publisher import Publisher
from ferryman.devices.agent.window import Limits
from ferryman.devices.broker import parse_broker
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode, encode
from tests.chaos import mutations
from tests.chaos.bodies import record
from tests.chaos.journal import Journal

LIMITS = Limits(again_first_s=5.0, again_cap_s=20.0)


class DeviceConfig(Record):
    """What a device process is told."""

    name: str
    url: str
    outbox: str
    journal: str
    total: int
    batch_max: int = 100
    max_bytes: int = MAX_BYTES
    taken_bytes: int = 4 << 20
    """With so much in the outbox it waits, unless it overflows."""
    overflows: bool = False
    """Does not wait."""
    pause_s: float = 0.0
    """Between appends."""
    publish: bool = True
    mutation: str = ""


def produce(config: DeviceConfig, outbox: Outbox, wake: Callable[[], None], stop: threading.Event) -> None:
    """Append each number up to the total once, whatever happens, and write down what came of it."""
    journal = Journal(Path(config.journal))
    number = journal.next
    chance = random.Random(f"{config.name}/{number}")  # noqa: S311  # no secret
    while number <= config.total and not stop.is_set():
        if not _takes(config, outbox):
            stop.wait(0.01)
            continue
        count = min(chance.randint(1, config.batch_max), config.total + 1 - number)
        records = [record(config.name, n) for n in range(number, number + count)]
        journal.begin(number, count)
        made = read_clock()
        try:
            sequences = outbox.append_all(records, made)
        except DeviceError:
            journal.failed(number)
            stop.wait(0.05)
            continue
        journal.done(number, made.time_ns, sequences)
        number += count
        wake()
        if config.pause_s:
            stop.wait(config.pause_s)


def _takes(config: DeviceConfig, outbox: Outbox) -> bool:
    try:
        return config.overflows or outbox.counts().bytes < config.taken_bytes
    except DeviceError:
        return False


def main() -> None:
    config = decode(Path(sys.argv[1]).read_bytes(), DeviceConfig)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if config.mutation in mutations.DEVICE:
        mutations.apply(config.mutation)
    outbox = Outbox(Path(config.outbox), max_bytes=config.max_bytes)
    if not config.publish:
        produce(config, outbox, lambda: None, stop)
        stop.wait()
        return
    birth = 0

    def say(online: bool) -> Message:
        nonlocal birth
        birth += not online
        status = Status(device=config.name, online=online, birth=birth)
        return Message(topic=topics.status(config.name), payload=encode(status), retain=True)

    link = Link(parse_broker(config.url), f"agent-{config.name}", will=lambda: say(online=False))
    link.on_ready(lambda: link.publish(say(online=True)))
    options = {"limits": LIMITS, **mutations.publisher_options(config.mutation)}
    publisher = Publisher(outbox, config.name, link, **options)
    link.start()
    publisher.start()
    produce(config, outbox, publisher.wake, stop)
    stop.wait()
    publisher.stop()
    link.stop()
    outbox.close()


if __name__ == "__main__":
    main()
