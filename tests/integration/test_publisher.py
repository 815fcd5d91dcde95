"""Outbox and publisher against a real broker; a small receiver stands for the collector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.devices.agent.outbox import Outbox
from ferryman.runtime.contracts.envelope import Envelope, EnvelopeV1
from tests.support.mosquitto import Mosquitto
from tests.support.telemetry import Receiver, agent, carried, fill, until
from tests.unit.devices.agent.test_outbox import version_1


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


def test_many_records_go_in_few_messages_in_order(tmp_path, outbox):
    fill(outbox, 5000)
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver, agent(broker.config, outbox):
        until(lambda: outbox.counts().records == 0)
    assert receiver.sequences == list(range(1, 5001))
    assert len(receiver.envelopes) <= 10
    assert {payload[0] for payload in receiver.payloads} == {0x78}


def test_records_of_version_1_go_as_they_would_have_gone(tmp_path):
    version_1(tmp_path / "outbox.db").close()
    box = Outbox(tmp_path / "outbox.db")
    fill(box, 3)
    with Mosquitto(tmp_path) as broker, Receiver(broker.config) as receiver, agent(broker.config, box):
        until(lambda: box.counts().records == 0)
    box.close()
    assert [(type(envelope), carried(envelope)) for envelope in receiver.envelopes] == [
        (EnvelopeV1, [4]),
        (EnvelopeV1, [6]),
        (Envelope, [7, 8, 9]),
    ]
