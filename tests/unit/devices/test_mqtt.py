from __future__ import annotations

import socket
import time

import pytest

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Link, backoff_s
from ferryman.runtime.contracts.errors import LinkError
from tests.support.mosquitto import Mosquitto


def test_backoff_doubles_up_to_its_cap_with_jitter():
    for attempt, whole in ((0, 1.0), (1, 2.0), (3, 8.0), (10, 30.0), (10_000, 30.0)):
        waits = {backoff_s(attempt, 1.0, 30.0) for _ in range(50)}
        assert len(waits) > 1
        assert all(whole / 2 <= wait <= whole for wait in waits)


def test_two_clients_of_one_name_do_not_throw_each_other_out_without_end(tmp_path, caplog):
    """MQTT 5, 3.1.4: the newcomer takes over the session. A loss right after connecting must not reset the backoff."""
    with Mosquitto(tmp_path) as broker:
        links = [Link(broker.config, "twin") for _ in range(2)]
        ready = []
        for link in links:
            link.on_ready(lambda: ready.append(1))
            link.start()
        time.sleep(4)
        for link in links:
            link.stop()
    assert 2 <= len(ready) <= 12
    assert "does another client call itself twin?" in caplog.text


def test_a_broker_that_takes_connections_and_says_nothing_is_called_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(BrokerConfig(host="127.0.0.1", port=silent.getsockname()[1]), "x")
        link.start()
        with pytest.raises(LinkError, match=r"not connected after 6 s: no answer within 5 s"):
            link.wait_ready(6)
        link.stop()
