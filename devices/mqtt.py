"""A connection to an MQTT broker that keeps itself up; agent, collector and client all use this one.

MQTT 5 is spoken, or 3.1.1 with a broker that says it does not know 5. Each connection is a fresh paho client: nothing
waits in its memory across connections, so whoever sends decides what is sent again, and an acknowledgement can
only go to the connection its message came by.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ferryman.devices.broker import BrokerConfig
from ferryman.runtime.contracts.errors import LinkError
from ferryman.runtime.contracts.record import Record

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
RETRY_FIRST_S = 0.25
RETRY_CAP_S = 30.0
STABLE_S = 5.0
"""A connection that held for less does not count as a good one."""
REFUSED = 0x80
"""Reason codes from here on are refusals (MQTT 5, section 2.4)."""
ANSWER_TIMEOUT_S = 5.0
"""For CONNACK and SUBACK."""
VERSION_REFUSED = "Unsupported protocol version"
SILENCE = f"no answer within {ANSWER_TIMEOUT_S:g} s"
IN_FLIGHT_MAX = 20
"""Unacknowledged messages under way in either direction, unless the other side takes fewer (mosquitto's default)."""


def backoff_s(attempt: int, first_s: float, cap_s: float) -> float:
    """Time to wait after `attempt` failures: doubling, capped, jittered so that a fleet does not come all at once."""
    return min(cap_s, first_s * 2.0 ** min(attempt, 32)) * random.uniform(0.5, 1.0)  # noqa: S311


class Message(Record):
    """Something to publish, QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


class Delivery:
    """A message that came; with `manual_ack` it comes again on a later connection until `acknowledge` is called."""

    def __init__(self, client: paho.Client, message: paho.MQTTMessage) -> None:
        self.topic = message.topic
        self.payload = bytes(message.payload)
        self.retained = message.retain
        """Sent before we subscribed, and kept by the broker for whoever comes."""
        self._client = client
        self._mid = message.mid
        self._qos = message.qos

    def acknowledge(self) -> None:
        """Tell the broker; does nothing once the connection it came by is gone."""
        self._client.ack(self._mid, self._qos)


Handler = Callable[[Delivery], None]
Done = Callable[[str | None], None]
"""Called once with None when the broker acknowledged, or with its reason for refusing; never if the link broke."""


class Link:
    """One client of one broker.

    Register with `subscribe`, `on_ready` and `on_down`, then `start`. All callbacks run on network threads: they
    must be quick, hand real work over to a thread of their own, and may publish.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        client_id: str,
        *,
        will: Message | None = None,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        receive_max: int = IN_FLIGHT_MAX,
        packet_max_bytes: int | None = None,
    ) -> None:
        """Describe the connection; nothing is opened yet.

        Args:
            broker: where to.
            client_id: unique at the broker: a second client of that name throws the first out.
            will: published by the broker when the connection breaks, and by `stop`.
            session_expiry_s: how long the broker keeps the session while nobody is connected; 0: no session.
            manual_ack: leave acknowledging to the handlers.
            receive_max: how many unacknowledged messages the broker may send (MQTT 5; a 3.1.1 broker has its own).
            packet_max_bytes: the broker drops what is larger, unsent (MQTT 5; a 3.1.1 broker knows no such limit).
        """
        self.broker = broker
        self._client_id = client_id
        self._will = will
        self._session_expiry_s = session_expiry_s
        self._manual_ack = manual_ack
        self._receive_max = receive_max
        self._packet_max_bytes = packet_max_bytes
        self._handlers: dict[str, Handler] = {}
        self._qos: dict[str, int] = {}
        self._ready_callbacks: list[Callable[[], None]] = []
        self._down_callbacks: list[Callable[[], None]] = []
        self._connection: _Connection | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._problem = "not started"
        self._in_flight_max = IN_FLIGHT_MAX
        self._knows_v5 = False
        self._thread = threading.Thread(target=self._run, name=f"link-{client_id}", daemon=True)

    def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1) -> None:
        """Have `handler` called with what comes on `topic_filter`, on this and every later connection.

        With `qos` 1 a broker drops what is over its queue (mosquitto: 1,000 messages), silently; with 0 it does not
        queue. What a whole fleet has retained is more than that: take 0 for it, and `refresh` now and then.
        """
        self._handlers[topic_filter] = handler
        self._qos[topic_filter] = qos

    def refresh(self) -> None:
        """Subscribe anew: what is retained comes once more. Does nothing while there is no connection."""
        connection = self._connection
        if connection is not None and self._ready.is_set():
            connection.subscribe()

    def on_ready(self, callback: Callable[[], None]) -> None:
        """Have `callback` called each time the link is connected and subscribed."""
        self._ready_callbacks.append(callback)

    def on_down(self, callback: Callable[[], None]) -> None:
        """Have `callback` called each time a ready link broke; what was unacknowledged then stays so."""
        self._down_callbacks.append(callback)

    def start(self) -> None:
        """Begin connecting, and keep at it until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Publish the last will, disconnect, and wait for the threads to end."""
        connection = self._connection
        if self._will is not None and connection is not None and self._ready.is_set():
            gone = threading.Event()
            connection.publish(self._will, lambda _: gone.set())
            gone.wait(1.0)
        self._stopping.set()
        if connection is not None:
            connection.fail("stopped")
        if self._thread.is_alive():
            self._thread.join(CONNECT_TIMEOUT_S)

    @property
    def problem(self) -> str:
        """Why the link is not ready; empty when it is."""
        return "" if self._ready.is_set() else self._problem

    def wait_ready(self, timeout_s: float) -> None:
        """Return once connected and subscribed.

        Raises:
            LinkError: not in that time; says what is in the way.
        """
        if not self._ready.wait(timeout_s):
            raise LinkError(f"broker {self.broker.address}: not connected after {timeout_s:g} s: {self._problem}")

    def publish(self, message: Message, done: Done = lambda _: None) -> None:
        """Send with QoS 1; returns before the broker has it.

        Raises:
            LinkError: there is no connection now.
        """
        connection = self._connection
        if connection is None or not self._ready.is_set():
            raise LinkError(f"broker {self.broker.address}: not connected: {self._problem}")
        connection.publish(message, done)

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            problem = self._attempt()
            if problem is None and time.monotonic() - began >= STABLE_S:
                attempt = 0
            elif problem is None:
                if attempt and not self._stopping.is_set():
                    log.warning(
                        "broker %s: thrown out again at once: does another client call itself %s?",
                        self.broker.address,
                        self._client_id,
                    )
            elif problem != self._problem or attempt == 0:
                log.warning("broker %s: %s; retrying", self.broker.address, problem)
            self._problem = problem or "connection lost"
            self._stopping.wait(backoff_s(attempt, RETRY_FIRST_S, RETRY_CAP_S))
            attempt += 1

    def _attempt(self) -> str | None:
        """One connection of the best version the broker speaks; some (amqtt) do not refuse 5 but stay silent."""
        if self.broker.only_3_1_1:
            return self._serve(MQTTProtocolVersion.MQTTv311)
        problem = self._serve(MQTTProtocolVersion.MQTTv5)
        self._knows_v5 |= problem is None
        if problem == VERSION_REFUSED or (problem == SILENCE and not self._knows_v5):
            log.warning("broker %s: %s for MQTT 5; trying 3.1.1", self.broker.address, problem)
            if problem == SILENCE:  # who waits may give up before 3.1.1 has been silent as long
                self._problem = problem
            problem = self._serve(MQTTProtocolVersion.MQTTv311)
        return problem

    def _serve(self, protocol: MQTTProtocolVersion) -> str | None:
        """Hold one connection from beginning to end; the problem, or None if it was ready in between."""
        try:
            client = self._client(protocol)
        except (OSError, ValueError) as error:  # the certificates' files
            return f"TLS files: {type(error).__name__}: {error}"
        connection = _Connection(self.broker, client, self._handlers, self._qos)
        self._connection = connection
        try:
            connection.open(self._connect_arguments(protocol))
            if not connection.settled.wait(ANSWER_TIMEOUT_S):
                return SILENCE
            if connection.problem is not None or self._stopping.is_set():
                return connection.problem
            self._ready.set()
            log.info("broker %s: connected as %s", self.broker.address, self._client_id)
            for callback in self._ready_callbacks:
                _guard(callback)
            connection.down.wait()
            self._ready.clear()
            if not self._stopping.is_set():
                log.warning("broker %s: connection lost: %s", self.broker.address, connection.problem)
        except (OSError, ValueError) as error:  # ValueError: what paho says of names it cannot use
            return f"{type(error).__name__}: {error}"
        finally:
            self._in_flight_max = min(IN_FLIGHT_MAX, connection.takes)
            connection.close()
        for callback in self._down_callbacks:
            _guard(callback)
        return None

    def _client(self, protocol: MQTTProtocolVersion) -> _Client:
        v5 = protocol == MQTTProtocolVersion.MQTTv5
        client = _Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=None if v5 else self._session_expiry_s == 0,
            protocol=protocol,
            reconnect_on_failure=False,
            manual_ack=self._manual_ack,
        )
        if self.broker.username is not None:
            client.username_pw_set(self.broker.username, self.broker.password)
        if self.broker.tls:
            context = ssl.create_default_context(cafile=self.broker.tls_ca)
            if self.broker.tls_cert is not None:
                context.load_cert_chain(self.broker.tls_cert, self.broker.tls_key)
            client.tls_set_context(context)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=self._will.retain)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(self._in_flight_max)
        return client

    def _connect_arguments(self, protocol: MQTTProtocolVersion) -> dict[str, Any]:
        if protocol != MQTTProtocolVersion.MQTTv5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._session_expiry_s
        properties.ReceiveMaximum = self._receive_max
        if self._packet_max_bytes is not None:
            properties.MaximumPacketSize = self._packet_max_bytes
        return {"clean_start": self._session_expiry_s == 0, "properties": properties}


