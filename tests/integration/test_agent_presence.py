"""What the agent shows of its device, and what a broken link costs: the real agent, a real broker, a real store."""

from __future__ import annotations

import json
import queue
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import select

from ferryman.devices import topics
from ferryman.devices.agent.sparkplug.payload import _message
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.fleet.store.tables import records
from ferryman.devices.mqtt import Link, Message
from ferryman.runtime.contracts.messages import InferRequest, Request, Response, Status
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.telemetry import METRICS, LogLine, Sample
from ferryman.runtime.contracts.tensor import pack, to_tensors, unpack
from ferryman.runtime.install import install
from tests.support.agent import AgentProcess, StatusWatch, unread_bytes
from tests.support.cable import Cable
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.mosquitto import Mosquitto
from tests.support.packages import write_tiny_package
from tests.support.telemetry import collecting, until

pytestmark = pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto.config


@pytest.fixture
def root(tmp_path):
    """Of a device that serves y = x + 1."""
    install(write_tiny_package(tmp_path / "one.ferry", added=1.0), tmp_path / "root", golden=lambda *_: ())
    return tmp_path / "root"


class Ear:
    """Hears some topics, and may speak."""

    def __init__(self, broker, *names):
        self.heard = queue.Queue()
        self._link = Link(broker, f"ear-{abs(hash(names))}")
        for name in names:
            self._link.subscribe(name, self.heard.put)

    def __enter__(self):
        self._link.start()
        self._link.wait_ready(60)
        return self

    def __exit__(self, *_):
        self._link.stop()

    def say(self, topic, payload, **options):
        said = queue.Queue()
        self._link.publish(Message(topic=topic, payload=payload, **options), said.put)
        assert said.get(timeout=60) is None


def stored(store, kind, record):
    found = store.read(select(records.c.body).where(records.c.kind == kind).order_by(records.c.sequence))
    return [decode(body, record) for (body,) in found]


def test_samples_and_logs_reach_the_store_and_the_newest_is_kept_for_dashboards(broker, root, tmp_path):
    options = ["--sample", "1", "--home-assistant", "--sparkplug", "plant"]
    store = open_store(tmp_path / "store.sqlite")
    with (
        collecting(broker, store),
        Ear(broker, topics.live("pi")) as dashboard,
        Ear(broker, "homeassistant/#", "spBv1.0/#") as others,
        StatusWatch(broker) as status,
        AgentProcess(broker, root, options=options) as agent,
    ):
        status.wait_for(lambda s: s.online)
        with AgentClient(broker, "pi") as client:
            for _ in range(3):
                client.infer([X])
        dashboard.say(topics.request("pi"), b"\xc1 no request")
        live = decode(dashboard.heard.get(timeout=60).payload, Sample)
        assert set(live.values) | set(live.unavailable) == set(METRICS)
        until(lambda: sum(one.values["inferences"] for one in stored(store, "sample", Sample)) == 3, 60)
        served = [one for one in stored(store, "sample", Sample) if one.latencies_ms]
        assert sum(len(one.latencies_ms) for one in served) == 3
        assert all(one.package_sha256 for one in served)
        until(lambda: any("cannot be read" in line.message for line in stored(store, "log", LogLine)), 60)
        found = {}
        while len(found) < 3:
            delivery = others.heard.get(timeout=60)
            found.setdefault(delivery.topic, delivery.payload)
        assert json.loads(found["homeassistant/device/pi/config"])["device"]["name"] == "pi"
        birth = _message().FromString(found["spBv1.0/plant/NBIRTH/pi"])
        assert {metric.name for metric in birth.metrics} > set(METRICS)
        assert "spBv1.0/plant/NDATA/pi" in found
        online = status.seen[-1]
        agent.process.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0
        dead = status.wait_for(lambda s: not s.online) or status.seen[-1]
        assert (dead.online, dead.birth, dead.boot) == (False, online.birth, online.boot)
        assert online.birth > 0
        while others.heard.get(timeout=60).topic != "spBv1.0/plant/NDEATH/pi":
            pass
    store.close()


def test_each_connection_has_a_birth_of_its_own_over_restarts(broker, root):
    births = []
    with Ear(broker, topics.status("pi")) as ear:
        for _ in range(2):
            with AgentProcess(broker, root) as agent:
                agent.process  # noqa: B018  # it is there
                while not (said := decode(ear.heard.get(timeout=60).payload, Status)).online:
                    pass
                births.append(said.birth)
                agent.kill()
            while (said := decode(ear.heard.get(timeout=60).payload, Status)).online:
                pass
            assert said.birth == births[-1]
    assert births[1] > births[0] > 0


def test_a_request_waits_for_a_device_that_is_away_for_a_moment_and_a_stale_one_is_not_carried_out(broker, root):
    reply_to = topics.response("pi", "ear")
    with Ear(broker, reply_to) as ear, StatusWatch(broker) as status:
        with AgentProcess(broker, root) as agent:
            status.wait_for(lambda s: s.online)
            agent.kill()
        status.wait_for(lambda s: not s.online)
        for name, timeout_s in (("stale", 1), ("fresh", 60)):
            body = InferRequest(inputs=to_tensors([X]))
            request = Request(id=name, reply_to=reply_to, timeout_s=timeout_s, body=body)
            ear.say(topics.request("pi"), pack(request), expiry_s=timeout_s)
        time.sleep(2.1)
        with AgentProcess(broker, root):
            answer = unpack(ear.heard.get(timeout=60).payload, Response)
            assert answer.id == "fresh"
            np.testing.assert_array_equal(answer.body.outputs[0].to_array(), X + 1)
            assert ear.heard.empty()


def test_an_answer_survives_a_link_that_breaks_while_it_is_computed(broker, root):
    with Cable(broker) as cable, StatusWatch(broker) as status, AgentProcess(cable.config, root) as agent:
        first = status.wait_for(lambda s: s.online)
        with AgentClient(broker, "pi") as client, ThreadPoolExecutor(1) as pool:
            client.infer([X])
            (worker,) = agent.workers()
            worker.suspend()
            asked = pool.submit(client.infer, [X], timeout_s=60)
            until(lambda: unread_bytes(worker) > 0)
            cable.cut()
            status.wait_for(lambda s: not s.online)
            worker.resume()
            time.sleep(0.5)  # there is no way for the answer now
            assert not asked.done()
            cable.mend()
            again = status.wait_for(lambda s: s.online)
            np.testing.assert_array_equal(asked.result(60).outputs[0].to_array(), X + 1)
        assert again.birth > first.birth


def test_options_that_make_no_sense_are_one_message(broker, root):
    for options, said in (
        (["--sample", "0", "--home-assistant"], "--sample 0 takes none"),
        (["--sample", "0.5"], "--sample: expected 0 or 1 to 86,400 seconds, found 0.5"),
        (["--sample", "nan"], "--sample: expected"),
        (["--meter", "crystal:ball"], "no meter"),
        (["--sparkplug", "a/b"], "--sparkplug: expected a group's name"),
        (["--home-assistant", "a/+"], "--home-assistant: expected a prefix"),
    ):
        with AgentProcess(broker, root, options=options) as agent:
            assert agent.wait(60) == 1
        assert said in agent.log.read_text().splitlines()[-1]
