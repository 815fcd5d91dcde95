"""The agent of the device environment, over a real broker, with real interpreters."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import psutil
import pytest

from ferryman.devices import topics
from ferryman.devices.agent import agent as agent_module
from ferryman.devices.agent.desk import QUEUE_MAX
from ferryman.devices.agent.outbox import BODY_MAX_BYTES
from ferryman.devices.agent.recorder import UNRECORDED_MAX, as_record
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.fleet.store.store import open_store
from ferryman.devices.mqtt import Link, Message
from ferryman.profiler.stats import summarize
from ferryman.runtime.contracts.energy import Energy, EnergySource, EnergyWindow
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    RequestTimeout,
    RuntimeCrash,
    RuntimeFault,
)
from ferryman.runtime.contracts.measurement import KEPT_MAX, ProfileSpec
from ferryman.runtime.contracts.messages import InferRequest, Request, Response, StatusRequest
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.samples import Samples
from ferryman.runtime.contracts.tensor import Tensor, pack, to_tensors, unpack
from ferryman.runtime.install import install
from ferryman.runtime.package import open_package
from ferryman.runtime.slots import SlotStore
from tests.support.agent import AgentProcess, StatusWatch, unread_bytes
from tests.support.disk import disk_free, small_disk
from tests.support.interpreters import DEVICE_PYTHON
from tests.support.measurements import measurement
from tests.support.mosquitto import Mosquitto
from tests.support.packages import sha256_of, write_tiny_package
from tests.support.telemetry import collecting, until

pytestmark = pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device; make .venv-device/.ready")
X = np.arange(4, dtype=np.float32).reshape(1, 4)
NOTICE_S = agent_module.POLL_S + 60


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto.config


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def put(tmp_path, root):
    """Install y = x + added on the device, as push does: another process than the agent's."""

    def install_adding(added):
        package = write_tiny_package(tmp_path / f"{added:g}.ferry", added=added)
        install(package, root, golden=lambda _directory, _manifest: ())
        return package

    return install_adding


@pytest.fixture
def agent(broker, root, put):
    """Serving y = x + 1."""
    put(1.0)
    with AgentProcess(broker, root) as process:
        yield process


@pytest.fixture
def client(broker, agent):
    with StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
        status.wait_for(lambda s: s.online)
        yield client


def added(client, **options):
    """What the served model adds to its input."""
    (output,) = client.infer([X], **options).outputs
    return float((output.to_array() - X)[0, 0])


def worker(agent):
    """The one process that runs the artifact."""
    (found,) = agent.workers()
    return found


# Status.


def test_birth_tells_what_is_served_and_what_can_run_it(broker, root, put):
    package = put(1.0)
    with StatusWatch(broker) as status, AgentProcess(broker, root):
        born = status.wait_for(lambda s: s.online)
    assert (born.device, born.package_name, born.package_sha256) == ("pi", "add-1", sha256_of(package))
    assert set(born.interpreters) == {"executorch", "ai-edge-litert", "tflite-runtime"}
    assert born.boot
    assert born.ferryman


def test_a_killed_agent_is_offline_by_its_last_will_and_its_worker_ends(broker, agent, client):
    added(client)
    orphan = worker(agent)
    with StatusWatch(broker) as status:
        status.wait_for(lambda s: s.online)
        agent.kill()
        status.wait_for(lambda s: not s.online)
    psutil.wait_procs([orphan], timeout=60)
    assert not orphan.is_running()


def test_sigterm_says_offline_and_leaves_no_process(broker, agent, client):
    added(client)
    child = worker(agent)
    with StatusWatch(broker) as status:
        agent.process.terminate()
        assert agent.wait(60) == 0
        status.wait_for(lambda s: not s.online)
    assert not child.is_running()
    assert "Traceback" not in agent.log.read_text()


def test_status_is_answered_on_request(client):
    status = client.status()
    assert (status.online, status.package_name) == (True, "add-1")


# Inference.


