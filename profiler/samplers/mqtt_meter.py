"""A smart plug that publishes to an MQTT broker.

Tasmota (`tele/PLUG/SENSOR`), Shelly from the second generation on (`PLUG/status/switch:0`), or anything that publishes
watts as a number.

A reading is of the moment it arrives. The plug's own averaging and the way through the broker delay it by about two
seconds, so as long after each change of load readings are left out (`settle`); a delay that stays the same then moves
nothing, for the load stays the same within a window. Tasmota publishes every `TelePeriod` (10 s at the least), and
Shelly when power changes: where `poll` says how often, both are asked instead.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ferryman.profiler.samplers.base import Inbox, Reading
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

PASSWORD = "FERRYMAN_METER_PASSWORD"  # noqa: S105  # the name of the variable that holds it
_PAYLOAD_MAX = 1 << 16
_CONNECT_S = 10.0


def parse_tasmota(text: str) -> float | None:
    """Watts of `{"ENERGY": {"Power": ...}}`, also within `StatusSNS`; None of another message.

    Raises:
        SensorError: it is garbage.
    """
    message = _object(text)
    message = _child(message, "StatusSNS") or message
    energy = _child(message, "ENERGY")
    return None if energy is None else _number(energy.get("Power"))


def parse_shelly(text: str) -> float | None:
    """Watts of a switch's status (`apower`), also as the answer of a call; None of another message.

    Raises:
        SensorError: it is garbage.
    """
    message = _object(text)
    message = _child(message, "result") or message
    return _number(message["apower"]) if "apower" in message else None


def parse_watts(text: str) -> float:
    """A number alone.

    Raises:
        SensorError: it is something else.
    """
    try:
        return _number(float(text))
    except ValueError as error:
        raise SensorError(f"expected watts, found {text[:60]!r}") from error


@dataclass(frozen=True)
class Kind:
    """How plugs of a make speak."""

    parse: Callable[[str], float | None]
    resolution: float | Unavailable
    period_s: float
    """Between two messages, as they come from the box."""
    poll: Callable[[str], tuple[str, str, str]] | None = None
    """Topic -> topic and payload to ask with, and the topic of the answer."""


def _ask_tasmota(topic: str) -> tuple[str, str, str]:
    plug = topic.removeprefix("tele/").removesuffix("/SENSOR")
    return f"cmnd/{plug}/STATUS", "8", f"stat/{plug}/STATUS8"


def _ask_shelly(topic: str) -> tuple[str, str, str]:
    plug, _, switch = topic.rpartition("/status/switch:")
    own = f"ferryman/{os.getpid()}-{time.monotonic_ns():x}"
    call = {"id": 1, "src": own, "method": "Switch.GetStatus", "params": {"id": int(switch)}}
    return f"{plug}/rpc", json.dumps(call), f"{own}/rpc"


_DEPENDS = Unavailable(reason="depends on the plug")
KINDS = {
    "tasmota": Kind(parse_tasmota, Unavailable(reason="depends on WattRes, 1 W from the box"), 10.0, _ask_tasmota),
    "shelly": Kind(parse_shelly, 0.1, 5.0, _ask_shelly),
    "watts": Kind(parse_watts, _DEPENDS, 1.0),
}


class MqttSampler:
    """Implements `Sampler`; listens from when it is made."""

    def __init__(
        self, host: str, port: int, topic: str, kind_name: str, poll_s: float, settle_s: float, user: str
    ) -> None:
        """Connect, and wait for the first reading.

        Args:
            host: of the broker.
            port: of the broker.
            topic: where the plug publishes.
            kind_name: one of KINDS.
            poll_s: how often to ask the plug; 0: never, listen.
            settle_s: readings so soon after a change of load are left out.
            user: for the broker, with the password from the environment; empty: none.

        Raises:
            SensorError: no broker, no reading.
        """
        kind = KINDS[kind_name]
        self.period_s, self.settle_s = poll_s or kind.period_s, settle_s
        self._parse, self._topics = kind.parse, [topic]
        self._ask: tuple[str, str] | None = None
        if poll_s and kind.poll:
            *ask, answer = kind.poll(topic)
            self._ask, self._topics = (ask[0], ask[1]), [answer]
        self.source = EnergySource(
            name=f"{kind_name} plug at mqtt://{host}/{topic}",
            rails=("whole device, with its power supply",),
            unit="W",
            resolution=kind.resolution,
            renewed_s=Unavailable(reason="depends on the plug, often about 1 s"),
            uncertainty=_DEPENDS,
            note=f"stamped on arrival; readings of the first {settle_s:g} s after a change of load are left out",
        )
        self._inbox = Inbox(self.source.name, max(10.0, 3 * self.period_s))
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, clean_session=True)
        if user:
            client.username_pw_set(user, os.environ.get(PASSWORD))
        client.on_connect, client.on_disconnect, client.on_message = self._connected, self._lost, self._message
        try:
            client.connect(host, port, keepalive=15)
        except (OSError, ValueError) as error:
            raise SensorError(f"broker {host}:{port}: {error}") from error
        client.loop_start()
        try:
            self._wait()
        except SensorError:
            self.close()
            raise

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        if self._ask:
            self._client.publish(*self._ask)
        return self._inbox.take()

    def close(self) -> None:
        """See `Sampler.close`."""
        with suppress(OSError, ValueError):
            self._client.disconnect()
        self._client.loop_stop()

    def _wait(self) -> None:
        self._inbox.wait(_CONNECT_S + 2 * self.period_s)

    def _connected(
        self, client: paho.Client, _data: object, _flags: paho.ConnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        if code.is_failure:
            self._inbox.fail(f"the broker refuses: {code}")
            return
        for topic in self._topics:
            client.subscribe(topic)
        if self._ask:
            client.publish(*self._ask)

    def _lost(
        self, _client: paho.Client, _data: object, _flags: paho.DisconnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        self._inbox.fail(f"the broker is gone: {code}")

    def _message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.retain:
            return  # of an earlier time
        try:
            watts = self._parse(message.payload[:_PAYLOAD_MAX].decode(errors="replace"))
        except SensorError as error:
            self._inbox.fail(str(error))
            return
        if watts is not None:
            self._inbox.put(watts)


def _object(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SensorError(f"expected JSON, found {text[:60]!r}") from error
    if not isinstance(found, dict):
        raise SensorError(f"expected a JSON object, found {text[:60]!r}")
    return found


def _child(message: dict[str, object], name: str) -> dict[str, object] | None:
    child = message.get(name)
    return child if isinstance(child, dict) else None


def _number(value: object) -> float:
    """Of a plug with several sockets, the first."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SensorError(f"expected watts, found {str(value)[:60]!r}")
    return float(value)
