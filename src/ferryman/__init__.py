"""ferryman carries compressed models to edge devices and brings measurements back.

The verbs of the command line are functions here; each is imported when first used, so that a device, which has no
torch, can import `ferryman` too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from ferryman.converter.api import BinaryConv2d, BinaryLinear, compress, convert
    from ferryman.devices.broker import parse_broker
    from ferryman.devices.fleet.client import AgentClient
    from ferryman.devices.fleet.compare import compare
    from ferryman.devices.fleet.inventory import find_device, read_devices
    from ferryman.devices.fleet.profile import profile
    from ferryman.devices.fleet.push import push
    from ferryman.devices.fleet.rollout.api import preview_rollout, resume_rollout, roll_out, rollout_status
    from ferryman.fleet import Fleet
    from ferryman.latency import latency_on
    from ferryman.over_the_air import publish
    from ferryman.runtime.contracts.errors import FerrymanError
    from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
    from ferryman.runtime.package import open_package
    from ferryman.runtime.session import open_session

_HOMES = {
    "AgentClient": "ferryman.devices.fleet.client",
    "BinaryConv2d": "ferryman.converter.api",
    "BinaryLinear": "ferryman.converter.api",
    "FerrymanError": "ferryman.runtime.contracts.errors",
    "Fleet": "ferryman.fleet",
    "Measurement": "ferryman.runtime.contracts.measurement",
    "ProfileSpec": "ferryman.runtime.contracts.measurement",
    "compare": "ferryman.devices.fleet.compare",
    "compress": "ferryman.converter.api",
    "convert": "ferryman.converter.api",
    "find_device": "ferryman.devices.fleet.inventory",
    "latency_on": "ferryman.latency",
    "open_package": "ferryman.runtime.package",
    "open_session": "ferryman.runtime.session",
    "parse_broker": "ferryman.devices.broker",
    "preview_rollout": "ferryman.devices.fleet.rollout.api",
    "profile": "ferryman.devices.fleet.profile",
    "publish": "ferryman.over_the_air",
    "push": "ferryman.devices.fleet.push",
    "read_devices": "ferryman.devices.fleet.inventory",
    "resume_rollout": "ferryman.devices.fleet.rollout.api",
    "roll_out": "ferryman.devices.fleet.rollout.api",
    "rollout_status": "ferryman.devices.fleet.rollout.api",
}

__all__ = [
    "AgentClient",
    "BinaryConv2d",
    "BinaryLinear",
    "FerrymanError",
    "Fleet",
    "Measurement",
    "ProfileSpec",
    "__version__",
    "compare",
    "compress",
    "convert",
    "find_device",
    "latency_on",
    "open_package",
    "open_session",
    "parse_broker",
    "preview_rollout",
    "profile",
    "publish",
    "push",
    "read_devices",
    "resume_rollout",
    "roll_out",
    "rollout_status",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    if name == "__version__":
        from importlib import metadata  # takes longer than all the rest of this package

        return metadata.version("ferryman")
    if name not in _HOMES:
        raise AttributeError(f"module 'ferryman' has no attribute {name!r}; there are: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
