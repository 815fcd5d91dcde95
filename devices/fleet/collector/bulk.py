"""paho's client, made quick at the two things a collector does all day: taking PUBLISH and answering PUBACK.

paho reads a packet byte by byte and builds an object around it, some 45 us; here many packets are cut from one read, and
many acknowledgements go out as one write, some 10 us a message (docs/telemetry/collector.md). Everything else stays
paho's: connecting, TLS, subscriptions, keep-alive, and any packet but PUBLISH.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from ferryman.devices.mqtt_connection import Client

log = logging.getLogger(__name__)

READ_BYTES = 256 << 10
_PUBLISH, _PUBACK = 0x30, 0x40
_PUBLISH_QOS_0 = b"\x30"
_LENGTH_MAX_BYTES = 4
_MORE = 0x80
"""Set in a byte of a length that another follows."""

Came = tuple[bytes, bytes, bytes]
"""Topic, packet identifier (empty: QoS 0), payload."""


class BulkClient(Client):
    """Hands over PUBLISH packets of some topics by the read; what it hands over is acknowledged by `send` alone."""

    def __init__(
        self,
        ends: tuple[bytes, ...],
        on_messages: Callable[[BulkClient, list[Came]], None],
        *arguments: Any,  # noqa: ANN401  # paho's
        **options: Any,  # noqa: ANN401  # paho's
    ) -> None:
        """Make a client of which topics that end so go to `on_messages`, on the network thread.

        The other arguments are paho's.
        """
        super().__init__(*arguments, **options)
        self._ends = ends
        self._on_messages = on_messages
        self._parts: list[bytes] = []
        self._missing_bytes = 0
        """Of a packet that has begun."""

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
        data = b"".join(self._parts)
        came: list[Came] = []
        at, result = 0, MQTTErrorCode.MQTT_ERR_SUCCESS
        v5 = self.protocol == MQTTProtocolVersion.MQTTv5
        self._missing_bytes = 0
        try:
            while (span := packet(data, at)) is not None:
                start, end = span
                if end > len(data):
                    self._missing_bytes = end - len(data)
                    break
                if data[at] & 0xF4 == _PUBLISH and (one := publish(data[at], data[start:end], v5=v5))[0].endswith(self._ends):
                    came.append(one)
                else:
                    result = self._pass_on(data[at], data[start:end])
                    if result != MQTTErrorCode.MQTT_ERR_SUCCESS or self._sock is None:
                        break
                at = end
        except ValueError as error:
            log.warning("the broker sent what is no MQTT: %s", error)
            result = MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._parts = [data[at:]]
        if came:
            self._on_messages(self, came)
        return self._loop_rc_handle(result) if result != MQTTErrorCode.MQTT_ERR_SUCCESS else result

    def send(self, acknowledged: Iterable[bytes], messages: Sequence[tuple[str, bytes]]) -> None:
        """Acknowledge these packet identifiers, and publish these (topic, payload) with QoS 0, in one write.

        Nothing happens once the connection is gone.
        """
        v5 = self.protocol == MQTTProtocolVersion.MQTTv5
        parts = [b"\x40\x02" + identifier for identifier in acknowledged if identifier]
        for topic, payload in messages:
            name = topic.encode()
            body = len(name).to_bytes(2, "big") + name + (b"\0" if v5 else b"") + payload
            parts.append(_PUBLISH_QOS_0 + length(len(body)) + body)
        if parts:
            self._packet_queue(_PUBACK, b"".join(parts), 0, 0)

    def _pass_on(self, command: int, body: bytes) -> MQTTErrorCode:
        """Have paho do with a whole packet what it does with those it read itself."""
        packet: Any = self._in_packet
        packet.update(command=command, packet=bytearray(body), remaining_length=len(body), have_remaining=1, pos=0)
        try:
            return self._packet_handle()
        finally:
            packet.update(command=0, packet=bytearray(), remaining_length=0, have_remaining=0, pos=0)


def packet(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at `at` begins and ends; None: its length is not all there (MQTT 5, section 2.1).

    Raises:
        ValueError: a length of more than four bytes.
    """
    if (found := _length(data, at + 1)) is None:
        return None
    size, start = found
    return start, start + size


def _length(data: bytes, at: int) -> tuple[int, int] | None:
    """A length, and where what follows it begins; None: it is not all there (section 1.5.5)."""
    size = shift = 0
    for place in range(at, len(data)):
        byte = data[place]
        size |= (byte & _MORE - 1) << shift
        if byte < _MORE:
            return size, place + 1
        shift += 7
        if shift == 7 * _LENGTH_MAX_BYTES:
            raise ValueError("a length of more than four bytes")
    return None


def publish(command: int, body: bytes, *, v5: bool) -> Came:
    """Take a PUBLISH apart (MQTT 5, section 3.3); its properties are not for us.

    Raises:
        ValueError: it is shorter than it says.
    """
    at = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:at]
    identifier = b""
    if command & 0x06:
        identifier = body[at : at + 2]
        at += 2
    if v5:
        if (found := _length(body, at)) is None:
            raise ValueError("a PUBLISH that is cut short")
        at = found[0] + found[1]
    if at > len(body):
        raise ValueError("a PUBLISH that is cut short")
    return topic, identifier, body[at:]


def length(size: int) -> bytes:
    """A number as MQTT writes lengths (section 1.5.5)."""
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (_MORE if size else 0))
        if not size:
            return bytes(out)