def test_inference_equals_the_golden_outputs_on_every_interpreter(tmp_path, client):
    with open_package(tmp_path / "1.ferry") as package:
        golden = package.golden()
    for interpreter in ("ai-edge-litert", "tflite-runtime"):
        for vector in golden:
            reply = client.infer([tensor.to_array() for tensor in vector.inputs], interpreter=interpreter)
            assert (reply.variant, reply.interpreter) == ("fp32-tflite", interpreter)
            assert reply.duration_ns > 0
            for found, expected in zip(reply.outputs, vector.outputs, strict=True):
                np.testing.assert_array_equal(found.to_array(), expected.to_array(), strict=True)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ([], "expected 1 inputs .* found 0"),
        ([X, X], "expected 1 inputs .* found 2"),
        ([X[0]], r"input x: expected float32\[1, 4\] x, found shape \[4\]"),
        ([np.ones((2, 4), np.float32)], "input x: expected"),
        ([X.astype(np.float64)], "found dtype float64"),
        ([X.astype(np.int64)], "found dtype int64"),
    ],
)
def test_inputs_that_do_not_fit_are_the_callers_fault(client, inputs, match):
    with pytest.raises(CallerError, match=match):
        client.infer(inputs)
    assert added(client) == 1


def test_a_malformed_tensor_is_the_callers_fault(client):
    bad = Tensor(dtype="float32", shape=(1, 4), data=b"short")
    with pytest.raises(CallerError, match="takes 16 bytes, found 5"):
        client._ask(InferRequest(inputs=(bad,)), type(client.infer([X])), 10)


def test_names_that_are_not_there_are_the_callers_fault(client):
    with pytest.raises(CallerError, match="no variant 'nope'; there are: fp32-tflite"):
        client.infer([X], variant="nope")
    with pytest.raises(CallerError, match="interpreter 'onnx' does not run that; those that do: ai-edge-litert"):
        client.infer([X], interpreter="onnx")
    with pytest.raises(CallerError, match="interpreter 'executorch' does not run that"):
        client.infer([X], interpreter="executorch")


def test_an_agent_without_a_package_says_so_and_serves_the_first_one_pushed(broker, root, put):
    with AgentProcess(broker, root), StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
        assert status.wait_for(lambda s: s.online).package_name is None
        with pytest.raises(DeviceError, match=r"no package is active in .*; push one"):
            client.infer([X])
        put(1.0)
        status.wait_for(lambda s: s.package_name == "add-1", NOTICE_S)
        assert added(client) == 1


# Slots.


def test_a_package_pushed_while_serving_is_picked_up_and_a_rollback_too(broker, root, put, client):
    with StatusWatch(broker) as status:
        assert added(client) == 1
        put(2.0)
        assert added(client) == 2
        status.wait_for(lambda s: s.package_name == "add-2", NOTICE_S)
        SlotStore(root).rollback()
        assert added(client) == 1
        status.wait_for(lambda s: s.package_name == "add-1", NOTICE_S)


def test_a_new_slot_leaves_no_worker_of_the_old_one(put, agent, client):
    for value in (2.0, 3.0, 4.0):
        put(value)
        assert added(client) == value
    assert len(agent.workers()) == 1


def test_a_damaged_slot_is_the_devices_fault_until_it_is_pushed_anew(broker, root, put):
    put(1.0)
    artifact = SlotStore(root).directory("a") / "artifacts" / "model.tflite"
    data = bytearray(artifact.read_bytes())
    data[-20] ^= 1
    artifact.write_bytes(data)
    with AgentProcess(broker, root), StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
        status.wait_for(lambda s: s.online)
        for _ in range(2):
            with pytest.raises(DeviceError, match=r"slot a \(add-1\): .*; push the package again"):
                client.infer([X])
        put(1.0)
        assert added(client) == 1


