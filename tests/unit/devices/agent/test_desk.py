from __future__ import annotations

import queue
import threading
from types import SimpleNamespace

import pytest

from ferryman.devices import topics
from ferryman.devices.agent.answers import KEPT_MAX_BYTES, Answers
from ferryman.devices.agent.desk import Desk
from ferryman.runtime.contracts.errors import LinkError
from ferryman.runtime.contracts.messages import Failure, InferReply, InferRequest, Request, Response
from ferryman.runtime.contracts.tensor import pack, unpack

REPLY_TO = topics.response("pi", "me")


class FakeLink:
    """Keeps what is published, and the callbacks to answer it with."""

    def __init__(self):
        self.sent = queue.Queue()
        self.up = True
        self.ready = []

    def subscribe(self, topic, handler):
        self.deliver = handler

    def on_ready(self, callback):
        self.ready.append(callback)

    def publish(self, message, done):
        if not self.up:
            raise LinkError("not connected")
        self.sent.put((message, done))

    def come_up(self):
        self.up = True
        for callback in self.ready:
            callback()

    def request(self, name="1", timeout_s=30.0, expiry_s=None, again=False):
        request = Request(id=name, reply_to=REPLY_TO, timeout_s=timeout_s, body=InferRequest(inputs=()))
        self.deliver(SimpleNamespace(payload=pack(request), topic="t", retained=False, expiry_s=expiry_s, again=again))


@pytest.fixture
def served():
    """Yields (link, list of seconds left when each request was begun)."""
    link, begun, stop = FakeLink(), [], threading.Event()

    def work(_request, left_s, _cancelled):
        begun.append(left_s)
        return InferReply(outputs=(), duration_ns=1, variant="v", interpreter="i")

    desk = Desk("pi", link, work)
    thread = threading.Thread(target=desk.work_until, args=(stop, lambda: None, lambda: None))
    thread.start()
    yield link, begun
    stop.set()
    thread.join()


def answer(link):
    message, done = link.sent.get(timeout=60)
    return unpack(message.payload, Response), message, done


def test_a_request_that_comes_twice_is_done_once(served):
    link, begun = served
    link.request("1")
    assert answer(link)[0].id == "1"
    link.request("1", again=True)
    link.request("2", again=True)
    assert answer(link)[0].id == "2"
    assert len(begun) == 2


def test_what_waited_at_the_broker_has_only_the_rest_of_its_time(served):
    link, begun = served
    link.request("1", timeout_s=30, expiry_s=4)
    answer(link)
    assert begun[0] <= 4


def test_an_answer_waits_for_the_link_and_expires_with_the_request(served):
    link, _ = served
    link.up = False
    link.request("1", timeout_s=20)
    with pytest.raises(queue.Empty):
        link.sent.get(timeout=0.3)
    link.come_up()
    response, message, done = answer(link)
    assert (response.id, message.topic) == ("1", REPLY_TO)
    assert 1 <= message.expiry_s <= 20
    done(None)
    link.come_up()
    assert link.sent.empty()


def test_an_answer_the_broker_did_not_acknowledge_is_sent_again_on_the_next_connection(served):
    link, _ = served
    link.request("1")
    first = answer(link)[0]
    link.come_up()
    again, _, done = answer(link)
    assert again == first
    done(None)
    link.come_up()
    assert link.sent.empty()


def test_an_answer_nobody_waits_for_any_more_is_not_sent_again():
    link = FakeLink()
    answers = Answers(link)
    answers.send("1", REPLY_TO, b"x", 0, pytest.fail)
    answers.send("2", REPLY_TO, b"y", 60, pytest.fail)
    link.sent = queue.Queue()
    link.come_up()
    assert link.sent.get_nowait()[0].payload == b"y"
    assert link.sent.empty()


def test_answers_that_wait_fill_no_memory():
    link = FakeLink()
    link.up = False
    answers = Answers(link)
    for n in range(5):
        answers.send(str(n), REPLY_TO, bytes(KEPT_MAX_BYTES // 3), 60, pytest.fail)
    link.come_up()
    assert link.sent.qsize() == 3


def test_an_answer_that_the_broker_refuses_becomes_one_that_says_so(served):
    link, _ = served
    link.request("1")
    answer(link)[2]("Packet too large")
    response, _, done = answer(link)
    assert isinstance(response.body, Failure)
    assert "the broker refuses the answer: Packet too large" in response.body.error.message
    done("Not authorized")
    assert link.sent.empty()


@pytest.mark.parametrize("timeout_s", [float("nan"), -1.0, float("inf")])
def test_times_that_are_none_do_not_keep_an_answer_back(served, timeout_s):
    link, _ = served
    link.request("1", timeout_s=timeout_s)
    assert answer(link)[0].id == "1"
