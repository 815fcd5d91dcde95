"""A link to an MQTT broker that keeps itself up; agent, collector and client all use this one.

MQTT 5 is spoken, or 3.1.1 with a broker that says it does not know 5. What one connection is stands in
`ferryman.devices.mqtt_connection`; this makes one after another.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from paho.mqtt.enums import MQTTProtocolVersion

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt_connection import (
    CONNECT_TIMEOUT_S,
    IN_FLIGHT_MAX,
    REFUSED,
    VERSION_REFUSED,
    Client,
    Connection,
    Delivery,
    Done,
    Handler,
    Message,
    Subscription,
    Wanted,
    guard,
    make_client,
)
from ferryman.devices.tls import explain_failure, explain_silence
from ferryman.runtime.alive import watched
from ferryman.runtime.contracts.errors import FerrymanError, IdentityError, LinkError

__all__ = ["Delivery", "Done", "Handler", "Link", "Message", "backoff_s"]

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.25
RETRY_CAP_S = 30.0
STABLE_S = 5.0
"""A connection that held for less does not count as a good one."""
ANSWER_TIMEOUT_S = 5.0
"""For CONNACK and SUBACK."""
STOP_WAIT_S = 1.0
"""For the acknowledgement of the last message."""
SILENCE = f"no answer within {ANSWER_TIMEOUT_S:g} s"
PAUSED = "paused"
STOPPED = "stopped"
ANEW = "connecting anew"


def backoff_s(attempt: int, first_s: float, cap_s: float) -> float:
    """Time to wait after `attempt` failures: doubling, capped, jittered so that a fleet does not come all at once."""
    return min(cap_s, first_s * 2.0 ** min(attempt, 32)) * random.uniform(0.5, 1.0)  # noqa: S311


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
        will: Callable[[], Message] | Message | None = None,
        session_expiry_s: int = 0,
        manual_ack: bool = False,
        receive_max: int = IN_FLIGHT_MAX,
        packet_max_bytes: int | None = None,
        new_client: Callable[..., Client] = Client,
    ) -> None:
        """Describe the connection; nothing is opened yet.

        Args:
            broker: where to.
            client_id: unique at the broker: a second client of that name throws the first out.
            will: published by the broker when the connection breaks, and by `stop` and `pause`; a callable is asked for
                a new one by each connection, once the broker's port is open and before CONNECT goes out.
            session_expiry_s: how long the broker keeps the session while nobody is connected; 0: no session. A 3.1.1
                broker keeps one for ever, and so is asked for it only from an hour on.
            manual_ack: leave acknowledging to the handlers.
            receive_max: how many unacknowledged messages the broker may send (MQTT 5; a 3.1.1 broker has its own).
            packet_max_bytes: the broker drops what is larger, unsent (MQTT 5; a 3.1.1 broker knows no such limit).
            new_client: makes the paho client of each connection.
        """
        self.broker = broker
        self._will = will
        self._new_client = new_client
        self._wanted = Wanted(
            client_id=client_id,
            session_expiry_s=session_expiry_s,
            manual_ack=manual_ack,
            receive_max=receive_max,
            packet_max_bytes=packet_max_bytes,
        )
        self._handlers: dict[str, Subscription] = {}
        self._ready_callbacks: list[Callable[[], None]] = []
        self._down_callbacks: list[Callable[[], None]] = []
        self._connection: Connection | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._paused = threading.Event()
        self._handing_over = threading.Condition()
        self._under_way = 0
        """Messages that `publish` is handing over to a connection: last words come behind them."""
        self._nudge = threading.Event()
        """Set where a wait of the link's thread is over before its time."""
        self._problem = "not started"
        self._lost_at: float | None = None
        """Since when the log says that there is no connection; None: it does not."""
        self._was_ready = False
        self._in_flight_max = IN_FLIGHT_MAX
        self._knows_v5 = False
        self._thread = threading.Thread(target=self._run, name=f"link-{client_id}", daemon=True)

    def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, needed: bool = True) -> None:
        """Have `handler` called with what comes on `topic_filter`, on this and every later connection.

        With `qos` 1 a broker drops what is over its queue (mosquitto: 1,000 messages), silently; with 0 it does not
        queue. What a whole fleet has retained is more than that: take 0 for it, and `refresh` now and then. A
        subscription that is not `needed` may be refused, which is logged; else there is no connection without it.
        """
        self._handlers[topic_filter] = Subscription(handler, qos, needed)

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
        self._say_last(self._stopping)
        self._end(STOPPED)
        if self._thread.is_alive():
            self._thread.join(CONNECT_TIMEOUT_S)

    def pause(self, farewell: Message | None = None) -> None:
        """Publish `farewell` (None: the last will) and disconnect, until `resume`; the broker keeps a session."""
        if self._paused.is_set():
            return
        self._say_last(self._paused, farewell)
        self._end(PAUSED)

    def resume(self) -> None:
        """Connect again, at once."""
        self._paused.clear()
        self._nudge.set()

    def reconnect(self, broker: BrokerConfig) -> None:
        """Disconnect without a last will, and go on with this description of the same broker, at once."""
        self.broker = broker
        self._ready.clear()
        self._end(ANEW)

    @property
    def connected_by(self) -> BrokerConfig | None:
        """The description by which the link is ready now; None: it is not."""
        connection = self._connection
        return connection.broker if connection is not None and self._ready.is_set() and not connection.problem else None

    @property
    def paused(self) -> bool:
        """Whether it stays away by `pause`."""
        return self._paused.is_set()

    @property
    def problem(self) -> str:
        """Why the link is not ready; empty when it is."""
        return "" if self._ready.is_set() else self._problem

    @property
    def packet_max_bytes(self) -> int | None:
        """The largest packet the broker takes; None: it has not said. What is larger is refused before it is sent."""
        connection = self._connection
        return connection.packet_max_bytes if connection else None

    def wait_ready(self, timeout_s: float) -> None:
        """Return once connected and subscribed.

        Raises:
            LinkError: not in that time; says what is in the way.
        """
        if not self._ready.wait(timeout_s):
            raise LinkError(f"broker {self.broker.address}: not connected after {timeout_s:g} s: {self._problem}")

    def publish(self, message: Message, done: Done = lambda _: None) -> None:
        """Send; returns before the broker has it.

        Raises:
            LinkError: there is no connection now, or its last words are said: a status behind them would stay.
            ValueError: MQTT cannot carry it (over 256 MiB, or a topic with a wildcard).
        """
        with self._handing_over:
            if self._unwanted:
                raise LinkError(f"broker {self.broker.address}: not connected: {PAUSED if self.paused else STOPPED}")
            self._under_way += 1
        try:
            connection = self._connection
            if connection is None or not self._ready.is_set():
                raise LinkError(f"broker {self.broker.address}: not connected: {self._problem}")
            connection.publish(message, done)
        finally:
            with self._handing_over:
                self._under_way -= 1
                self._handing_over.notify_all()

    def _say_last(self, ended: threading.Event, instead: Message | None = None) -> None:
        """Let nobody publish from now on, and say the last words behind those who do already."""
        with self._handing_over:
            ended.set()
            self._handing_over.wait_for(lambda: not self._under_way, STOP_WAIT_S)
        self._say_will(instead)

    def _say_will(self, instead: Message | None = None) -> None:
        """Publish it, as it was made for this connection, and wait a little for the broker to have it."""
        connection = self._connection
        if connection is not None and (will := instead or connection.will) is not None and self._ready.is_set():
            gone = threading.Event()
            connection.publish(will, lambda _: gone.set())
            gone.wait(STOP_WAIT_S)

    def _end(self, problem: str) -> None:
        if (connection := self._connection) is not None:
            connection.fail(problem)
        self._nudge.set()

    @property
    def _unwanted(self) -> bool:
        return self._stopping.is_set() or self._paused.is_set()

    def _run(self) -> None:
        with watched("the link to the broker", None):
            self._keep_up()

    def _keep_up(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            self._nudge.clear()
            if self._stopping.is_set():
                return
            if self._paused.is_set():
                self._problem, attempt = PAUSED, 0
                self._nudge.wait()
                continue
            began = time.monotonic()
            problem = self._attempt()
            if self._unwanted:
                continue
            if problem is None:
                attempt = self._judge(attempt, held_s=time.monotonic() - began)
            elif problem != self._problem or attempt == 0:
                self._lost_at = self._lost_at or began
                log.warning("broker %s: %s; retrying", self.broker.address, problem)
            self._problem = problem or "connection lost"
            self._nudge.wait(backoff_s(attempt, RETRY_FIRST_S, RETRY_CAP_S))
            attempt += 1

    def _judge(self, attempt: int, held_s: float) -> int:
        """How many attempts failed so far, with a connection that was ready; one the broker ended is no good one."""
        if self._connection is not None and self._connection.problem == ANEW:
            return 0
        ended = self._connection is not None and self._connection.reason >= REFUSED
        if held_s >= STABLE_S:
            return attempt if ended else 0
        if attempt:
            log.warning(
                "broker %s: thrown out again at once: does another client call itself %s?",
                self.broker.address,
                self._wanted.client_id,
            )
        return attempt

    def _attempt(self) -> str | None:
        """One connection of the best version the broker speaks; some (amqtt) do not refuse 5 but stay silent."""
        if self.broker.only_3_1_1:
            return self._serve(MQTTProtocolVersion.MQTTv311)
        problem = self._serve(MQTTProtocolVersion.MQTTv5)
        self._knows_v5 |= problem is None
        refused = problem is not None and self._connection is not None and self._connection.reason == VERSION_REFUSED
        if refused or (problem == SILENCE and not self._knows_v5):
            log.warning("broker %s: %s for MQTT 5; trying 3.1.1", self.broker.address, problem)
            if problem == SILENCE:  # who waits may give up before 3.1.1 has been silent as long
                self._problem = problem
            problem = self._serve(MQTTProtocolVersion.MQTTv311)
        return problem

    def _serve(self, protocol: MQTTProtocolVersion) -> str | None:
        """Hold one connection from beginning to end; the problem, or None if it was ready in between."""
        try:
            client = make_client(self.broker, protocol, self._wanted, self._in_flight_max, self._new_client)
        except (OSError, ValueError, IdentityError) as error:  # the certificates' files
            return f"TLS files: {type(error).__name__}: {error}"
        connection = Connection(self.broker, client, self._handlers, self._make_will)
        self._connection = connection
        try:
            connection.open(self._wanted)
            if not connection.settled.wait(ANSWER_TIMEOUT_S):
                return SILENCE
            if connection.problem is not None or self._unwanted:
                unheard = connection.problem if not connection.answered and not self._unwanted else None
                return explain_silence(unheard, self.broker) if unheard else connection.problem
            self._ready.set()
            self._say_ready()
            for callback in self._ready_callbacks:
                guard(callback)
            connection.down.wait()
            self._ready.clear()
            if not self._unwanted:
                self._lost_at = time.monotonic()
                log.warning("broker %s: connection lost: %s", self.broker.address, connection.problem)
        except (OSError, ValueError) as error:  # ValueError: what paho says of names it cannot use
            return explain_failure(error, self.broker)
        except FerrymanError as error:  # no last will can be made
            return str(error)
        finally:
            self._in_flight_max = min(IN_FLIGHT_MAX, connection.takes)
            connection.close()
        for callback in self._down_callbacks:
            guard(callback)
        return None

    def _say_ready(self) -> None:
        """As loud as the loss was: whose last words are that it is away is taken for away."""
        log.info("broker %s: connected as %s", self.broker.address, self._wanted.client_id)
        if self._lost_at is not None:
            again = " again" if self._was_ready else ""
            log.warning(
                "broker %s: connected%s after %.0f s", self.broker.address, again, time.monotonic() - self._lost_at
            )
        self._lost_at, self._was_ready = None, True

    def _make_will(self) -> Message | None:
        return self._will() if callable(self._will) else self._will
