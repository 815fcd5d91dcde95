"""What of a device's conditions moves the numbers and stays: where it is the same, nothing need be measured again."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.runtime.contracts.measurement import Conditions

_FIELDS = (
    "device_model",
    "cpu_model",
    "soc",
    "cpu_count",
    "isa",
    "governor",
    "power_source",
    "kernel",
    "machine",
    "emulated",
)
_VERSIONS = ("ferryman", "python", "numpy")


def standing(conditions: Conditions) -> dict[str, str]:
    """As text by name; what the device does not tell is left out, and so is what a moment changes (clocks, load, heat).

    The version of an interpreter is not among them: it is one of several, and a measurement names its own.
    """
    found = {name: _text(getattr(conditions, name)) for name in _FIELDS}
    found["affinity"] = _text(conditions.affinity)
    found |= {name: conditions.versions.get(name) for name in _VERSIONS}
    return {name: text for name, text in found.items() if text}


def _text(value: object) -> str | None:
    if isinstance(value, str | int):
        return str(value)
    return " ".join(map(str, value)) if isinstance(value, Sequence) else None
