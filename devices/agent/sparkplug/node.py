"""The device as an edge node of Sparkplug B (3.0): NBIRTH, NDATA, NDEATH, and the command to be born again.

The node has an MQTT connection of its own, because NDEATH has to be that connection's last will, and the agent's other
one has another. It speaks 3.1.1, where the specification wants NDEATH published before a wanted DISCONNECT.
QoS is 0 and nobody confirms anything, as specified: what must not be lost goes by ferryman's own telemetry.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ferryman.devices.agent.sparkplug.payload import (
    BOOLEAN,
    DOUBLE,
    INT64,
    STRING,
    Metric,
    Value,
    check_installed,
    commands,
    encode_payload,
)
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.devices.topics import check_name
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.telemetry import METRICS, Sample
from ferryman.runtime.durable import write_durable

log = logging.getLogger(__name__)

NAMESPACE = "spBv1.0"
FILE = "sparkplug.json"
"""In the agent's root: the number of the last connection."""
HISTORY_MAX = 720
"""Samples that wait in memory while there is no connection; the oldest make room."""
_AT_ONCE = 20
"""Of them in one message."""
_COMMAND_MAX_BYTES = 64 << 10
_REBIRTH = "Node Control/Rebirth"
_SEQUENCES = 256
PACKAGE = "package_sha256"
TYPES = {name: BOOLEAN if name == "throttled" else DOUBLE for name in METRICS} | {PACKAGE: STRING}
ALIASES = {name: number for number, name in enumerate(TYPES, 1)}
"""Metric -> its number in data messages; bdSeq and the control have none (section 5.17)."""


class Counted(Record):
    """The content of FILE."""

    bdseq: int


class _Taken(NamedTuple):
    time_ms: int
    values: dict[str, Value]


def check_group(group: str) -> str:
    """Return `group`.

    Raises:
        CallerError: it cannot be one level of a topic (section 4.1).
    """
    if not group or set(group) & set("/+#\0"):
        raise CallerError(f"--sparkplug: expected a group's name without / + #, found {group!r}")
    return group


class SparkplugNode:
    """One device's; `tell` takes its samples, from any thread."""

    def __init__(
        self, broker: BrokerConfig, group: str, device: str, root: Path, clock_ms: Callable[[], int] | None = None
    ) -> None:
        """Describe the connection; nothing is opened yet.

        Args:
            broker: where to.
            group: the node's group.
            device: its name.
            root: of the agent, where the connections are counted.
            clock_ms: Unix epoch.

        Raises:
            CallerError: the group's or the device's name cannot stand in a topic.
            DeviceError: the extra is not installed.
        """
        check_installed()
        self._topic = f"{NAMESPACE}/{check_group(group)}/{{}}/{check_name(device)}"
        self._file = root / FILE
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._bdseq = self._read_bdseq()
        self._lock = threading.Lock()
        self._seq = 0
        self._born = False
        self._values: dict[str, Value] = dict.fromkeys(TYPES)
        self._history: deque[_Taken] = deque(maxlen=HISTORY_MAX)
        self._link = Link(
            msgspec.structs.replace(broker, only_3_1_1=True), f"ferryman-sparkplug-{device}", will=self._death
        )
        self._link.subscribe(self._topic.format("NCMD"), self._on_command)
        self._link.on_ready(self._bear)
        self._link.on_down(self._end)
        self.start, self.stop = self._link.start, self._link.stop
        self.pause, self.resume = self._link.pause, self._link.resume

    @property
    def paused(self) -> bool:
        """Whether it stays away."""
        return self._link.paused

    def tell(self, sample: Sample) -> None:
        """Publish what changed; while there is no connection it waits, and is history then."""
        values: dict[str, Value] = dict.fromkeys(TYPES)
        for name, value in sample.values.items():
            if name in TYPES:
                values[name] = bool(value) if TYPES[name] == BOOLEAN else value
        values[PACKAGE] = sample.package_sha256
        with self._lock:
            taken = _Taken(self._clock_ms(), values)
            if not self._born:
                self._history.append(taken)
                return
            changed = {name: value for name, value in values.items() if value != self._values[name]}
            self._values = values
            if changed and not self._publish("NDATA", _metrics(_Taken(taken.time_ms, changed))):
                self._history.append(taken)

    def _bear(self) -> None:
        """Tell everything there is, and what was taken meanwhile."""
        with self._lock:
            if self._history:
                self._values = self._history[-1].values
            now_ms, self._seq = self._clock_ms(), 0
            control = [
                Metric("bdSeq", None, INT64, now_ms, self._bdseq),
                Metric(_REBIRTH, None, BOOLEAN, now_ms, value=False),
            ]
            self._born = self._publish("NBIRTH", [*control, *_metrics(_Taken(now_ms, self._values), named=True)])
            while self._born and self._history:
                some = [self._history.popleft() for _ in range(min(_AT_ONCE, len(self._history)))]
                told = [metric for taken in some for metric in _metrics(taken, historical=True)]
                if not self._publish("NDATA", told):
                    self._history.extendleft(reversed(some))
                    self._born = False

    def _end(self) -> None:
        with self._lock:
            self._born = False

    def _publish(self, kind: str, metrics: list[Metric]) -> bool:
        payload = encode_payload(self._clock_ms(), metrics, self._seq)
        try:
            self._link.publish(Message(topic=self._topic.format(kind), payload=payload, qos=0))
        except LinkError as error:
            log.debug("%s not sent: %s", kind, error)
            return False
        self._seq = (self._seq + 1) % _SEQUENCES
        return True

    def _death(self) -> Message:
        """For a new connection, which is counted (section 6.4.21)."""
        self._bdseq = (self._bdseq + 1) % _SEQUENCES
        try:
            write_durable(self._file, encode(Counted(bdseq=self._bdseq)))
        except DeviceError as error:
            log.warning("the connection is not counted on disk: %s", error)
        now_ms = self._clock_ms()
        payload = encode_payload(now_ms, [Metric("bdSeq", None, INT64, now_ms, self._bdseq)], None)
        return Message(topic=self._topic.format("NDEATH"), payload=payload)

    def _read_bdseq(self) -> int:
        """Of the last connection; before the first one it is -1, for they count from 0."""
        try:
            return decode(self._file.read_bytes(), Counted).bdseq % _SEQUENCES
        except FileNotFoundError:
            return -1
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, counting from 0: %s", self._file, error)
            return -1

    def _on_command(self, delivery: Delivery) -> None:
        if delivery.retained or len(delivery.payload) > _COMMAND_MAX_BYTES:
            log.warning("command on %s is retained or too large, ignored", delivery.topic)
            return
        try:
            asked = commands(delivery.payload)
        except ValueError as error:
            log.warning("command on %s cannot be read, ignored: %s", delivery.topic, error)
            return
        if asked.get(_REBIRTH):
            self._bear()


def _metrics(taken: _Taken, *, named: bool = False, historical: bool = False) -> list[Metric]:
    """Those of TYPES; what is history tells no nulls, for they would say nothing."""
    return [
        Metric(name if named else None, ALIASES[name], TYPES[name], taken.time_ms, value, historical)
        for name, value in taken.values.items()
        if not (historical and value is None)
    ]
