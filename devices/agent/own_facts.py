"""Facts of the device this process runs on, the clock's included."""

from __future__ import annotations

from pathlib import Path

from ferryman.devices.agent.clock import read_clock
from ferryman.profiler.facts import read_facts
from ferryman.runtime.contracts.facts import DeviceFacts


def own_facts(store: Path) -> DeviceFacts:
    """What this device is and has; `store` is the root folder of the slot store."""
    return read_facts(store, synchronized=read_clock().sure)
