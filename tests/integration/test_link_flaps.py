"""A device whose link is cut at random: every request is carried out once and answered."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ferryman.devices import mqtt, topics
from ferryman.devices.agent.agent import SESSION_S
from ferryman.devices.agent.desk import Desk
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.messages import InferReply, Status
from ferryman.runtime.contracts.record import encode
from tests.support.cable import Cable
from tests.support.mosquitto import Mosquitto

REQUESTS = 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_no_flap_loses_a_request_or_doubles_it(tmp_path, seed, caplog, monkeypatch):
    monkeypatch.setattr(mqtt, "RETRY_CAP_S", 0.3)  # connections that break at once are tried again ever later
    chance = random.Random(seed)  # noqa: S311  # no secret
    done: Counter[int] = Counter()

    def work(request, _left_s, _cancelled):
        (number,) = (int(tensor.to_array()[0]) for tensor in request.body.inputs)
        done[number] += 1
        time.sleep(0.1)
        return InferReply(outputs=request.body.inputs, duration_ns=1, variant="v", interpreter="i")

    with Mosquitto(tmp_path, "max_queued_messages 0") as broker, Cable(broker.config) as cable:
        link = Link(cable.config, "device", session_expiry_s=SESSION_S)
        desk = Desk("pi", link, work)
        stop = threading.Event()
        worker = threading.Thread(target=desk.work_until, args=(stop, lambda: None, lambda: None))
        online = Message(topic=topics.status("pi"), payload=encode(Status(device="pi", online=True)), retain=True)
        link.on_ready(lambda: link.publish(online))
        link.start()
        link.wait_ready(60)
        worker.start()

        def flap():
            while not stop.wait(chance.uniform(0.2, 1.0)):
                cable.cut()
                stop.wait(chance.uniform(0, 0.2))
                cable.mend()

        flapping = threading.Thread(target=flap)
        flapping.start()
        try:
            with AgentClient(broker.config, "pi") as client, ThreadPoolExecutor(4) as pool:
                answers = pool.map(lambda n: client.infer([np.array([n])], timeout_s=50), range(REQUESTS))
                assert [int(one.outputs[0].to_array()[0]) for one in answers] == list(range(REQUESTS))
        finally:
            stop.set()
            flapping.join()
            worker.join()
            cable.mend()
            link.stop()
    assert done == Counter(range(REQUESTS))
    assert caplog.text.count("connection lost") > 3
