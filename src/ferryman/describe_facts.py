"""Facts of a device for people; what could steer a terminal is shown as `?`."""

from __future__ import annotations

from collections.abc import Iterator

from ferryman.runtime.contracts.facts import Core, DeviceFacts, Sensor
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.say import printable

_MEGABYTE = 10**6
KEY_CHARS = 13


def describe_facts(facts: DeviceFacts) -> str:
    """Several lines, one a fact; what is not known says why."""
    return "\n".join(printable(f"{key:{KEY_CHARS}} {value}") for key, value in _lines(facts))


def told(value: object) -> str:
    """A value, or why there is none."""
    return f"unknown ({value.reason})" if isinstance(value, Unavailable) else str(value)


def megabytes(value: int | Unavailable) -> str:
    """Bytes, for people."""
    return told(value) if isinstance(value, Unavailable) else f"{value / _MEGABYTE:,.0f} MB"


def describe_cores(cores: tuple[Core, ...] | Unavailable) -> str:
    """`4x Cortex-A72 at 1500 MHz`."""
    if isinstance(cores, Unavailable):
        return told(cores)
    return " + ".join(
        f"{core.count}x {core.kind}" + ("" if isinstance(core.max_mhz, Unavailable) else f" at {core.max_mhz:g} MHz")
        for core in cores
    )


def _lines(facts: DeviceFacts) -> Iterator[tuple[str, str]]:
    yield "model", told(facts.model)
    yield "chip", told(facts.soc)
    bits = "" if isinstance(facts.userland_bits, Unavailable) else f", {facts.userland_bits}-bit programs"
    emulated = f", emulated by {facts.emulated}" if facts.emulated else ""
    yield "machine", f"{facts.machine}{bits}{emulated}"
    yield "cores", describe_cores(facts.cores)
    yield "instructions", " ".join(facts.isa) or "none of interest"
    yield "memory", f"{megabytes(facts.memory_bytes)}, {megabytes(facts.memory_available_bytes)} available"
    yield "system", f"{told(facts.os)}; kernel {facts.kernel}; {told(facts.libc)}; Python {told(facts.python)}"
    yield "ferryman", told(facts.ferryman)
    yield "kernels", f"{told(facts.kernels)}, operators of version {told(facts.operators)}"
    yield "interpreters", ", ".join(f"{one.name} {one.version}" for one in facts.interpreters) or "none"
    for number, text in enumerate(_sensors(facts.sensors)):
        yield "sensors" if number == 0 else "", text
    writable = {True: "writable", False: "not writable"}.get(facts.root_writable is True, "")
    if isinstance(facts.root_writable, Unavailable):
        writable = told(facts.root_writable)
    yield "root", f"{facts.root}: {megabytes(facts.free_bytes)} free, {writable}"
    clock = facts.clock_synchronized
    yield "clock", told(clock) if isinstance(clock, Unavailable) else "synchronized" if clock else "not synchronized"


def _sensors(sensors: tuple[Sensor, ...]) -> Iterator[str]:
    """A line for each that is there; of what none measures, one line that says where it was looked for."""
    missing: dict[str, list[str]] = {}
    for sensor in sensors:
        if sensor.available:
            yield f"{sensor.measures} {sensor.name}: {sensor.detail}"
        else:
            missing.setdefault(sensor.measures, []).append(sensor.name)
    there = {sensor.measures for sensor in sensors if sensor.available}
    none = [
        f"no {measures}" + ("" if names == [measures] else f" ({', '.join(names)})")
        for measures, names in missing.items()
        if measures not in there
    ]
    if none:
        yield ", ".join(none)
