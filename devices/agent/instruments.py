"""What the agent shows of the device beside what it was asked for: samples, to whom they go, and in which tongue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ferryman.devices.agent.homeassistant import HomeAssistant
from ferryman.devices.agent.modes import Mode
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.power import PowerMeter
from ferryman.devices.agent.sampler import PERIOD_S, Sampler, Sources, live, missing_sensors
from ferryman.devices.agent.tally import ServedTally
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.mqtt import Link
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.telemetry import Sample

if TYPE_CHECKING:
    from ferryman.devices.agent.sparkplug.node import SparkplugNode

PERIOD_MAX_S = 86_400.0
_POLL_S = 1.0

Run = Callable[[threading.Event], None]
"""A thread's, until the event is set."""


@dataclass(frozen=True)
class InstrumentsConfig:
    """What is shown."""

    sample_s: float = PERIOD_S
    """Every so often, how the device does becomes a telemetry record; 0: never."""
    meter: str | None = None
    """What tells the power of samples; None: nothing does."""
    home_assistant: str | None = None
    """Home Assistant's discovery prefix; None: it is not told of this device."""
    sparkplug: str | None = None
    """The group this device is a Sparkplug node of; None: it is none."""


@dataclass(frozen=True)
class Wires:
    """Which device it is, and how it is connected."""

    device: str
    model: str
    root: Path
    broker: BrokerConfig
    link: Link
    outbox: Outbox


class Instruments:
    """All of one agent's; `runs` are its threads."""

    def __init__(
        self,
        config: InstrumentsConfig,
        wires: Wires,
        tally: ServedTally,
        package: Callable[[], str | None],
        record: Callable[[Sample], None],
        mode: Callable[[], Mode],
    ) -> None:
        """Attach to the link, which must not be started yet.

        Args:
            config: what is shown.
            wires: the device, and how it is connected.
            tally: is told of what is served.
            package: the SHA-256 of what is active.
            record: puts a sample on record.
            mode: how much the link may be used; samples of the moment go out in mode `full` only.

        Raises:
            CallerError: a period, prefix, group or meter makes no sense, or samples shall be shown and none be taken.
            DeviceError: an extra is not installed.
        """
        _check(config)
        self._mode = mode
        self._power = PowerMeter(config.meter) if config.meter is not None else None
        self._sparkplug = _node(config.sparkplug, wires) if config.sparkplug is not None else None
        HomeAssistant(
            wires.link,
            wires.device,
            wires.model,
            config.sample_s,
            wires.root,
            config.home_assistant,
            _missing(config) if config.home_assistant is not None else (),
        )
        self._sampler: Sampler | None = None
        if config.sample_s:
            self._live = live(wires.link, wires.device, config.sample_s)
            sources = Sources(tally, wires.outbox.counts, package, wires.root, self._power)
            self._sampler = Sampler(sources, record, self._tell, config.sample_s)

    def runs(self) -> dict[str, Run]:
        """Threads to start, by name."""
        found: dict[str, Run] = {}
        if self._sampler:
            found["samples"] = self._sampler.run
        if self._power:
            found["power"] = self._power.run
        if self._sparkplug:
            found["sparkplug"] = self._run_sparkplug
        return found

    def _tell(self, sample: Sample) -> None:
        if self._mode() == "full":
            self._live(sample)
        if self._sparkplug:
            self._sparkplug.tell(sample)

    def _run_sparkplug(self, stop: threading.Event) -> None:
        """Hold the node's connection, in mode `full` only."""
        node = self._sparkplug
        if node is None:
            return
        if self._mode() != "full":
            node.pause()
        node.start()
        while not stop.wait(_POLL_S):
            if self._mode() != "full":
                node.pause()
            elif node.paused:
                node.resume()
        node.stop()


def _node(group: str, wires: Wires) -> SparkplugNode:
    from ferryman.devices.agent.sparkplug.node import SparkplugNode

    return SparkplugNode(wires.broker, group, wires.device, wires.root)


def _missing(config: InstrumentsConfig) -> frozenset[str]:
    """Metrics that no sample of this device will have, as far as can be told now."""
    return missing_sensors() | (frozenset() if config.meter is not None else {"power_w", "energy_mj"})


def _check(config: InstrumentsConfig) -> None:
    if not (config.sample_s == 0 or 1 <= config.sample_s <= PERIOD_MAX_S):
        raise CallerError(f"--sample: expected 0 or 1 to {PERIOD_MAX_S:,.0f} seconds, found {config.sample_s:g}")
    shown = {"--meter": config.meter, "--home-assistant": config.home_assistant, "--sparkplug": config.sparkplug}
    asked = [option for option, value in shown.items() if value is not None]
    if asked and not config.sample_s:
        raise CallerError(f"{asked[0]} shows samples, and --sample 0 takes none; give it a period")