def test_an_artifact_damaged_while_it_is_served_gets_no_new_worker_and_no_profile(tmp_path, root, put, agent, client):
    assert added(client) == 1
    artifact = SlotStore(root).directory("a") / "artifacts" / "model.tflite"
    with artifact.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-20, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DeviceError, match=r"slot a \(add-1\): .*; push the package again"):
        client.profile(sha256_of(tmp_path / "1.ferry"), ProfileSpec(runs=1))
    with pytest.raises(DeviceError, match=r"slot a \(add-1\): .* damaged; push the package again"):
        client.infer([X])
    assert agent.workers() == []
    put(1.0)
    assert added(client) == 1


def test_an_agent_on_a_full_disk_serves_and_sends_what_it_measured_once_there_is_room(tmp_path, broker):
    with small_disk(tmp_path / "disk") as disk:
        root = disk / "root"
        package = write_tiny_package(tmp_path / "1.ferry")
        install(package, root, golden=lambda _directory, _manifest: ())
        with AgentProcess(broker, root) as agent, StatusWatch(broker) as status:
            status.wait_for(lambda s: s.online)
            agent.process.terminate()
            assert agent.wait(60) == 0
        (disk / "other").write_bytes(bytes(disk_free(disk)))
        with AgentProcess(broker, root) as agent, StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
            born = status.wait_for(lambda s: s.online)
            assert (born.package_name, born.outbox_pending) == ("add-1", 1)
            assert added(client) == 1
            spec = ProfileSpec(runs=1, interpreters=("tflite-runtime",))
            assert len(client.profile(sha256_of(package), spec)) == 1
            assert client.status().outbox_pending == 2
            time.sleep(2.5 * agent_module.POLL_S)
            assert agent.log.read_text().count("kept in memory") == 1  # not once a second
            (disk / "other").unlink()
            store = open_store(tmp_path / "store.sqlite")
            with collecting(broker, store):
                until(lambda: bool(store.measurements(device="pi")))
            store.close()
            assert client.status().outbox_dropped == 0


def test_what_a_full_disk_keeps_out_for_too_long_is_counted_as_dropped(tmp_path, monkeypatch):
    agent = agent_module.Agent(
        agent_module.AgentConfig(device="pi", root=tmp_path, broker=BrokerConfig(host="127.0.0.1", port=1))
    )

    def full(*_):
        raise DeviceError("full")

    append = agent._outbox.append
    monkeypatch.setattr(agent._outbox, "append", full)
    for n in range(UNRECORDED_MAX + 3):
        agent._recorder.put([("measurement", measurement(started_at_ns=n))])
    assert (agent._presence.status(None, None).outbox_pending, agent._presence.status(None, None).outbox_dropped) == (
        UNRECORDED_MAX,
        3,
    )
    monkeypatch.setattr(agent._outbox, "append", append)
    agent._recorder.put([])
    assert agent._outbox.counts().records == UNRECORDED_MAX
    assert (agent._presence.status(None, None).outbox_pending, agent._presence.status(None, None).outbox_dropped) == (
        UNRECORDED_MAX,
        3,
    )
    agent._outbox.close()


def test_an_agent_with_a_damaged_store_is_online_and_says_what_is_wrong(broker, root, put):
    put(1.0)
    (root / "state.json").write_text("{")
    with AgentProcess(broker, root) as agent, StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
        assert status.wait_for(lambda s: s.online).package_name is None
        for ask in (client.status, lambda: client.infer([X])):
            with pytest.raises(DeviceError, match="is not a slot state"):
                ask()
        time.sleep(2.5 * agent_module.POLL_S)
        assert agent.log.read_text().count(" ERROR ") == 1  # not once a second


# Profiling.


def test_a_profile_is_answered_and_reaches_the_collector(broker, tmp_path, client):
    store = open_store(tmp_path / "store.sqlite")
    spec = ProfileSpec(runs=5, starts=2, warmup_runs=1, interpreters=("tflite-runtime",))
    try:
        with collecting(broker, store):
            (measurement,) = client.profile(sha256_of(tmp_path / "1.ferry"), spec)
            assert (measurement.package_name, measurement.interpreter) == ("add-1", "tflite-runtime")
            assert len(measurement.samples_ns) == 10
            until(lambda: bool(store.measurements(device="pi")))
            (stored,) = store.measurements(device="pi")
        assert stored.measurement == measurement
    finally:
        store.close()
    assert added(client) == 1


