"""Home Assistant finds the device by itself: MQTT discovery of a device with all its entities in one retained message.

Home Assistant's documentation, integrations/mqtt, "Device discovery payload" (since 2024.11). States come from the
device's live topic, availability from its status.
"""

from __future__ import annotations

import logging
import math
import random
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

import ferryman
from ferryman.devices import topics
from ferryman.devices.agent.sampler import LIVE_PERIODS
from ferryman.devices.mqtt import Delivery, Link, Message
from ferryman.runtime.contracts.errors import CallerError, DeviceError, LinkError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.durable import write_durable

log = logging.getLogger(__name__)

PREFIX = "homeassistant"
FILE = "homeassistant.json"
"""In the agent's root: what was announced last, so that it can be taken back."""
TAKEN_S = 5.0
"""So long the broker may take to acknowledge what is to be remembered; else it is told again on the next connection."""
SPREAD_S = 5.0
"""When Home Assistant has started, devices announce themselves within so long, not all at once."""
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")

SENSORS: dict[str, tuple[str, str | None, str | None]] = {
    "inferences": ("Inferences", None, None),
    "errors": ("Errors", None, None),
    "latency_ms": ("Latency", "duration", "ms"),
    "cpu_percent": ("Processor", None, "%"),
    "memory_used_mb": ("Memory used", "data_size", "MB"),
    "agent_memory_mb": ("Agent's memory", "data_size", "MB"),
    "disk_free_mb": ("Disk free", "data_size", "MB"),
    "temperature_c": ("Temperature", "temperature", "°C"),
    "clock_mhz": ("Clock", "frequency", "MHz"),
    "power_w": ("Power", "power", "W"),
    "energy_mj": ("Energy of an inference", None, "mJ"),
    "battery_percent": ("Battery", "battery", "%"),
    "outbox_records": ("Outbox records", None, None),
    "outbox_mb": ("Outbox", "data_size", "MB"),
}
"""Metric -> name, device class, unit; the pairs that Home Assistant's sensor entities allow. `throttled` is binary."""
PRIMARY = frozenset({"inferences", "latency_ms", "power_w"})
"""What the device is there for; all else is `diagnostic`."""
SERVED = {"package": ("Package", "package_name"), "release": ("Release", "release")}
"""Text sensors: name, and the field of the status."""


class Announced(Record):
    """What Home Assistant was told last."""

    prefix: str
    platforms: dict[str, str]
    """Component -> its platform."""


def check_prefix(prefix: str) -> str:
    """Return `prefix`.

    Raises:
        CallerError: it is no discovery prefix.
    """
    if not _PREFIX.fullmatch(prefix):
        raise CallerError(f"--home-assistant: expected a prefix such as {PREFIX}, found {prefix!r}")
    return prefix


def config_topic(prefix: str, device: str) -> str:
    """Where the device is announced."""
    return f"{prefix}/device/{topics.check_name(device)}/config"


def discovery(
    device: str, model: str, period_s: float, gone: Mapping[str, str], missing: Collection[str] = ()
) -> dict[str, Any]:
    """The message that announces a device.

    Args:
        device: its name.
        model: what kind it is.
        period_s: of its samples; a state that is three periods old is none.
        gone: components of an earlier announcement that there are no more -> their platforms.
        missing: metrics that the device has no sensor for.
    """
    available = {
        "availability": [
            {
                "topic": topics.status(device),
                "value_template": "{{ 'online' if value_json.online else 'offline' }}",
            }
        ]
    }
    own = available | {"state_topic": topics.live(device), "expire_after": math.ceil(LIVE_PERIODS * period_s)}
    diagnostic = {"entity_category": "diagnostic"}
    components: dict[str, dict[str, Any]] = {}
    for metric, (name, device_class, unit) in SENSORS.items():
        sensor = {
            "platform": "sensor",
            "unique_id": f"ferryman_{device}_{metric}",
            "name": name,
            # `values` in brackets: with a dot it is a method of the mapping.
            "value_template": f"{{{{ value_json['values'].get('{metric}') }}}}",
            "state_class": "measurement",
        }
        units = {"device_class": device_class, "unit_of_measurement": unit}
        category = {} if metric in PRIMARY else diagnostic
        components[metric] = own | category | sensor | {key: value for key, value in units.items() if value}
    components["throttled"] = (
        own
        | diagnostic
        | {
            "platform": "binary_sensor",
            "unique_id": f"ferryman_{device}_throttled",
            "name": "Throttled",
            "device_class": "problem",
            "value_template": "{{ {0.0: 'OFF', 1.0: 'ON'}.get(value_json['values'].get('throttled')) }}",
        }
    )
    components["online"] = {  # no availability: it is there to say that the device is not
        "platform": "binary_sensor",
        "unique_id": f"ferryman_{device}_online",
        "name": "Online",
        "device_class": "connectivity",
        "entity_category": "diagnostic",
        "state_topic": topics.status(device),
        "value_template": "{{ 'ON' if value_json.online else 'OFF' }}",
    }
    for key, (name, field) in SERVED.items():
        text = {
            "platform": "sensor",
            "unique_id": f"ferryman_{device}_{key}",
            "name": name,
            "state_topic": topics.status(device),
            "value_template": f"{{{{ value_json.get('{field}') }}}}",
        }
        components[key] = available | diagnostic | text
    components = {name: one for name, one in components.items() if name not in missing}
    components |= {name: {"platform": platform} for name, platform in gone.items()}
    return {
        "device": {
            "identifiers": [f"ferryman_{device}"],
            "name": device,
            "manufacturer": "ferryman",
            "model": model,
            "sw_version": ferryman.__version__,
        },
        "origin": {"name": "ferryman", "sw_version": ferryman.__version__},
        "components": components,
    }


