"""Outbox and publisher against a real broker; a small receiver stands for the collector."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ferryman.devices.agent.modes import Modes, switch
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.publisher import POLL_S
from ferryman.devices.agent.spending import TelemetryConfig
from ferryman.runtime.contracts.envelope import Envelope, EnvelopeV1
from ferryman.runtime.contracts.record import Record
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import ONCE, Receiver, agent, carried, fill, until
from tests.unit.devices.agent.test_outbox import version_1

ROOT = Path(__file__).parents[2]


class Text(Record):
    text: str


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def test_many_records_go_in_few_messages_in_order(tmp_path, outbox):
    fill(outbox, 5000)
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver, agent(broker.config, outbox, limits=ONCE):
        until(lambda: outbox.counts().records == 0)
    assert receiver.sequences == list(range(1, 5001))
    assert len(receiver.envelopes) <= 10
    assert {payload[0] for payload in receiver.payloads} == {0x78}


def test_records_of_version_1_go_as_they_would_have_gone(tmp_path):
    version_1(tmp_path / "outbox.db").close()
    box = Outbox(tmp_path / "outbox.db")
    fill(box, 3)
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver, agent(broker.config, box, limits=ONCE):
        until(lambda: box.counts().records == 0)
    box.close()
    assert [(type(envelope), carried(envelope)) for envelope in receiver.envelopes] == [
        (EnvelopeV1, [4]),
        (EnvelopeV1, [6]),
        (Envelope, [7, 8, 9]),
    ]


def note(outbox: Outbox, size: int, count: int = 1) -> None:
    chance = random.Random(size)  # noqa: S311
    outbox.append_all([("note", Text(text=chance.randbytes(size // 2).hex())) for _ in range(count)])


@pytest.mark.parametrize("limit", ["message_size_limit 20000", "max_packet_size 20000"])
def test_a_broker_that_takes_only_small_messages_is_given_small_ones(tmp_path, outbox, limit):
    note(outbox, 1000, 300)
    with Mosquitto(tmp_path, limit) as broker, Receiver(broker.config) as receiver, agent(broker.config, outbox):
        until(lambda: outbox.counts().records == 0, 60)
    assert set(receiver.sequences) == set(range(1, 301))
    assert max(map(len, receiver.payloads)) <= 20_000


@pytest.mark.parametrize("limit", ["message_size_limit 20000", "max_packet_size 20000"])
def test_a_broker_of_3_1_1_that_does_not_say_so_is_given_small_ones_in_the_end(tmp_path, outbox, limit):
    note(outbox, 1000, 60)
    with Mosquitto(tmp_path, limit) as broker:
        config = msgspec.structs.replace(broker.config, only_3_1_1=True)
        with Receiver(broker.config) as receiver, agent(config, outbox):
            until(lambda: outbox.counts().records == 0, 60)
    assert set(receiver.sequences) == set(range(1, 61))


def test_offline_disconnects_and_full_connects_again(tmp_path, outbox):
    modes = Modes(tmp_path)
    with Mosquitto(tmp_path) as broker, Receiver(broker.config), agent(broker.config, outbox, mode=modes.now) as sender:
        until(lambda: sender._link.problem == "")
        switch(tmp_path, "offline")
        until(lambda: sender._link.problem == "paused")
        fill(outbox, 5)
        time.sleep(2 * POLL_S)
        assert outbox.counts().records == 5
        switch(tmp_path, "full")
        until(lambda: outbox.counts().records == 0)


def test_several_processes_append_while_one_sends(tmp_path, outbox):
    script = (
        "import sys; from pathlib import Path; from ferryman.devices.agent.outbox import Outbox;"
        "from tests.support.telemetry import fill; box = Outbox(Path(sys.argv[1])); [fill(box, 7) for _ in range(40)]"
    )
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver, agent(broker.config, outbox, limits=ONCE):
        writers = [subprocess.Popen([sys.executable, "-c", script, str(outbox.path)], cwd=ROOT) for _ in range(3)]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        until(lambda: outbox.counts().records == 0)
    assert receiver.sequences == list(range(1, 3 * 40 * 7 + 1))


def test_a_rate_is_kept_to_on_a_real_link(tmp_path, outbox):
    note(outbox, 1000, 20)
    config = TelemetryConfig(rate_bytes_s=10_000)
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver:
        begun = time.monotonic()
        with agent(broker.config, outbox, config=config):
            until(lambda: outbox.counts().records == 0, 60)
        took_s = time.monotonic() - begun
    total = sum(map(len, receiver.payloads))
    assert total - max(map(len, receiver.payloads)) <= 10_000 * took_s