def test_a_profile_of_another_package_is_refused(client):
    with pytest.raises(DeviceError, match=r"package 0{12} is not active here, add-1 [0-9a-f]{12} is; push it first"):
        client.profile("0" * 64, ProfileSpec(runs=1))


def test_whoever_asks_does_not_choose_code_to_run(tmp_path, client):
    with pytest.raises(CallerError, match="may not choose"):
        client.profile(sha256_of(tmp_path / "1.ferry"), ProfileSpec(meter="python:os"))


def test_a_profile_that_names_what_is_not_there_is_the_callers_fault(tmp_path, client):
    sha256 = sha256_of(tmp_path / "1.ferry")
    for spec in (ProfileSpec(variants=("nope",)), ProfileSpec(interpreters=("onnx",)), ProfileSpec(runs=0)):
        with pytest.raises(CallerError):
            client.profile(sha256, spec)


def test_what_a_record_cannot_hold_is_thinned_out_of_it_and_said(caplog):
    readings = 50_000
    window = EnergyWindow(
        energy_j=6.0, window_s=2.0, runs=3, times_ns=tuple(range(10**9, 10**9 + readings)), values=(3.0,) * readings
    )
    source = EnergySource(name="a meter", rails=("all",), unit="W", resolution=0.1, renewed_s=1.0, uncertainty=0.01)
    whole = msgspec.structs.replace(
        measurement(), energy=Energy(source=source, active=window, idle=window, error_j=0.1, net_error_j=0.1)
    )
    kept = as_record(whole)
    assert len(encode(kept)) <= BODY_MAX_BYTES < len(encode(whole))
    assert (kept.energy.active.values, kept.energy.active.energy_j) == ((), 6.0)
    assert kept.starts == whole.starts  # of three samples nothing can be left out
    assert "no energy readings" in caplog.text
    assert as_record(measurement()) == measurement()