class HomeAssistant:
    """Announces a device on each connection, and when Home Assistant has started; takes back what was announced."""

    def __init__(
        self,
        link: Link,
        device: str,
        model: str,
        period_s: float,
        root: Path,
        prefix: str | None,
        missing: Collection[str] = (),
    ) -> None:
        """Attach to `link`, which must not be started yet.

        Args:
            link: how.
            device: its name.
            model: what kind it is.
            period_s: of its samples.
            root: of the agent, where a file remembers what was announced.
            prefix: Home Assistant's discovery prefix; None: it shall not know this device any more.
            missing: metrics that the device has no sensor for; they are not announced.

        Raises:
            CallerError: `prefix` is none.
        """
        self._link, self._device, self._model, self._period_s = link, device, model, period_s
        self._missing = missing
        self._file = root / FILE
        self._prefix = prefix if prefix is None else check_prefix(prefix)
        if prefix is None and not self._file.exists():
            return
        link.on_ready(self.announce)
        if prefix is not None:
            link.subscribe(f"{prefix}/status", self._on_status, needed=False)

    def announce(self) -> None:
        """Say what there is, and take back what there was."""
        before, forgotten = self._before(), True
        if before is not None and before.prefix != self._prefix:
            forgotten = self._publish(config_topic(before.prefix, self._device), b"", wait=True)
            before = None
        if self._prefix is None:
            if forgotten:
                self._remember(None)
            return
        now = self._message({})["components"]
        platforms = {name: component["platform"] for name, component in now.items()}
        gone = {} if before is None else {k: v for k, v in before.platforms.items() if k not in platforms}
        topic = config_topic(self._prefix, self._device)
        if gone:  # told once as a platform alone, a component is removed; then it is left out
            self._publish(topic, msgspec.json.encode(self._message(gone)))
        news = before is None or before.platforms != platforms
        taken = self._publish(topic, msgspec.json.encode(self._message({})), wait=news)
        if news and taken and forgotten:
            self._remember(Announced(prefix=self._prefix, platforms=platforms))

    def _message(self, gone: Mapping[str, str]) -> dict[str, Any]:
        return discovery(self._device, self._model, self._period_s, gone, self._missing)

    def _publish(self, topic: str, payload: bytes, *, wait: bool = False) -> bool:
        """Retained; with `wait`, whether the broker has it."""
        taken, answered = False, threading.Event()

        def said(problem: str | None) -> None:
            nonlocal taken
            taken = problem is None
            answered.set()
            if problem is not None:
                log.warning("Home Assistant does not learn of this device: broker refuses %s: %s", topic, problem)

        try:
            self._link.publish(Message(topic=topic, payload=payload, retain=True), said)
        except LinkError as error:  # announced on the next connection
            log.debug("not announced: %s", error)
            return False
        if wait:
            answered.wait(TAKEN_S)
        return taken

    def _on_status(self, delivery: Delivery) -> None:
        if delivery.payload == b"online" and not delivery.retained:
            timer = threading.Timer(random.uniform(0, SPREAD_S), self.announce)  # noqa: S311  # no secret
            timer.daemon = True
            timer.start()

    def _before(self) -> Announced | None:
        try:
            return decode(self._file.read_bytes(), Announced)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, and what it names stays in Home Assistant: %s", self._file, error)
            return None

    def _remember(self, announced: Announced | None) -> None:
        try:
            if announced is None:
                self._file.unlink(missing_ok=True)
            else:
                write_durable(self._file, encode(announced))
        except (OSError, DeviceError) as error:
            log.warning("%s", error)
