"""Request and response over a real broker; what answers here is a few lines, not the agent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.client import AgentClient
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError, PackageError, RequestTimeout, to_wire
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.messages import (
    CancelRequest,
    Failure,
    InferReply,
    InferRequest,
    ProfileReply,
    Request,
    Response,
    Status,
)
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.tensor import Tensor, pack, unpack
from tests.support.measurements import measurement
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.telemetry import until

Answer = Callable[[Request], list[Response]]


@contextmanager
def answering(broker: BrokerConfig, answer: Answer, device: str = "pi") -> Iterator[None]:
    def status(*, online: bool) -> Message:
        record = Status(device=device, online=online)
        return Message(topic=topics.status(device), payload=encode(record), retain=True)

    link = Link(broker, f"agent-{device}", will=status(online=False))

    def on_request(delivery: Delivery) -> None:
        request = unpack(delivery.payload, Request)
        for response in answer(request):
            link.publish(Message(topic=request.reply_to, payload=pack(response)))

    link.subscribe(topics.request(device), on_request)
    link.on_ready(lambda: link.publish(status(online=True)))
    link.start()
    link.wait_ready(60)
    try:
        yield
    finally:
        link.stop()


def double(request: Request) -> list[Response]:
    assert isinstance(request.body, InferRequest)
    reply = InferReply(outputs=request.body.inputs[::-1], duration_ns=5, variant="v", interpreter="i")
    return [Response(id=request.id, device="pi", body=reply)]


@pytest.fixture
def broker(tmp_path) -> Iterator[BrokerConfig]:
    with Mosquitto(tmp_path) as mosquitto:
        yield mosquitto.config


def test_inference_carries_arrays_there_and_back(broker):
    image, ids = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, dtype=np.int64)
    with answering(broker, double), AgentClient(broker, "pi") as client:
        reply = client.infer([image, ids])
    np.testing.assert_array_equal(reply.outputs[0].to_array(), ids, strict=True)
    np.testing.assert_array_equal(reply.outputs[1].to_array(), image, strict=True)


def test_many_threads_each_get_their_own_answer(broker):
    wrong = []
    with answering(broker, double), AgentClient(broker, "pi") as client:

        def ask(number: int) -> None:
            for n in range(20):
                value = np.array([number * 100 + n])
                if client.infer([value]).outputs[0].to_array()[0] != value[0]:
                    wrong.append(value)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client._waiting == {}
    assert wrong == []


def test_profile_and_status_answers_come_typed(broker):
    def answer(request: Request) -> list[Response]:
        body = (
            Status(device="pi", online=True, package_name="digits")
            if type(request.body).__name__ == "StatusRequest"
            else ProfileReply(measurements=(measurement(),))
        )
        return [Response(id=request.id, device="pi", body=body)]

    with answering(broker, answer), AgentClient(broker, "pi") as client:
        assert client.profile("00", ProfileSpec()) == (measurement(),)
        assert client.status().package_name == "digits"


def test_the_agents_error_is_raised_here_as_itself(broker):
    def answer(request: Request) -> list[Response]:
        return [Response(id=request.id, device="pi", body=Failure(error=to_wire(PackageError("the package is cut"))))]

    with (
        answering(broker, answer),
        AgentClient(broker, "pi") as client,
        pytest.raises(PackageError, match="the package is cut"),
    ):
        client.infer([])


def test_answers_to_others_from_others_and_late_ones_are_ignored(broker):
    late: list[Request] = []

    def answer(request: Request) -> list[Response]:
        if not late:
            late.append(request)
            return []
        good = double(request)[0]
        foreign = Response(id=request.id, device="other", body=good.body)
        unknown = Response(id="nobody asked", device="pi", body=good.body)
        return [foreign, unknown, *double(late[0]), good, good]

    with answering(broker, answer), AgentClient(broker, "pi") as client:
        with pytest.raises(RequestTimeout):
            client.infer([np.array([1])], timeout_s=0.2)
        assert client.infer([np.array([2])]).outputs[0].to_array().tolist() == [2]


def test_a_timeout_says_whether_the_device_was_ever_seen(broker):
    with AgentClient(broker, "pi") as client:
        with pytest.raises(RequestTimeout, match=r"device pi: no answer in 0.2 s; it has never reported"):
            client.status(timeout_s=0.2)
        with answering(broker, lambda _: []):
            until(lambda: client._last_status is not None)
            with pytest.raises(RequestTimeout, match="its status says online"):
                client.status(timeout_s=0.2)


def test_a_device_that_is_offline_is_not_waited_for(broker):
    with answering(broker, double):
        pass
    with AgentClient(broker, "pi") as client:
        until(lambda: client._last_status is not None)
        with pytest.raises(LinkError, match="device pi: its status says offline; start its agent") as caught:
            client.status(timeout_s=3600)
        assert not isinstance(caught.value, RequestTimeout)
        with answering(broker, double):
            until(lambda: client._last_status.online)
            assert client.infer([np.array([2])]).outputs[0].to_array().tolist() == [2]


def test_one_who_is_interrupted_tells_the_agent(broker, monkeypatch):
    asked: list[Request] = []

    def answer(request: Request) -> list[Response]:
        asked.append(request)
        return []

    def interrupted(_answer, _timeout_s):
        until(lambda: bool(asked))
        raise KeyboardInterrupt

    with answering(broker, answer), AgentClient(broker, "pi") as client:
        monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.profile("00", ProfileSpec())
        until(lambda: len(asked) == 2)
    assert asked[1].body == CancelRequest(request=asked[0].id)


def test_no_broker_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("ferryman.devices.fleet.client.CONNECT_TIMEOUT_S", 2.0)
    with pytest.raises(LinkError, match=r"mqtt://127.0.0.1:\d+: not connected .*refused"):
        AgentClient(BrokerConfig(host="127.0.0.1", port=free_port()), "pi")


def test_a_device_name_that_is_no_name_is_the_callers_error(broker):
    with pytest.raises(CallerError, match="device 'a/b'"):
        AgentClient(broker, "a/b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": None}, r"timeout_s: expected seconds, more than 0 and at most 86,400, found None"),
        ({"timeout_s": "5"}, "timeout_s: expected seconds, .* found '5'"),
        ({"timeout_s": float("nan")}, "timeout_s: expected seconds, .* found nan"),
        ({"timeout_s": float("inf")}, "found inf"),
        ({"timeout_s": 1e10}, "found 1e.?10|found 10000000000"),
        ({"timeout_s": 0}, "found 0"),
        ({"timeout_s": -1.0}, r"found -1\.0"),
        ({"variant": 5}, r"Expected `str \| null`, got `int` - at `\$\.body\.variant`"),
        ({"interpreter": b"x"}, r"at `\$\.body\.interpreter`"),
        ({"variant": object()}, "object"),
    ],
)
def test_an_argument_of_a_wrong_type_is_the_callers_error_at_once(broker, options, message):
    with (
        answering(broker, lambda _: []),
        AgentClient(broker, "pi") as client,
        pytest.raises(CallerError, match=message),
    ):
        client.infer([np.array([1])], **options)


def test_inputs_and_specs_of_a_wrong_type_are_the_callers_error_at_once(broker):
    with answering(broker, lambda _: []), AgentClient(broker, "pi") as client:
        with pytest.raises(CallerError, match="inputs are numpy arrays, found a list"):
            client.infer([[1.0, 2.0]])
        with pytest.raises(CallerError, match=r"\$\.body\.spec\.runs"):
            client.profile("00", ProfileSpec(runs="many"))


def test_an_answer_whose_tensor_is_malformed_is_told(broker):
    def answer(request: Request) -> list[Response]:
        reply = InferReply(
            outputs=(Tensor(dtype="float32", shape=(4,), data=b"123"),), duration_ns=5, variant="v", interpreter="i"
        )
        return [Response(id=request.id, device="pi", body=reply)]

    with (
        answering(broker, answer),
        AgentClient(broker, "pi") as client,
        pytest.raises(DeviceError, match=r"device pi: .* float32\[4\] takes 16 bytes, found 3; its ferryman"),
    ):
        client.infer([np.array([1])])