def test_the_most_durations_fit_a_record_however_little_they_pack():
    random = np.random.default_rng(0)
    noise = [Samples.of(random.integers(0, 2**40, 10**5), KEPT_MAX // 5) for _ in range(10)]
    (start,) = measurement().starts
    starts = tuple(msgspec.structs.replace(start, warmup=noise[n], samples=noise[n + 5]) for n in range(5))
    whole = msgspec.structs.replace(measurement(), starts=starts)
    kept = as_record(whole)
    assert len(encode(kept)) <= BODY_MAX_BYTES
    assert summarize(kept.starts[0].samples).count == 10**5


def suspended_measurement(agent):
    """The process that measures, at work and never done."""
    found = []

    def measures(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            return "measure" in " ".join(process.cmdline())

    until(lambda: bool(found.extend(filter(measures, agent.workers())) or found))
    (measuring,) = found
    measuring.suspend()
    return measuring


def test_a_profile_ends_with_the_time_of_its_request(tmp_path, agent, client):
    endless = ProfileSpec(runs=1_000_000, warmup_runs=1_000_000, starts=5)
    with pytest.raises((RuntimeFault, RequestTimeout), match=r"took longer|no answer|in time"):
        client.profile(sha256_of(tmp_path / "1.ferry"), endless, timeout_s=2.0)
    until(lambda: not agent.workers())
    assert added(client) == 1


def test_a_profile_nobody_waits_for_any_more_is_ended(tmp_path, agent, client):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.profile, sha256_of(tmp_path / "1.ferry"), ProfileSpec(), timeout_s=60.0)
        measuring = suspended_measurement(agent)
        (request_id,) = client._waiting
        client._cancel("of nobody")
        client._cancel(request_id)
        with pytest.raises(RuntimeFault, match=r"measuring fp32-tflite on .* was cancelled"):
            asked.result(60)
    assert not measuring.is_running()
    assert added(client) == 1


def test_the_log_tells_of_installs_requests_and_profiles(tmp_path, broker, put, agent, client):
    assert added(client) == 1
    with pytest.raises(CallerError):
        client.infer([])
    client.profile(sha256_of(tmp_path / "1.ferry"), ProfileSpec(runs=3, starts=1, interpreters=("tflite-runtime",)))
    until(lambda: "request profile" in agent.log.read_text())
    log = agent.log.read_text()
    assert re.search(r"slot a serves add-1 [0-9a-f]{12}\n", log)
    assert re.search(r"request infer [0-9a-f]{32}: done in [0-9.]+ s\n", log)
    assert re.search(r"request infer [0-9a-f]{32}: caller: expected 1 inputs.* in [0-9.]+ s\n", log)
    assert "profile round 1/1: fp32-tflite on tflite-runtime\n" in log
    put(2.0)
    until(lambda: "slot b serves add-2" in agent.log.read_text())


def test_the_reply_names_the_outputs(client):
    assert client.infer([X]).names == ("y",)


# Crashes, hangs, floods.


def test_a_worker_that_dies_is_reported_and_the_next_request_works(agent, client):
    assert added(client) == 1
    worker(agent).kill()
    with pytest.raises(RuntimeCrash, match=r"the process that ran ai-edge-litert on model\.tflite died of SIGKILL"):
        client.infer([X])
    assert added(client) == 1
    assert len(agent.workers()) == 1


def test_a_worker_that_hangs_is_ended_in_time_and_the_next_request_works(agent, client):
    assert added(client) == 1
    hung = worker(agent)
    hung.suspend()
    with pytest.raises((RuntimeFault, RequestTimeout)):
        client.infer([X], timeout_s=1.0)
    assert added(client) == 1
    assert not hung.is_running()


def test_more_requests_than_the_queue_holds_are_told_that_it_is_busy(agent, client):
    assert added(client) == 1
    worker(agent).suspend()

    def ask(_, timeout_s=4.0):
        try:
            return added(client, timeout_s=timeout_s)
        except (DeviceError, RequestTimeout) as error:
            return error

    count = QUEUE_MAX + 5
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(ask, range(count)))
    busy = [answer for answer in answers if "busy: 16 requests are waiting" in str(answer)]
    assert 4 <= len(busy) <= 5  # one more where the first was not taken out of the queue yet
    deadline = time.monotonic() + 60
    while isinstance(answer := ask(0, 30.0), DeviceError) and time.monotonic() < deadline:
        time.sleep(0.1)  # the queue is being emptied
    assert answer == 1


@pytest.mark.parametrize("timeout_s", [float("nan"), 0.0, -1.0])
def test_a_request_without_time_is_not_begun(broker, client, timeout_s):
    with pytest.raises(RequestTimeout, match="waited longer than its"):
        raise_for(answer_to(broker, StatusRequest(), timeout_s=timeout_s))
    assert added(client) == 1


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e300])
def test_a_request_with_all_the_time_there_is_is_answered_as_any_other(broker, client, timeout_s):
    for value in (5.0, 7.0):
        x = np.full((1, 4), value, np.float32)
        body = answer_to(broker, InferRequest(inputs=to_tensors([x])), timeout_s=timeout_s).body
        np.testing.assert_array_equal(body.outputs[0].to_array(), x + 1)
    assert added(client) == 1


def raise_for(response):
    from ferryman.runtime.contracts.errors import from_wire

    raise from_wire(response.body.error)


def answer_to(broker, body, *, timeout_s=60.0, reply_to=None, wait_s=60.0):
    """Send a request by hand; the response, or None."""
    reply_to = reply_to or topics.response("pi", "byhand")
    answers, arrived = [], threading.Event()

    def on_response(delivery):
        answers.append(unpack(delivery.payload, Response))
        arrived.set()

    link = Link(broker, "by-hand")
    link.subscribe(reply_to, on_response)
    link.start()
    try:
        link.wait_ready(60)
        request = Request(id="1", reply_to=reply_to, timeout_s=timeout_s, body=body)
        link.publish(Message(topic=topics.request("pi"), payload=pack(request)))
        arrived.wait(wait_s)
    finally:
        link.stop()
    return answers[0] if answers else None


