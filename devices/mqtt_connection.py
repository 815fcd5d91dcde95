"""One MQTT connection, from CONNECT to the end; `ferryman.devices.mqtt` makes one after another.

Each is a paho client of its own: nothing waits in its memory across connections, so whoever sends decides what is sent
again, and an acknowledgement can only go to the connection its message came by. For the same reason a topic's alias,
which a broker forgets with the connection, never outlives it.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.tls import make_context
from ferryman.runtime.alive import beat, watched
from ferryman.runtime.contracts.record import Record

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
STUCK_S = 120.0
"""A network thread that is not back from what it calls within so long hangs."""
REFUSED = 0x80
"""Reason codes from here on are refusals (MQTT 5, section 2.4)."""
VERSION_REFUSED = 0x84
_TOO_LARGE = 0x95
IN_FLIGHT_MAX = 20
"""Unacknowledged messages under way in either direction, unless the other side takes fewer (mosquitto's default)."""
LASTING_S = 3600
"""A 3.1.1 broker keeps a session for ever or not at all: one that is to be kept for less is not asked for."""
_OVERHEAD_BYTES = 32
"""Of a packet: its head, lengths and numbers, beside topic, properties and payload."""

_HINTS = {
    0x86: "see user and password",
    0x87: "see user, password or certificate, and the broker's access rules",
    0x8A: "the broker bans this client",
    0x8E: "another client calls itself the same; give each its own name",
    0x93: "the broker takes fewer messages at once than it said",
    _TOO_LARGE: "raise the broker's limit of a packet",
    0x96: "the broker limits messages a second",
    0x97: "the broker's quota is used up",
    0x9A: "the broker keeps no messages, and ferryman needs that",
    0x9B: "the broker takes QoS 0 only, and ferryman needs 1",
    0x9C: "name the other server",
    0x9D: "name the other server",
    0x9F: "the broker limits connections a second",
}
"""Reason code -> what to do (MQTT 5, section 2.4)."""


class Message(Record):
    """Something to publish. `expiry_s`, `properties` and `alias` are MQTT 5's, and left out with a 3.1.1 broker."""

    topic: str
    payload: bytes
    retain: bool = False
    qos: Literal[0, 1] = 1
    """0: sent once, and nobody says whether it came."""
    expiry_s: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The broker drops it when it could not be delivered for so long, and what it keeps it forgets; None: never."""
    properties: dict[str, str] = msgspec.field(default_factory=dict)
    """User properties."""
    alias: bool = False
    """Many follow on this topic: once the broker has it, it goes by a number. For QoS 1 alone."""


class Delivery:
    """A message that came; with `manual_ack` it comes again on a later connection until `acknowledge` is called."""

    def __init__(self, client: paho.Client, message: paho.MQTTMessage) -> None:
        self.topic = message.topic
        self.payload = bytes(message.payload)
        self.retained = message.retain
        """Sent before we subscribed, and kept by the broker for whoever comes."""
        self.again = message.dup
        """It may have come before: the broker was not told so."""
        self._client = client
        self._mid = message.mid
        self._qos = message.qos
        self._properties = message.properties

    @property
    def expiry_s(self) -> int | None:
        """What is left of its time, the broker's waiting taken off; None: it does not expire, or came by 3.1.1."""
        left: int | None = getattr(self._properties, "MessageExpiryInterval", None)
        return left

    @property
    def properties(self) -> dict[str, str]:
        """User properties; of several of one name the last."""
        return dict(getattr(self._properties, "UserProperty", ()))

    def acknowledge(self) -> None:
        """Tell the broker; does nothing once the connection it came by is gone."""
        self._client.ack(self._mid, self._qos)


Handler = Callable[[Delivery], None]
Done = Callable[[str | None], None]
"""Called once with None when the broker acknowledged (QoS 0: when it is sent), or with the reason why it is refused;
never if the link broke."""


class Subscription(NamedTuple):
    """Who reads what comes on a topic filter."""

    handler: Handler
    qos: int
    needed: bool


class Wanted(Record):
    """How a link wants each of its connections."""

    client_id: str
    session_expiry_s: int = 0
    manual_ack: bool = False
    receive_max: int = IN_FLIGHT_MAX
    packet_max_bytes: int | None = None


class Client(paho.Client):
    """Tells when its network thread ends, however it ends."""

    on_end: Callable[[str], None]

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """See paho's own."""
        with watched("the connection to the broker", STUCK_S):
            return self._loop_forever(timeout, retry_first_connection)

    def _loop_forever(self, timeout: float, retry_first_connection: bool) -> MQTTErrorCode:
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # such as a packet from the broker that paho cannot read
            log.exception("the MQTT client failed")
            self.on_end(f"{type(error).__name__}: {error}")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self.on_end("connection lost")

    def loop_misc(self) -> MQTTErrorCode:
        """See paho's own, whose loop calls it every second."""
        beat()
        return super().loop_misc()


def make_client(
    broker: BrokerConfig,
    protocol: MQTTProtocolVersion,
    wanted: Wanted,
    in_flight_max: int,
    new_client: Callable[..., Client] = Client,
) -> Client:
    """A client that is not connected yet.

    Raises:
        OSError, ValueError, IdentityError: the certificates' files cannot be read, or others could have changed them.
    """
    v5 = protocol == MQTTProtocolVersion.MQTTv5
    client = new_client(
        CallbackAPIVersion.VERSION2,
        wanted.client_id,
        clean_session=None if v5 else wanted.session_expiry_s < LASTING_S,
        protocol=protocol,
        reconnect_on_failure=False,
        manual_ack=wanted.manual_ack,
    )
    if broker.username is not None:
        client.username_pw_set(broker.username, broker.password)
    if broker.tls:
        client.tls_set_context(make_context(broker))
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.max_inflight_messages_set(in_flight_max)
    return client


class Connection:
    """One paho client, from connect to disconnect."""

    def __init__(
        self,
        broker: BrokerConfig,
        client: Client,
        handlers: dict[str, Subscription],
        make_will: Callable[[], Message | None],
    ) -> None:
        """Nothing is opened yet.

        Args:
            broker: where to.
            client: made for this connection alone.
            handlers: topic filter -> who reads what comes.
            make_will: called once the broker's port is open.
        """
        self.problem: str | None = None
        self.reason = 0
        """The broker's reason code, where it refused or ended the connection."""
        self.answered = False
        """Whether the broker has said anything."""
        self.takes = IN_FLIGHT_MAX
        self.will: Message | None = None
        self.packet_max_bytes: int | None = None
        """What the broker takes; None: it has not said."""
        self.settled = threading.Event()
        """Subscribed, or failed with `problem`."""
        self.down = threading.Event()
        self.broker = broker
        self._client = client
        self._v5 = client.protocol == MQTTProtocolVersion.MQTTv5
        self._handlers = handlers
        self._make_will = make_will
        self._lock = threading.Lock()
        self._waiting: dict[int, Done] = {}
        self._early: dict[int, str | None] = {}
        self._aliases_max = 0
        self._aliases: dict[str, tuple[int, bool]] = {}
        """Topic -> its number, and whether the broker has acknowledged a message that told it."""
        client.on_end = self.fail
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        for topic_filter, one in handlers.items():
            client.message_callback_add(topic_filter, self._dispatcher(one.handler))

    def open(self, wanted: Wanted) -> None:
        """Connect; `settled` follows.

        Raises:
            OSError, ValueError: it cannot be; the latter is what paho says of names it cannot use.
        """
        arguments: dict[str, Any] = {}
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = wanted.session_expiry_s
            properties.ReceiveMaximum = wanted.receive_max
            if wanted.packet_max_bytes is not None:
                properties.MaximumPacketSize = wanted.packet_max_bytes
            arguments = {"clean_start": wanted.session_expiry_s == 0, "properties": properties}
        self._client.connect(self.broker.host, self.broker.port, KEEPALIVE_S, **arguments)
        self._client.loop_start()

    def close(self) -> None:
        """Disconnect and wait for the network thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, message: Message, done: Done) -> None:
        """Hand over to the network thread; see `Link.publish`."""
        if problem := self._too_large(message):
            done(problem)
            return
        topic, properties, told = message.topic, None, 0
        if self._v5 and message.alias and message.qos:
            topic, told = self._alias(topic)
        if self._v5 and (told or message.expiry_s or message.properties):
            properties = _properties(message, told)
        info = self._client.publish(topic, message.payload, message.qos, message.retain, properties)
        if told and topic:
            done = self._once_told(topic, done)
        # No lock is held above: paho calls _on_publish with its own lock taken. So the answer may be here already.
        with self._lock:
            if info.mid not in self._early:
                self._waiting[info.mid] = done
                return
            problem = self._early.pop(info.mid)
        done(problem)

    def _too_large(self, message: Message) -> str | None:
        """Told beforehand: a broker throws the one out who sends it more than it takes."""
        if self.packet_max_bytes is None:
            return None
        told = sum(len(k.encode()) + len(v.encode()) + 5 for k, v in message.properties.items())
        size = len(message.payload) + len(message.topic.encode()) + told + _OVERHEAD_BYTES
        if size <= self.packet_max_bytes:
            return None
        return f"Packet too large: {size:,} bytes, the broker takes {self.packet_max_bytes:,}; {_HINTS[_TOO_LARGE]}"

    def _alias(self, topic: str) -> tuple[str, int]:
        """What to send for a topic, and its number; 0: the broker has none left.

        The topic goes along until a message with both is acknowledged: what waits its turn in paho may overtake.
        """
        with self._lock:
            if topic not in self._aliases:
                if len(self._aliases) >= self._aliases_max:
                    return topic, 0
                self._aliases[topic] = (len(self._aliases) + 1, False)
            number, known = self._aliases[topic]
        return "" if known else topic, number

    def _once_told(self, topic: str, done: Done) -> Done:
        def told(problem: str | None) -> None:
            if problem is None:
                with self._lock:
                    self._aliases[topic] = (self._aliases[topic][0], True)
            done(problem)

        return told

    def _on_socket_open(self, _c: object, _u: object, open_socket: Any) -> None:  # noqa: ANN401  # paho has no one type
        # Small messages are all there is: waiting to fill a packet stalls the window for 40 ms at a time.
        open_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.will = will = self._make_will()  # CONNECT, which holds it, follows
        if will is not None:
            properties = _properties(will, 0, PacketTypes.WILLMESSAGE) if self._v5 else None
            self._client.will_set(will.topic, will.payload, will.qos, will.retain, properties)

    def _acknowledge_now(self) -> None:
        """Have the kernel acknowledge what came: a broker with Nagle's algorithm on waits for that to send more."""
        open_socket: Any = self._client.socket()
        if open_socket is not None:
            open_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _on_publish(self, _c: object, _u: object, mid: int, reason: ReasonCode, properties: object) -> None:
        guard(self._acknowledge_now)
        problem = _told(reason, properties) if reason.value >= REFUSED else None
        with self._lock:
            done = self._waiting.pop(mid, None)
            if done is None:
                self._early[mid] = problem
                return
        guard(done, problem)

    def _on_connect(
        self, _c: object, _u: object, _f: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self.answered = True
        if reason.is_failure:
            self.reason = reason.value
            self.fail(_said(reason, properties))
            return
        self.takes = getattr(properties, "ReceiveMaximum", IN_FLIGHT_MAX)
        if self.takes < self._client.max_inflight_messages:  # paho cannot change it on a live connection
            self.fail(f"it takes only {self.takes} messages in flight; connecting again with that")
            return
        if getattr(properties, "MaximumQoS", 1) < 1:
            self.fail(f"QoS 1 is not supported: {_HINTS[0x9B]}")
            return
        self.packet_max_bytes = getattr(properties, "MaximumPacketSize", None)
        self._aliases_max = getattr(properties, "TopicAliasMaximum", 0)
        if self._handlers:
            self.subscribe()
        else:
            self.settled.set()

    def subscribe(self) -> None:
        """Ask for all topics, and so for what is retained there."""
        if self._v5:
            self._client.subscribe([(name, SubscribeOptions(qos=one.qos)) for name, one in self._handlers.items()])
        else:
            self._client.subscribe([(name, one.qos) for name, one in self._handlers.items()])

    def _on_subscribe(self, _c: object, _u: object, _m: int, reasons: list[ReasonCode], properties: object) -> None:
        for (name, one), reason in zip(self._handlers.items(), reasons, strict=True):
            if reason.value < REFUSED:
                continue
            problem = f"subscription to {name} refused: {_said(reason, properties)}"
            if one.needed:
                self.fail(problem)
            else:
                log.warning("broker %s: %s; going on without", self.broker.address, problem)
        self.settled.set()

    def _on_disconnect(self, _c: object, _u: object, flags: Any, reason: ReasonCode, properties: object) -> None:  # noqa: ANN401  # paho's named tuple
        told = flags.is_disconnect_packet_from_server
        self.reason = reason.value if told else 0
        self.fail(_said(reason, properties) if told or reason.value != REFUSED else "it broke")

    def fail(self, problem: str) -> None:
        """End it; the first reason stands."""
        self.problem = self.problem or problem
        self.settled.set()
        self.down.set()

    def _dispatcher(self, handler: Handler) -> Callable[[paho.Client, Any, paho.MQTTMessage], None]:
        def dispatch(client: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
            guard(self._acknowledge_now)
            guard(handler, Delivery(client, message))

        return dispatch

    def _on_message(self, client: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        # A persistent session may hold messages of a subscription an earlier version made.
        log.warning("broker %s: message on %s, which nobody reads, dropped", self.broker.address, message.topic)
        client.ack(message.mid, message.qos)


def guard(callback: Callable[..., None], *arguments: object) -> None:
    """Call it; what it raises is logged."""
    try:
        callback(*arguments)
    except Exception:  # a network thread would end silently, and the connection with it
        log.exception("a handler of MQTT messages failed")


def _properties(message: Message, alias: int, kind: int = PacketTypes.PUBLISH) -> Properties:
    made = Properties(kind)  # type: ignore[no-untyped-call]
    if message.expiry_s is not None:
        made.MessageExpiryInterval = message.expiry_s
    if message.properties:
        made.UserProperty = list(message.properties.items())
    if alias:
        made.TopicAlias = alias
    return made


def _told(reason: ReasonCode, properties: object) -> str:
    """A reason code's name, and what the broker says beside it."""
    words = [str(reason)]
    if text := getattr(properties, "ReasonString", ""):
        words.append(f"({text})")
    if server := getattr(properties, "ServerReference", ""):
        words.append(f"(the other server is {server})")
    return " ".join(words)


def _said(reason: ReasonCode, properties: object) -> str:
    """The same, and what to do."""
    hint = _HINTS.get(reason.value)
    return _told(reason, properties) + (f": {hint}" if hint else "")
