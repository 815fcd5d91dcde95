"""Served inferences become drift records in the collector's store, over a real broker."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from ferryman.devices import topics
from ferryman.devices.agent.agent import Agent, AgentConfig
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.profiler.drift import sketch_of
from ferryman.profiler.drift_distance import distances, merge
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.envelope import EnvelopeV1
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.install import install
from tests.support.agent import StatusWatch
from tests.support.mosquitto import Mosquitto
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.telemetry import collecting, until


@contextmanager
def running(broker, root, drift_s=1.0):
    stop = threading.Event()
    agent = Agent(AgentConfig(device="pi", root=root, broker=broker, drift_s=drift_s))
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    try:
        with StatusWatch(broker) as status:
            status.wait_for(lambda s: s.online)
        yield
    finally:
        stop.set()
        thread.join()


def put(tmp_path, root, added):
    package = write_tiny_package(tmp_path / f"{added:g}.ferry", added=added)
    install(package, root, golden=lambda _directory, _manifest: ())
    return package


def ask(client, shift, count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        client.infer([(random.standard_normal((1, 4)) + shift).astype(np.float32)])


def inferences(store):
    return sum(found.drift.inferences for found in store.drift())


def test_what_is_served_reaches_the_store_and_shifted_inputs_show(tmp_path):
    root = tmp_path / "root"
    first = put(tmp_path, root, 1.0)
    store = open_store(tmp_path / "store.sqlite")
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        with running(broker.config, root), AgentClient(broker.config, "pi") as client:
            ask(client, 0.0, 120, 0)
            until(lambda: inferences(store) == 120)  # all by time alone
            ask(client, 0.0, 120, 1)
            until(lambda: inferences(store) == 240)
            ask(client, 1.0, 120, 2)
            until(lambda: inferences(store) == 360)
            second = put(tmp_path, root, 2.0)
            ask(client, 0.0, 5, 3)
        until(lambda: inferences(store) == 365)  # what was left when the agent ended
    old = [found.drift for found in reversed(store.drift(device="pi", package=sha256_of(first)))]
    new = store.drift(package=sha256_of(second))
    assert sum(found.drift.inferences for found in new) == 5
    assert store.drift(device="another") == []
    assert {(one.variant, one.interpreter) for one in old} <= {
        ("fp32-tflite", i) for i in ("ai-edge-litert", "tflite-runtime")
    }
    assert [(t.name, t.role) for t in old[0].tensors] == [("x", "input"), ("y", "output")]
    assert all(one.from_ns <= one.to_ns <= other.from_ns for one, other in itertools.pairwise(old))

    counts = np.cumsum([one.inferences for one in old])
    reference, same, shifted = (
        [one for one, count in zip(old, counts, strict=True) if least < count <= most]
        for least, most in ((0, 120), (120, 240), (240, 360))
    )
    for near, far in zip(distances(reference, same), distances(reference, shifted), strict=True):
        assert near.kolmogorov_smirnov < 0.1  # two samples of 480 values: 0.09 by chance in one of 20
        assert 0.28 < far.kolmogorov_smirnov < 0.48  # 0.383 in truth
        assert near.population_stability < 0.08
        assert far.population_stability > 0.25
    x, y = ([t for one in reference for t in one.tensors if t.name == name] for name in "xy")
    assert merge(y).quantiles([0.1, 0.5, 0.9]) == pytest.approx(merge(x).quantiles([0.1, 0.5, 0.9]) + 1, abs=0.2)
    store.close()


def test_a_hostile_sketch_is_quarantined_and_the_collector_goes_on(tmp_path):
    sketch = sketch_of([np.arange(1000, dtype=np.float32)], "x")
    record = Drift(
        package_name="net",
        package_sha256="a" * 64,
        variant="fp32",
        interpreter="executorch",
        from_ns=1,
        to_ns=2,
        inferences=3,
        library="datasketches 5.2.0",
        tensors=(sketch,),
    )
    built = msgspec.to_builtins(record)
    random = np.random.default_rng(0)
    store = open_store(tmp_path / "store.sqlite")
    outbox = Outbox(tmp_path / "outbox.sqlite")
    with Mosquitto(tmp_path) as broker, collecting(broker.config, store):
        link = Link(broker.config, "evil")
        link.start()
        link.wait_ready(60)
        for number in range(1, 41):
            data = bytearray(sketch.sketch)
            for position in random.choice(
                [*range(8, 16), 18], 3, replace=False
            ):  # count, levels: the library dies of them
                data[position] ^= number
            built["tensors"][0]["sketch"] = bytes(data)
            envelope = EnvelopeV1(
                device="pi",
                boot="b",
                sequence=number,
                time_ns=1,
                kind="drift",
                body=msgspec.Raw(msgspec.json.encode(built)),
            )
            link.publish(Message(topic=topics.telemetry("pi"), payload=encode(envelope)))
        good = EnvelopeV1(device="pi", boot="b", sequence=99, time_ns=1, kind="drift", body=msgspec.Raw(encode(record)))
        link.publish(Message(topic=topics.telemetry("pi"), payload=encode(good)))
        until(lambda: store.totals().quarantined == 40 and store.totals().records == 1)
        link.stop()
    assert [found.drift for found in store.drift()] == [record]
    assert all("body is no drift" in bad.reason and "sketch" in bad.reason for bad in store.quarantine())
    outbox.close()
    store.close()