def test_garbage_is_ignored(broker, agent, client):
    payloads = [
        b"",
        b"\xff" * 100,
        os.urandom(1000),
        b"\x91" * 100_000,
        msgspec.msgpack.encode({"id": 1}),
        msgspec.msgpack.encode({"id": "1", "reply_to": "x", "timeout_s": 1, "body": {"type": "reboot"}}),
        pack(Request(id="1", reply_to="", timeout_s=1, body=StatusRequest())),
    ]
    link = Link(broker, "garbage")
    link.start()
    try:
        link.wait_ready(60)
        for payload in payloads:
            link.publish(Message(topic=topics.request("pi"), payload=payload))
        assert added(client) == 1
    finally:
        link.stop()
    until(lambda: agent.log.read_text().count(", ignored") == len(payloads))
    assert "Traceback" not in agent.log.read_text()


def test_a_request_that_cannot_be_read_is_answered_where_it_says_whom(broker, agent, client):
    reply_to = topics.response("pi", "byhand")
    (answer,) = answers_to(
        broker,
        reply_to,
        msgspec.msgpack.encode(
            {"id": "7", "reply_to": reply_to, "timeout_s": 1, "body": {"type": "infer", "inputs": [], "variant": 5}}
        ),
    )
    assert answer.id == "7"
    with pytest.raises(CallerError, match=r"the request cannot be read: .*`\$\.body\.variant`"):
        raise_for(answer)
    assert added(client) == 1