class _Client(paho.Client):
    """Tells when its network thread ends, however it ends."""

    on_end: Callable[[str], None]

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # such as a packet from the broker that paho cannot read
            log.exception("the MQTT client failed")
            self.on_end(f"{type(error).__name__}: {error}")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self.on_end("connection lost")


class _Connection:
    """One paho client, from connect to disconnect."""

    def __init__(
        self, broker: BrokerConfig, client: _Client, handlers: dict[str, Handler], qos: dict[str, int]
    ) -> None:
        self.problem: str | None = None
        self.takes = IN_FLIGHT_MAX
        self.settled = threading.Event()
        """Subscribed, or failed with `problem`."""
        self.down = threading.Event()
        self._broker = broker
        self._client = client
        self._handlers = handlers
        self._qos = qos
        self._lock = threading.Lock()
        self._waiting: dict[int, Done] = {}
        self._early: dict[int, str | None] = {}
        client.on_end = self.fail
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        for topic_filter, handler in handlers.items():
            client.message_callback_add(topic_filter, self._dispatcher(handler))

    def open(self, arguments: dict[str, Any]) -> None:
        self._client.connect(self._broker.host, self._broker.port, KEEPALIVE_S, **arguments)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, message: Message, done: Done) -> None:
        info = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
        # No lock is held above: paho calls _on_publish with its own lock taken. So the answer may be here already.
        with self._lock:
            if info.mid not in self._early:
                self._waiting[info.mid] = done
                return
            problem = self._early.pop(info.mid)
        done(problem)

    def _on_socket_open(self, _c: object, _u: object, open_socket: Any) -> None:  # noqa: ANN401  # paho has no one type
        # Small messages are all there is: waiting to fill a packet stalls the window for 40 ms at a time.
        open_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _acknowledge_now(self) -> None:
        """Have the kernel acknowledge what came: a broker with Nagle's algorithm on waits for that to send more."""
        open_socket: Any = self._client.socket()
        if open_socket is not None:
            open_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _on_publish(self, _c: object, _u: object, mid: int, reason: ReasonCode, _p: object) -> None:
        _guard(self._acknowledge_now)
        problem = str(reason) if reason.value >= REFUSED else None
        with self._lock:
            done = self._waiting.pop(mid, None)
            if done is None:
                self._early[mid] = problem
                return
        _guard(done, problem)

    def _on_connect(
        self, _c: object, _u: object, _f: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self.fail(str(reason))
            return
        self.takes = getattr(properties, "ReceiveMaximum", IN_FLIGHT_MAX)
        if self.takes < self._client.max_inflight_messages:  # paho cannot change it on a live connection
            self.fail(f"it takes only {self.takes} messages in flight; connecting again with that")
            return
        if self._handlers:
            self.subscribe()
        else:
            self.settled.set()

    def subscribe(self) -> None:
        """Ask for all topics, and so for what is retained there."""
        if self._client.protocol == MQTTProtocolVersion.MQTTv5:
            self._client.subscribe([(name, SubscribeOptions(qos=self._qos[name])) for name in self._handlers])
        else:
            self._client.subscribe([(name, self._qos[name]) for name in self._handlers])

    def _on_subscribe(self, _c: object, _u: object, _m: int, reasons: list[ReasonCode], _p: object) -> None:
        for name, reason in zip(self._handlers, reasons, strict=True):
            if reason.value >= REFUSED:
                self.fail(f"subscription to {name} refused: {reason}")
        self.settled.set()

    def _on_disconnect(self, _c: object, _u: object, _f: object, reason: ReasonCode, _p: object) -> None:
        self.fail(str(reason))

    def fail(self, problem: str) -> None:
        self.problem = self.problem or problem
        self.settled.set()
        self.down.set()

    def _dispatcher(self, handler: Handler) -> Callable[[paho.Client, Any, paho.MQTTMessage], None]:
        def dispatch(client: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
            _guard(self._acknowledge_now)
            _guard(handler, Delivery(client, message))

        return dispatch

    def _on_message(self, client: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        # A persistent session may hold messages of a subscription an earlier version made.
        log.warning("broker %s: message on %s, which nobody reads, dropped", self._broker.address, message.topic)
        client.ack(message.mid, message.qos)


def _guard(callback: Callable[..., None], *arguments: object) -> None:
    try:
        callback(*arguments)
    except Exception:  # a network thread would end silently, and the connection with it
        log.exception("a handler of MQTT messages failed")
