"""Where requests come in: each is checked, waits its turn, is worked on, and answered."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from ferryman.devices import topics
from ferryman.devices.agent.answers import Answers
from ferryman.devices.mqtt import Delivery, Link
from ferryman.devices.sealed import inner
from ferryman.runtime.alive import beat, watched
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    FerrymanError,
    IdentityError,
    LinkError,
    RequestTimeout,
    to_wire,
)
from ferryman.runtime.contracts.messages import (
    CancelRequest,
    FactsReply,
    Failure,
    InferReply,
    ProfileReply,
    Request,
    Response,
    Status,
    StatusRequest,
)
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.tensor import pack, unpack

log = logging.getLogger(__name__)

_POLL_S = 1.0
STUCK_S = 300.0
"""A request that takes so long without a sign hangs: while it waits for a worker process it gives one every second, and
checking a large package on a slow card takes minutes."""
TIMEOUT_MAX_S = 86_400.0
"""The most a request is given, whatever it asks for."""
QUEUE_MAX = 16
"""Requests waiting; one more is told that the device is busy. Together they hold `topics.REQUEST_MAX_BYTES`."""
KNOWN_MAX = 256
"""Requests that are told from one that comes twice: a broker delivers again what it did not know to have arrived."""

Body = InferReply | ProfileReply | Status | FactsReply | Failure
"""What an answer holds."""
Work = Callable[[Request, float, threading.Event | None], Body]
"""(request, seconds left, set once nobody waits for the answer) -> the answer; errors of the tree are raised."""

Unseal = Callable[[bytes], bytes]
"""What came -> the request's own bytes; raises IdentityError for one that is not obeyed."""


class _Addressed(Record):
    """The least of a request that an answer needs."""

    id: str
    reply_to: str