def test_requests_fill_no_memory(broker, agent, client):
    assert added(client) == 1
    worker(agent).suspend()
    reply_to = topics.response("pi", "byhand")
    large = Tensor(dtype="uint8", shape=(topics.REQUEST_MAX_BYTES // 3,), data=bytes(topics.REQUEST_MAX_BYTES // 3))
    request = Request(id="1", reply_to=reply_to, timeout_s=20, body=InferRequest(inputs=(large,)))
    small = msgspec.structs.replace(request, body=InferRequest(inputs=to_tensors([X])))
    before = agent.process.memory_info().rss
    answers = answers_to(broker, reply_to, pack(small), *[pack(request)] * 6, count=3)
    assert [a.body.error.message for a in answers] == [
        f"busy: the requests that wait hold {topics.REQUEST_MAX_BYTES // 3 * 2 >> 20} MiB already; ask again later"
    ] * 3
    # What waits, what is being read, and copies of either that the allocator has not given back.
    assert agent.process.memory_info().rss - before < 3.5 * topics.REQUEST_MAX_BYTES


def test_a_request_that_is_too_large_never_reaches_the_agent(broker, agent, client):
    with pytest.raises(CallerError, match=r"a request may hold 67,108,864 bytes, found 67,10\d,\d+"):
        client.infer([np.zeros(topics.REQUEST_MAX_BYTES, np.uint8)])
    assert answers_to(broker, topics.response("pi", "x"), bytes(topics.REQUEST_MAX_BYTES + 4096), wait_s=1.0) == []
    assert added(client) == 1
    assert "cannot be read" not in agent.log.read_text()


def answers_to(broker, reply_to, *payloads, count=1, wait_s=60.0):
    """Send payloads by hand; the first `count` responses."""
    answers, enough = [], threading.Event()

    def on_response(delivery):
        answers.append(unpack(delivery.payload, Response))
        if len(answers) == count:
            enough.set()

    link = Link(broker, "by-hand")
    link.subscribe(reply_to, on_response)
    link.start()
    try:
        link.wait_ready(60)
        for payload in payloads:
            link.publish(Message(topic=topics.request("pi"), payload=payload))
        enough.wait(wait_s)
    finally:
        link.stop()
    return answers[:count]


def test_a_retained_request_is_not_carried_out(broker, root, put):
    put(1.0)
    reply_to = topics.response("pi", "by-hand")
    answers = []
    request = Request(id="1", reply_to=reply_to, timeout_s=5, body=StatusRequest())
    link = Link(broker, "by-hand")
    link.subscribe(reply_to, lambda delivery: answers.append(delivery.payload))
    link.start()
    try:
        link.wait_ready(60)
        link.publish(Message(topic=topics.request("pi"), payload=pack(request), retain=True))
        with AgentProcess(broker, root) as agent:
            until(lambda: "retained message, ignored" in agent.log.read_text())
            with StatusWatch(broker) as status, AgentClient(broker, "pi") as client:
                status.wait_for(lambda s: s.online)
                assert client.status().online
    finally:
        link.stop()
    assert not answers


@pytest.mark.parametrize(
    "reply_to",
    [
        "ferryman/v1/other/response/x",
        "ferryman/v1/pi/status",
        "ferryman/v1/pi/response/a/b",
        "anything",
        "ferryman/v1/pi/request",
    ],
)
def test_an_answer_somewhere_else_is_not_sent(broker, agent, client, reply_to):
    if reply_to == topics.request("pi"):
        link = Link(broker, "loop")
        link.start()
        link.wait_ready(60)
        request = Request(id="1", reply_to=reply_to, timeout_s=5, body=StatusRequest())
        link.publish(Message(topic=reply_to, payload=pack(request)))
        link.stop()
    elif reply_to.endswith("status"):
        with StatusWatch(broker) as status:
            before = status.wait_for(lambda s: s.online)
            send(broker, reply_to)
            time.sleep(0.5)
            assert status.seen[-1] == before
    else:
        assert answer_to(broker, StatusRequest(), reply_to=reply_to, wait_s=0.5) is None
    assert added(client) == 1
    until(lambda: f"wants its answer on {reply_to}, ignored" in agent.log.read_text())


def send(broker, reply_to):
    link = Link(broker, "sender")
    link.start()
    link.wait_ready(60)
    request = Request(id="1", reply_to=reply_to, timeout_s=5, body=StatusRequest())
    link.publish(Message(topic=topics.request("pi"), payload=pack(request)))
    link.stop()


# Ends.


def test_sigterm_in_the_middle_of_a_hung_request_ends_it(agent, client):
    assert added(client) == 1
    hung = worker(agent)
    hung.suspend()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(added, client, timeout_s=600)
        until(lambda: unread_bytes(hung) > 0)
        agent.process.terminate()
        assert agent.wait(60) == 0
        with pytest.raises(RuntimeCrash):
            asked.result(60)
    assert not hung.is_running()


@pytest.mark.slow
def test_sigterm_in_the_middle_of_a_profile_leaves_no_process(tmp_path, agent, client):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.profile, sha256_of(tmp_path / "1.ferry"), ProfileSpec(), timeout_s=60)
        children = [suspended_measurement(agent)]
        agent.process.terminate()
        agent.wait(60)
        gone, _ = psutil.wait_procs(children, timeout=60)
        assert len(gone) == len(children)
        assert asked.exception(90) is not None


def test_a_second_agent_on_the_same_root_is_refused(broker, root, agent, client):
    with AgentProcess(broker, root, device="other") as second:
        assert second.wait(60) == 1
        assert f"Error: device: another agent serves {root}; stop it first" in second.log.read_text()
    assert added(client) == 1


def test_an_agent_starts_again_where_one_was_killed(broker, root, agent, client):
    assert added(client) == 1
    agent.kill()
    until(lambda: not client._last_status.online)
    with AgentProcess(broker, root):
        until(lambda: client._last_status.online)
        assert added(client) == 1


def test_a_root_that_cannot_be_made_is_one_message(tmp_path, broker):
    (tmp_path / "file").touch()
    command = [str(DEVICE_PYTHON.with_name("ferryman")), "agent", "--device", "pi"]
    command += ["--broker", f"mqtt://127.0.0.1:{broker.port}", "--root", str(tmp_path / "file" / "root")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_interrupts_end_it_as_sigterm_does(agent, client):
    assert client.status().online
    agent.process.send_signal(signal.SIGINT)
    assert agent.wait(60) == 0
