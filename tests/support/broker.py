"""A broker for whoever has none: mosquitto where it is installed, else amqtt, which is Python all through."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import mosquitto

AMQTT = """\
import asyncio, sys
from amqtt.broker import Broker

async def main(port):
    access = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
    await Broker({"listeners": listeners, "plugins": access}).start()
    await asyncio.Event().wait()

asyncio.run(main(int(sys.argv[1])))
"""


@dataclass(frozen=True)
class RunningBroker:
    """Where it listens."""

    name: str
    url: str


@contextlib.contextmanager
def running_broker(folder: Path) -> Iterator[RunningBroker]:
    """Run a broker on a free loopback port, its log in `folder`."""
    if mosquitto.BINARY is not None:
        with mosquitto.Mosquitto(folder) as broker:
            yield RunningBroker("mosquitto", f"mqtt://127.0.0.1:{broker.config.port}")
        return
    with running_amqtt(folder) as port:
        yield RunningBroker("amqtt", f"mqtt://127.0.0.1:{port}?version=3.1.1")  # it is silent when asked for 5


@contextlib.contextmanager
def running_amqtt(folder: Path) -> Iterator[int]:
    """Run amqtt, which speaks MQTT 3.1.1 only; yields its port."""
    port = mosquitto.free_port()
    with (folder / "amqtt.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", AMQTT, str(port)], stdout=log, stderr=log)
        try:
            mosquitto.wait_for_port(port, 20)
            yield port
        finally:
            process.terminate()
            process.wait(60)