class Desk:
    """One device's requests; one is worked on at a time, by the thread that calls `work_until`."""

    def __init__(self, device: str, link: Link, work: Work, unseal: Unseal = lambda data: data) -> None:
        """Listen; `unseal` says which requests are obeyed."""
        self._device = device
        self._unseal = unseal
        self._link = link
        self._do = work
        self._requests: queue.Queue[tuple[Request, float, int]] = queue.Queue(QUEUE_MAX)
        """Each with its deadline and size."""
        self._waiting_bytes = 0
        self._enqueuing = threading.Lock()
        self._cancelled: dict[str, threading.Event] = {}
        """Id of every request that waits or is worked on -> set once nobody waits for its answer any more."""
        self._known: deque[str] = deque(maxlen=KNOWN_MAX)
        self._answers = Answers(link)
        link.subscribe(topics.request(device), self._on_request)

    def work_until(self, stop: threading.Event, after: Callable[[], None], idle: Callable[[], None]) -> None:
        """Work until `stop` is set; `after` is called behind every answer, `idle` now and then where none waits."""
        with watched("the thread that answers requests", STUCK_S):
            while not stop.is_set():
                beat()
                self._work_next(after, idle)

    def _work_next(self, after: Callable[[], None], idle: Callable[[], None]) -> None:
        try:
            request, deadline, size_bytes = self._requests.get(timeout=_POLL_S)
        except queue.Empty:
            idle()
            return
        with self._enqueuing:
            self._waiting_bytes -= size_bytes
        self._answer_with(request, partial(self._work, request, deadline))
        self._cancelled.pop(request.id, None)
        after()

    def cancel_all(self) -> None:
        """Nobody waits for anything any more."""
        for cancelled in list(self._cancelled.values()):
            cancelled.set()

    def _open(self, delivery: Delivery) -> tuple[Request, int] | None:
        """The request and its size; None: it is not obeyed, or none, and whoever can be told is."""
        try:
            payload = self._unseal(delivery.payload)
        except IdentityError as error:
            if delivery.again:  # its nonce was used when it came first
                log.info("request on %s came again, ignored", delivery.topic)
            else:
                log.warning("request on %s is not obeyed: %s", delivery.topic, error)
                self._answer_refused(delivery.payload, error)
            return None
        try:
            return unpack(payload, Request), len(payload)
        except ValueError as error:
            log.warning("request on %s cannot be read, ignored: %s", delivery.topic, error)
            self._answer_unread(payload, error)
            return None

    def _on_request(self, delivery: Delivery) -> None:
        if delivery.retained:  # it would come again on every connection
            log.warning("request on %s is a retained message, ignored; clear it on the broker", delivery.topic)
            return
        if (opened := self._open(delivery)) is None:
            return
        request, size_bytes = opened
        if not topics.is_response(request.reply_to, self._device):
            log.warning("request %s wants its answer on %s, ignored", request.id, request.reply_to)
            return
        if delivery.again and request.id in self._known:
            log.info("request %s came again, ignored", request.id)
            return
        self._known.append(request.id)
        self._take(request, size_bytes, delivery.expiry_s)

    def _take(self, request: Request, size_bytes: int, expiry_s: int | None) -> None:
        """Have it worked on, or tell that it cannot be now."""
        if isinstance(request.body, CancelRequest):
            if (cancelled := self._cancelled.get(request.body.request)) is not None:
                cancelled.set()
            return
        given_s = min(request.timeout_s, TIMEOUT_MAX_S)  # none where it is no number, and then time is up at once
        if expiry_s is not None:  # it may have waited for us at the broker
            given_s = min(given_s, expiry_s)
        deadline = time.monotonic() + given_s
        if isinstance(request.body, StatusRequest):  # quick, and must not wait behind a profile
            self._answer_with(request, partial(self._work, request, deadline))
            return
        self._cancelled[request.id] = threading.Event()
        try:
            self._enqueue(request, deadline, size_bytes)
        except FerrymanError as error:
            self._cancelled.pop(request.id, None)
            self._answer(request, Failure(error=to_wire(error)))

    def _answer_unread(self, payload: bytes, problem: ValueError) -> None:
        """Tell whoever wrote what is no request, where it says who that is."""
        error = CallerError(f"the request cannot be read: {problem}; see that both ferrymans are of one version")
        self._answer_refused(payload, error)

    def _answer_refused(self, payload: bytes, error: FerrymanError) -> None:
        """Tell whoever wrote what is not obeyed, where it says who that is."""
        with contextlib.suppress(ValueError):
            asked = unpack(inner(payload), _Addressed)
            if topics.is_response(asked.reply_to, self._device):
                self._answer(asked, Failure(error=to_wire(error)))

    def _enqueue(self, request: Request, deadline: float, size_bytes: int) -> None:
        most = topics.REQUEST_MAX_BYTES
        if size_bytes > most:
            raise CallerError(f"a request may hold {most:,} bytes, found {size_bytes:,}; send less at once")
        with self._enqueuing:
            if self._waiting_bytes + size_bytes > most:
                held = self._waiting_bytes >> 20
                raise DeviceError(f"busy: the requests that wait hold {held} MiB already; ask again later")
            try:
                self._requests.put_nowait((request, deadline, size_bytes))
            except queue.Full:
                raise DeviceError(f"busy: {QUEUE_MAX} requests are waiting") from None
            self._waiting_bytes += size_bytes

    def _work(self, request: Request, deadline: float) -> Body:
        left_s = deadline - time.monotonic()
        if not left_s > 0:
            raise RequestTimeout(f"the request waited longer than its {request.timeout_s:g} s behind others")
        return self._do(request, left_s, self._cancelled.get(request.id))

    def _answer_with(self, request: Request, work: Callable[[], Body]) -> None:
        body: Body
        begin = time.monotonic()
        try:
            body = work()
        except FerrymanError as error:
            body = Failure(error=to_wire(error))
        except Exception as error:  # one bad request must not end the agent
            log.exception("request %s failed", request.id)
            body = Failure(error=to_wire(error))
        ended = f"{body.error.party}: {body.error.message}" if isinstance(body, Failure) else "done"
        kind = request.body.__struct_config__.tag
        log.info("request %s %s: %s in %.3f s", kind, request.id, ended, time.monotonic() - begin)
        self._answer(request, body)

    def _answer(self, request: Request | _Addressed, body: Body) -> None:
        response = Response(id=request.id, device=self._device, body=body)
        given_s = request.timeout_s if isinstance(request, Request) else 0.0
        wait_s = min(given_s, TIMEOUT_MAX_S) if given_s > 0 else 0.0  # none where it is no number
        refused = partial(self._refused, request, body)
        try:
            self._answers.send(request.id, request.reply_to, pack(response), wait_s, refused)
        except ValueError as error:  # what paho says of a message MQTT cannot carry
            log.warning("answer to %s not sent: %s", request.id, error)

    def _refused(self, request: Request | _Addressed, body: Body, problem: str) -> None:
        """Tell the one who asked, in fewer bytes, where it may have been them."""
        log.warning("answer to %s not sent: %s", request.id, problem)
        if not isinstance(body, Failure):
            error = LinkError(f"the broker refuses the answer: {problem}")
            self._answer(request, Failure(error=to_wire(error)))
