"""paho's client, made quick at the two things a collector does all day: taking PUBLISH and answering PUBACK.

paho reads a packet byte by byte and builds an object around it, some 45 us; here many packets are cut from one read,
and many acknowledgements go out as one write, some 10 us a message (docs/telemetry/collector.md). All else stays
paho's: connecting, TLS, subscriptions, keep-alive, and every packet but PUBLISH.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from ferryman.devices.fleet.collector.framing import (
    PUBACK,
    PUBLISH,
    Came,
    cut,
    read_publish,
    write_puback,
    write_publish,
)
from ferryman.devices.mqtt_connection import Client

log = logging.getLogger(__name__)

READ_BYTES = 256 << 10


class BulkClient(Client):
    """Hands over PUBLISH packets of some topics by the read; what it hands over is acknowledged by `send` alone."""

    def __init__(
        self,
        begin: bytes,
        ends: tuple[bytes, ...],
        on_messages: Callable[[BulkClient, list[Came]], None],
        *arguments: Any,  # noqa: ANN401  # paho's
        **options: Any,  # noqa: ANN401  # paho's
    ) -> None:
        """Make a client of which topics that begin and end so go to `on_messages`, on the network thread.

        The other arguments are paho's.
        """
        super().__init__(*arguments, **options)
        self._begin, self._ends = begin, ends
        self._on_messages = on_messages
        self._parts: list[bytes] = []
        self._missing_bytes = 0

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:  # noqa: ARG002  # paho's signature
        """Take whatever has come in; called by paho's network thread when there is something."""
        try:
            read = self._sock_recv(READ_BYTES)
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError as error:
            log.debug("reading: %s", error)
            read = b""
        if not read:
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        self._parts.append(read)
        self._missing_bytes -= len(read)
        if self._missing_bytes > 0:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        try:
            packets, rest, self._missing_bytes = cut(b"".join(self._parts))
            self._parts = [rest]
            result = self._handle(packets)
        except ValueError as error:
            log.warning("the broker sent what is no MQTT: %s", error)
            result = MQTTErrorCode.MQTT_ERR_PROTOCOL
        return result if result == MQTTErrorCode.MQTT_ERR_SUCCESS else self._loop_rc_handle(result)

    def send(self, acknowledged: Iterable[bytes], messages: Iterable[tuple[str, bytes]]) -> None:
        """Acknowledge these packet identifiers, and publish these (topic, payload) with QoS 0, in one write.

        Nothing happens once the connection is gone.
        """
        v5 = self.protocol == MQTTProtocolVersion.MQTTv5
        parts = [write_puback(identifier) for identifier in acknowledged if identifier]
        parts += [write_publish(topic, payload, v5=v5) for topic, payload in messages]
        if parts:
            self._packet_queue(PUBACK, b"".join(parts), 0, 0)

    def _handle(self, packets: list[tuple[int, bytes]]) -> MQTTErrorCode:
        came: list[Came] = []
        v5 = self.protocol == MQTTProtocolVersion.MQTTv5
        result = MQTTErrorCode.MQTT_ERR_SUCCESS
        for first, body in packets:
            if first & 0xF4 == PUBLISH:  # QoS 2 is not subscribed to
                message = read_publish(first, body, v5=v5)
                if message[0].endswith(self._ends) and message[0].startswith(self._begin):
                    came.append(message)
                    continue
            result = self._pass_on(first, body)
            if result != MQTTErrorCode.MQTT_ERR_SUCCESS or self._sock is None:
                break
        if came:
            self._on_messages(self, came)
        return result

    def _pass_on(self, first: int, body: bytes) -> MQTTErrorCode:
        """Have paho do with a whole packet what it does with those it read itself."""
        packet: Any = self._in_packet
        packet.update(command=first, packet=bytearray(body), remaining_length=len(body), have_remaining=1, pos=0)
        try:
            return self._packet_handle()
        finally:
            packet.update(command=0, packet=bytearray(), remaining_length=0, have_remaining=0, pos=0)
