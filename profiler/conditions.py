"""What surrounds a measurement: processor, clocks, heat, load, memory, versions.

Every reader takes the root of the file system, so that recorded trees can stand for devices.
"""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ferryman.profiler.sysfs import SensorError, paths, read_int, read_text
from ferryman.runtime.contracts.measurement import Conditions, Reading
from ferryman.runtime.contracts.numbers import whole
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.cpu import emulator, instruction_sets

T = TypeVar("T")

ISA_OF_INTEREST = (
    *("popcnt", "ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vpopcntdq", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""What matrix and bit-counting kernels are chosen by; x86, then Arm."""

_ARM = 0x41
# Part numbers of Arm's own cores, as in each core's Technical Reference Manual (register MIDR_EL1).
_ARM_CORES = {
    0xB76: "ARM1176",
    0xC07: "Cortex-A7",
    0xC08: "Cortex-A8",
    0xC09: "Cortex-A9",
    0xC0F: "Cortex-A15",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
_THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Of `get_throttled` (Raspberry Pi documentation, vcgencmd); 16 bits further up: since boot."""
PLAUSIBLE_C = (-60.0, 200.0)
"""Drivers report sentinels such as -274 degrees for a sensor that is asleep."""
_MEMORY_MAX_KIB = 1 << 40


class State(NamedTuple):
    """What changes from one moment to the next."""

    clocks_mhz: tuple[float, ...] | Unavailable
    temperatures_c: tuple[Reading, ...] | Unavailable
    throttled: tuple[str, ...] | Unavailable
    load_1m: float | Unavailable
    memory_available_bytes: int | Unavailable


def read_state(root: Path = Path("/")) -> State:
    """The device now."""
    return State(
        clocks_mhz=_try(lambda: clocks_mhz(root, _cpuinfo(root))),
        temperatures_c=_try(lambda: temperatures_c(root)),
        throttled=_try(lambda: throttled(root)),
        load_1m=_try(lambda: load_1m(root)),
        memory_available_bytes=_try(lambda: meminfo_bytes(root, "MemAvailable")),
    )


def _cpuinfo(root: Path) -> str:
    found = _try(lambda: read_text(root / "proc/cpuinfo"))
    return "" if isinstance(found, Unavailable) else found


def read_conditions(versions: dict[str, str], root: Path = Path("/")) -> Conditions:
    """Everything at once.

    Args:
        versions: of what took part beside ferryman, Python and numpy.
        root: of the file system to read.
    """
    text = _cpuinfo(root)
    found = instruction_sets(text)
    now = read_state(root)
    return Conditions(
        device_model=_try(lambda: device_model(root)),
        soc=_try(lambda: soc(root)),
        cpu_model=_try(lambda: cpu_model(text)),
        cpu_count=os.cpu_count() or 1,
        isa=tuple(name for name in ISA_OF_INTEREST if name in found),
        governor=_try(lambda: governor(root)),
        power_source=_try(lambda: power_source(root)),
        memory_total_bytes=_try(lambda: meminfo_bytes(root, "MemTotal")),
        kernel=platform.release(),
        machine=platform.machine(),
        emulated=emulator(root / "proc/self"),
        affinity=tuple(sorted(os.sched_getaffinity(0))),
        versions={
            "ferryman": metadata.version("ferryman"),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        | versions,
        **now._asdict(),
    )


def kind_of_device(conditions: Conditions) -> str:
    """What devices have in common that answer alike: board and processor, as far as they tell."""
    return kind_of(conditions.device_model, conditions.cpu_model, conditions.machine, conditions.emulated)


def kind_of(board: str | Unavailable, processor: str | Unavailable, machine: str, emulated: str) -> str:
    """The same in words, of what a device told."""
    told = [one for one in (board, processor) if isinstance(one, str) and one.strip()]
    kind = ", ".join(one.strip() for one in told) or machine
    return f"{kind}, emulated by {emulated}" if emulated else kind


def device_model(root: Path) -> str:
    """Board or machine, from the device tree (Arm) or DMI (x86).

    Raises:
        SensorError: neither is there.
    """
    try:
        return _device_tree(root, "model")
    except SensorError as error:
        try:
            return read_text(root / "sys/class/dmi/id/product_name")
        except SensorError as second:
            raise SensorError(f"{error}; {second}") from None


def soc(root: Path) -> str:
    """The chip: what the kernel's soc bus calls it, else the last name the device tree is compatible with.

    Raises:
        SensorError: neither is there (on a PC, for one).
    """
    folder = root / "sys/devices/soc0"
    try:
        return " ".join(dict.fromkeys([read_text(folder / "family"), read_text(folder / "soc_id")]))
    except SensorError as error:
        try:
            return _device_tree(root, "compatible").split("\0")[-1]
        except SensorError as second:
            raise SensorError(f"{error}; {second}") from None


def _device_tree(root: Path, name: str) -> str:
    """A property of the device tree's root; where containers hide /proc/device-tree, what it is a link to."""
    try:
        return read_text(root / "proc/device-tree" / name)
    except SensorError:
        place = root / "sys/firmware/devicetree/base" / name
        if not place.exists():
            raise
        return read_text(place)


def power_source(root: Path) -> str:
    """`battery` where one is discharging, else `mains` where something supplies power.

    Raises:
        SensorError: the kernel knows of no power supply; boards that are always plugged in have none.
    """
    supplies = paths(root / "sys/class/power_supply", "*")
    states = [_text(folder / "status") for folder in supplies if _text(folder / "type") in {"Battery", "UPS"}]
    if "Discharging" in states:
        return "battery"
    online = [_text(folder / "online") for folder in supplies if _text(folder / "type") not in {"Battery", "UPS", ""}]
    if "1" in online or {"Charging", "Full", "Not charging"} & set(states):
        return "mains"
    raise SensorError(f"no power supply in {root / 'sys/class/power_supply'} tells")


def throttled(root: Path) -> tuple[str, ...]:
    """Why the clock is held down: the Raspberry Pi firmware's flags, and cooling devices that are at work.

    Flags that hold no longer but did since boot end in ` before`.

    Raises:
        SensorError: the kernel shows neither.
    """
    reasons: list[str] = []
    known = False
    platforms = root / "sys/devices/platform"
    for file in paths(platforms, "*firmware/get_throttled") + paths(platforms, "*/*firmware/get_throttled"):
        bits, known = _hex_of(file), True
        for bit, name in _THROTTLE_BITS.items():
            now, ever = bits >> bit & 1, bits >> (bit + 16) & 1
            reasons += [name] if now else [f"{name} before"] if ever else []
    for folder in paths(root / "sys/class/thermal", "cooling_device*"):
        kind = _text(folder / "type")
        if kind == "Processor" or "cpu" in kind.lower():
            known = True
            if read_int(folder / "cur_state") > 0:
                reasons.append("thermal")
    if not known:
        raise SensorError("no firmware flags and no cooling devices of processors")
    return tuple(dict.fromkeys(reasons))


def _hex_of(file: Path) -> int:
    text = read_text(file)
    try:
        return int(text.removeprefix("throttled="), 16)
    except ValueError:
        raise SensorError(f"{file}: expected flags in hexadecimal, found {text[:40]!r}") from None


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except SensorError:
        return ""


def cpu_model(cpuinfo: str) -> str:
    """Processor, from the text of /proc/cpuinfo: the vendor's name, or `4x Cortex-A55 + 4x Cortex-A76`.

    Raises:
        SensorError: the text names no processor.
    """
    names = core_kinds(cpuinfo)
    if not names:
        raise SensorError("/proc/cpuinfo names no processor")
    return named_cores(Counter(names), arm=any(key == "CPU part" for key, _ in _fields(cpuinfo)))


def named_cores(kinds: Mapping[str, int], *, arm: bool) -> str:
    """How many of each kind; of one kind that is a whole processor's name, that alone."""
    return next(iter(kinds)) if len(kinds) == 1 and not arm else " + ".join(f"{n}x {name}" for name, n in kinds.items())


def core_kinds(cpuinfo: str) -> list[str]:
    """What each core is, in the order of /proc/cpuinfo; empty: it does not tell."""
    fields = _fields(cpuinfo)
    implementers = [_hex(value) for key, value in fields if key == "CPU implementer"]
    parts = [_hex(value) for key, value in fields if key == "CPU part"]
    if parts and len(parts) == len(implementers):
        return [
            _ARM_CORES.get(part, f"Arm part {part:#x}")
            if implementer == _ARM
            else f"implementer {implementer:#x} part {part:#x}"
            for implementer, part in zip(implementers, parts, strict=True)
        ]
    return [value for key, value in fields if key in {"model name", "uarch"} and value]


def _fields(cpuinfo: str) -> list[tuple[str, str]]:
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())]


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


def governor(root: Path) -> str:
    """Names of the frequency governors in use.

    Raises:
        SensorError: the kernel shows none.
    """
    found = _each(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor", read_text, "no cpufreq")
    return "+".join(dict.fromkeys(found))


def clocks_mhz(root: Path, cpuinfo: str) -> tuple[float, ...]:
    """Clock of each core now, from cpufreq, else from /proc/cpuinfo (x86 only).

    Raises:
        SensorError: neither tells.
    """
    try:
        found = _each(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", read_int, "no cpufreq")
        return tuple(khz / 1000 for khz in found)
    except SensorError as error:
        lines = [line.partition(":") for line in cpuinfo.splitlines()]
        clocks = tuple(_float(value) for key, _, value in lines if key.strip() == "cpu MHz")
        if not clocks:
            raise SensorError(f"{error}; no `cpu MHz` in /proc/cpuinfo") from None
        return clocks


def temperatures_c(root: Path) -> tuple[Reading, ...]:
    """Thermal zones; where there are none, hwmon's temperatures.

    Raises:
        SensorError: nothing can be read.
    """
    zones = [(folder, "type", folder / "temp") for folder in paths(root / "sys/class/thermal", "thermal_zone*")] or [
        (file.parent, "name", file)
        for folder in paths(root / "sys/class/hwmon", "hwmon*")
        for file in paths(folder, "temp*_input")
    ]
    found, reasons = [], []
    for folder, name, file in zones:
        try:
            found.append(Reading(value=_celsius(file), source=f"{folder.name} {read_text(folder / name)}"))
        except SensorError as error:
            reasons.append(str(error))
    if not found:
        raise SensorError("; ".join(reasons) or "no thermal zones and no hwmon temperatures")
    return tuple(found)


def _celsius(file: Path) -> float:
    value = read_int(file) / 1000
    if not PLAUSIBLE_C[0] <= value <= PLAUSIBLE_C[1]:
        raise SensorError(f"{file}: {value:g} degrees are not plausible")
    return value


def load_1m(root: Path) -> float:
    """Runnable tasks, averaged over a minute.

    Raises:
        SensorError: it cannot be read.
    """
    return _float(read_text(root / "proc/loadavg").split()[0])


def meminfo_bytes(root: Path, key: str) -> int:
    """One line of /proc/meminfo.

    Raises:
        SensorError: it is not there, or no device has so much.
    """
    path = root / "proc/meminfo"
    for line in read_text(path).splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == f"{key}:" and words[2] == "kB":  # noqa: PLR2004
            kib = whole(words[1])
            if kib is None or kib > _MEMORY_MAX_KIB:
                raise SensorError(f"{path}: {key} of {words[1][:40]} kB is not plausible")
            return kib * 1024
    raise SensorError(f"{path}: no {key}")


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SensorError(f"expected a number, found {text[:40]!r}")
    return value


def _each(folder: Path, pattern: str, read: Callable[[Path], T], none: str) -> list[T]:
    files = paths(folder, pattern)
    if not files:
        raise SensorError(f"{none} in {folder}")
    return [read(file) for file in files]


def _try(read: Callable[[], T]) -> T | Unavailable:
    try:
        return read()
    except SensorError as error:
        return Unavailable(reason=str(error))
