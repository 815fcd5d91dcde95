"""Ask an agent from the host: request and response over MQTT."""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import TypeVar

import numpy as np

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.signer import Signer, own_name
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import (
    CallerError,
    DeviceError,
    FerrymanError,
    IdentityError,
    LinkError,
    RequestTimeout,
    from_wire,
)
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.messages import (
    CancelRequest,
    FactsReply,
    FactsRequest,
    Failure,
    InferReply,
    InferRequest,
    ProfileReply,
    ProfileRequest,
    Request,
    Response,
    Status,
    StatusRequest,
)
from ferryman.runtime.contracts.record import decode
from ferryman.runtime.contracts.tensor import Array, pack, to_tensors, unpack

R = TypeVar("R", InferReply, ProfileReply, Status, FactsReply)

CONNECT_TIMEOUT_S = 10.0
INFER_TIMEOUT_S = 30.0
PROFILE_TIMEOUT_S = 600.0
STATUS_TIMEOUT_S = 10.0
TIMEOUT_MAX_S = 86_400.0
ONLINE_WAIT_S = 0.5
"""How long a device may take to be online, by its retained status, before a request to it."""
CANCEL_WAIT_S = 1.0


class AgentClient(Closing):
    """A conversation with one agent; several threads may ask at once.

    Every method that asks may raise: CallerError (an argument of a wrong type, or too large), LinkError (no broker, or
    the device is offline), RequestTimeout (no answer), and whatever error of the tree the agent answers with.
    """

    def __init__(self, broker: BrokerConfig, device: str) -> None:
        """Connect, and wait for it.

        Raises:
            CallerError: `device` is no name for a device.
            LinkError: the broker cannot be reached, or does not let us in.
            IdentityError: the key that signs commands could be read by others.
        """
        session = secrets.token_hex(8)
        self._signer = Signer.of_environment()
        client = own_name(broker) or session
        self.device = device
        self._reply_to = topics.response(device, client)
        self._waiting: dict[str, futures.Future[Response]] = {}
        self._lock = threading.Lock()
        self._status_came = threading.Condition()
        self._last_status: Status | None = None
        self._link = Link(broker, f"ferryman-client-{session}")
        self._link.subscribe(self._reply_to, self._on_response)
        self._link.subscribe(topics.status(device), self._on_status)
        self._link.start()
        try:
            self._link.wait_ready(CONNECT_TIMEOUT_S)
        except LinkError:
            self._link.stop()
            raise

    def infer(
        self,
        inputs: Sequence[Array],
        *,
        variant: str | None = None,
        interpreter: str | None = None,
        timeout_s: float = INFER_TIMEOUT_S,
    ) -> InferReply:
        """Run the active package once on `inputs` (the model's signature)."""
        for one in inputs:
            if not isinstance(one, np.ndarray | np.generic):
                raise CallerError(f"inputs are numpy arrays, found a {type(one).__name__}; use numpy.asarray")
        body = InferRequest(inputs=to_tensors(inputs), variant=variant, interpreter=interpreter)
        reply = self._ask(body, InferReply, timeout_s)
        try:
            for tensor in reply.outputs:
                tensor.to_array()
        except ValueError as error:
            raise DeviceError(
                f"device {self.device}: its answer holds no outputs: {error}; its ferryman and this one do not fit "
                "together"
            ) from error
        return reply

    def profile(
        self, package_sha256: str, spec: ProfileSpec, *, timeout_s: float = PROFILE_TIMEOUT_S
    ) -> tuple[Measurement, ...]:
        """Measure the active package, which must be `package_sha256`."""
        body = ProfileRequest(package_sha256=package_sha256, spec=spec)
        return self._ask(body, ProfileReply, timeout_s).measurements

    def status(self, *, timeout_s: float = STATUS_TIMEOUT_S) -> Status:
        """Ask the agent who it is and what it serves."""
        return self._ask(StatusRequest(), Status, timeout_s)

    def facts(self, *, timeout_s: float = STATUS_TIMEOUT_S) -> DeviceFacts:
        """Ask what the device is and has; waits behind what it is at. An older agent answers with CallerError."""
        return self._ask(FactsRequest(), FactsReply, timeout_s).facts

    def close(self) -> None:
        """Disconnect."""
        self._link.stop()

    def _ask(
        self, body: InferRequest | ProfileRequest | StatusRequest | FactsRequest, kind: type[R], timeout_s: float
    ) -> R:
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIMEOUT_MAX_S:
            raise CallerError(
                f"timeout_s: expected seconds, more than 0 and at most {TIMEOUT_MAX_S:,.0f}, found {timeout_s!r}"
            )
        request = Request(id=secrets.token_hex(16), reply_to=self._reply_to, timeout_s=timeout_s, body=body)
        payload = _packed(request)
        self._check_online(timeout_s)
        deadline_s = time.monotonic() + timeout_s
        response, challenge = self._exchange(request.id, payload, timeout_s)
        if isinstance(response.body, Failure) and response.body.error.party == IdentityError.party:
            left_s = deadline_s - time.monotonic()
            if challenge != self._challenge and left_s > 0:  # it started anew between its status and our request
                response, _ = self._exchange(request.id, payload, left_s)
        if isinstance(response.body, Failure):
            raise from_wire(response.body.error)
        if not isinstance(response.body, kind):
            raise FerrymanError(
                f"device {self.device}: expected a {kind.__name__}, found a {type(response.body).__name__}; "
                "its ferryman and this one do not fit together"
            )
        return response.body

    def _exchange(self, request_id: str, payload: bytes, timeout_s: float) -> tuple[Response, str]:
        """Send a request and wait for its answer; returns that, and the challenge that was signed."""
        challenge = self._challenge
        answer: futures.Future[Response] = futures.Future()
        message = self._message(payload, challenge, timeout_s)
        with self._lock:
            self._waiting[request_id] = answer
        try:
            self._link.publish(message, lambda problem: self._refused(answer, problem))
            return answer.result(timeout_s), challenge
        except futures.TimeoutError:
            raise RequestTimeout(self._silence(timeout_s)) from None
        except KeyboardInterrupt:
            self._cancel(request_id)
            raise
        finally:
            with self._lock:
                del self._waiting[request_id]

    @property
    def _challenge(self) -> str:
        """What the agent wants signed; empty: it takes commands as they are."""
        return self._last_status.challenge if self._last_status else ""

    def _message(self, payload: bytes, challenge: str, timeout_s: float) -> Message:
        """A request as the device wants it.

        Raises:
            IdentityError: it wants commands signed, and no key is named here.
        """
        if challenge:
            payload = self._signer.request(payload, self.device, challenge, timeout_s)
        return Message(topic=topics.request(self.device), payload=payload, expiry_s=math.ceil(timeout_s))

    def _check_online(self, timeout_s: float) -> None:
        """Raise LinkError for a device whose status says offline; one that never reported is asked all the same."""
        with self._status_came:
            self._status_came.wait_for(
                lambda: self._last_status is not None and self._last_status.online, min(timeout_s, ONLINE_WAIT_S)
            )
            if self._last_status is not None and not self._last_status.online:
                raise LinkError(
                    f"device {self.device}: its status says offline; start its agent, or check its power and network"
                )

    def _cancel(self, request_id: str) -> None:
        """Tell the agent that nobody waits any more; whether that arrives is not waited for long."""
        body = CancelRequest(request=request_id)
        cancel = Request(id=secrets.token_hex(16), reply_to=self._reply_to, timeout_s=CANCEL_WAIT_S, body=body)
        sent = threading.Event()
        with contextlib.suppress(LinkError):
            message = self._message(pack(cancel), self._challenge, CANCEL_WAIT_S)
            self._link.publish(message, lambda _problem: sent.set())
            sent.wait(CANCEL_WAIT_S)

    def _refused(self, answer: futures.Future[Response], problem: str | None) -> None:
        if problem is not None and not answer.done():
            answer.set_exception(
                LinkError(f"device {self.device}: the broker refuses requests to it: {problem}; check its access rules")
            )

    def _silence(self, timeout_s: float) -> str:
        silent = f"device {self.device}: no answer in {timeout_s:g} s"
        if self._link.problem:
            return f"{silent}; the connection to broker {self._link.broker.address} broke: {self._link.problem}"
        if self._last_status is None:
            return f"{silent}; it has never reported to this broker: is its name right, and does its agent run?"
        if not self._last_status.online:
            return f"{silent}; its status says offline: start its agent, or check its network"
        return f"{silent}; its status says online: it may be busy; allow more time or look at its log"

    def _on_response(self, delivery: Delivery) -> None:
        try:
            response = unpack(delivery.payload, Response)
        except ValueError:
            return  # nobody we asked writes such a thing
        with self._lock:
            answer = self._waiting.get(response.id)
        if answer is not None and response.device == self.device and not answer.done():
            answer.set_result(response)

    def _on_status(self, delivery: Delivery) -> None:
        status = None
        with contextlib.suppress(ValueError):
            status = decode(delivery.payload, Status)
        with self._status_came:
            if status is not None and status.outdated_by(self._last_status):
                return
            self._last_status = status
            self._status_came.notify_all()


def _packed(request: Request) -> bytes:
    """The request's bytes, which an agent can read: a record's types are checked only when it is read.

    Raises:
        CallerError: it could not, or they are too many.
    """
    try:
        payload = pack(request)
        unpack(payload, Request)
    except (TypeError, ValueError, OverflowError) as error:
        raise CallerError(f"this cannot be asked: {error}; correct that argument") from error
    most = topics.REQUEST_MAX_BYTES
    if len(payload) > most:
        raise CallerError(f"a request may hold {most:,} bytes, found {len(payload):,}; send less at once")
    return payload
