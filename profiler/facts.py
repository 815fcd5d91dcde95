"""What this device is and has, for `ferryman facts` and whoever asks its agent.

`facts_of` reads a tree of /proc, /sys and /etc, so that a recorded one, or one fetched through a bare shell, can stand
for a device; what no tree tells comes as `Told`.
"""

from __future__ import annotations

import math
import os
import platform
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import ferryman
from ferryman.profiler import conditions, energy
from ferryman.profiler.samplers.base import Sampler
from ferryman.profiler.samplers.guard import answer
from ferryman.profiler.sysfs import SensorError, read_int, read_text
from ferryman.runtime import kernels
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.facts import Core, DeviceFacts, Interpreter, Sensor
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.cpu import emulator, instruction_sets
from ferryman.runtime.session import INTERPRETERS, installed

T = TypeVar("T")

ANSWER_S = 3.0
"""A sensor that takes longer to be opened is not waited for."""
_OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
_KHZ = 1000.0
_CLOCK_MAX_KHZ = 10**9


class Told(NamedTuple):
    """What a device tells by other ways than files."""

    machine: str
    kernel: str
    userland_bits: int | Unavailable
    libc: str | Unavailable
    python: str | Unavailable
    ferryman: str | Unavailable
    kernels: str | Unavailable
    operators: int | Unavailable
    interpreters: tuple[Interpreter, ...]
    root: str
    free_bytes: int | Unavailable
    root_writable: bool | Unavailable
    clock_synchronized: bool | Unavailable


def read_facts(store: Path, *, synchronized: bool, tree: Path = Path("/")) -> DeviceFacts:
    """Facts of this device.

    Args:
        store: root folder of the slot store; it need not be there yet.
        synchronized: whether the kernel says that its wall clock is kept right (adjtimex).
        tree: of the file system to read.
    """
    place = _nearest(store)
    return facts_of(
        tree,
        Told(
            machine=platform.machine(),
            kernel=platform.release(),
            userland_bits=8 * struct.calcsize("P"),
            libc=_libc(tree),
            python=platform.python_version(),
            ferryman=ferryman.__version__,
            kernels=_own_kernels(),
            operators=kernels.version() or Unavailable(reason="this ferryman was built without its operators"),
            interpreters=tuple(
                Interpreter(name=name, version=version)
                for runtime in INTERPRETERS
                for name, version in installed(runtime).items()
            ),
            root=str(store),
            free_bytes=_free_bytes(place),
            root_writable=os.access(place, os.W_OK | os.X_OK),
            clock_synchronized=synchronized,
        ),
    )


def facts_of(tree: Path, told: Told) -> DeviceFacts:
    """Facts of the device whose /proc, /sys and /etc are in `tree`."""
    cpuinfo = ""
    cores = attempt(partial(read_text, tree / "proc/cpuinfo"))
    if isinstance(cores, str):
        cpuinfo = cores
    found = instruction_sets(cpuinfo)
    return DeviceFacts(
        model=attempt(partial(conditions.device_model, tree)),
        soc=attempt(partial(conditions.soc, tree)),
        emulated=emulator(tree / "proc/self"),
        cores=cores if isinstance(cores, Unavailable) else attempt(partial(cores_of, tree, cpuinfo)),
        isa=tuple(name for name in conditions.ISA_OF_INTEREST if name in found),
        memory_bytes=attempt(partial(conditions.meminfo_bytes, tree, "MemTotal")),
        memory_available_bytes=attempt(partial(conditions.meminfo_bytes, tree, "MemAvailable")),
        os=attempt(partial(os_name, tree)),
        sensors=(*energy_sensors(tree), *heat_sensors(tree)),
        **told._asdict(),
    )


def attempt(read: Callable[[], T]) -> T | Unavailable:
    """What a reader finds, or why it finds nothing."""
    try:
        return read()
    except SensorError as error:
        return Unavailable(reason=str(error))


def cores_of(tree: Path, cpuinfo: str) -> tuple[Core, ...]:
    """Cores of each kind and highest clock; of one kind with two clocks, two entries.

    Raises:
        SensorError: the text of /proc/cpuinfo names no processor.
    """
    kinds = conditions.core_kinds(cpuinfo)
    if not kinds:
        raise SensorError("/proc/cpuinfo names no processor")
    clocks = [attempt(partial(_max_mhz, tree, number)) for number in range(len(kinds))]
    counted = Counter(
        (kind, clock if isinstance(clock, float) else None) for kind, clock in zip(kinds, clocks, strict=True)
    )
    silent = next((clock for clock in clocks if isinstance(clock, Unavailable)), Unavailable(reason="no cpufreq"))
    return tuple(
        Core(kind=kind, count=count, max_mhz=silent if clock is None else clock)
        for (kind, clock), count in counted.items()
    )


def _max_mhz(tree: Path, number: int) -> float:
    khz = read_int(tree / f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq")
    if not 0 < khz <= _CLOCK_MAX_KHZ:
        raise SensorError(f"cpu{number}: a highest clock of {khz} kHz")
    return khz / _KHZ


def os_name(tree: Path) -> str:
    """PRETTY_NAME of os-release(5).

    Raises:
        SensorError: there is no such file, or it names nothing.
    """
    reasons = []
    for name in _OS_RELEASE:
        try:
            lines = [line.partition("=") for line in read_text(tree / name).splitlines()]
        except SensorError as error:
            reasons.append(str(error))
            continue
        fields = {key.strip(): value.strip().strip("\"'") for key, _, value in lines}
        if found := fields.get("PRETTY_NAME") or fields.get("NAME"):
            return found
        reasons.append(f"{name} names nothing")
    raise SensorError("; ".join(reasons))


def energy_sensors(tree: Path) -> tuple[Sensor, ...]:
    """Each source the profiler knows, opened and read once, or why it cannot be."""
    return tuple(_energy_sensor(open_source, tree) for open_source in energy.SOURCES)


def _energy_sensor(open_source: Callable[[Path], Sampler | Unavailable], tree: Path) -> Sensor:
    name = open_source.__module__.rpartition(".")[2]
    found = attempt(lambda: answer(partial(open_source, tree), name, ANSWER_S))
    if isinstance(found, Unavailable):
        return Sensor(name=name, measures="energy", available=False, detail=found.reason)
    source = found.source
    found.close()
    return Sensor(name=name, measures="energy", available=True, detail=f"{source.name}: {', '.join(source.rails)}")


def heat_sensors(tree: Path) -> tuple[Sensor, ...]:
    """Temperatures that can be read, or one entry that says why there are none."""
    found = attempt(partial(conditions.temperatures_c, tree))
    if isinstance(found, Unavailable):
        return (Sensor(name="temperature", measures="temperature", available=False, detail=found.reason),)
    return tuple(
        Sensor(name=one.source, measures="temperature", available=True, detail=f"{one.value:g} degrees Celsius now")
        for one in found
        if math.isfinite(one.value)
    )


def _libc(tree: Path) -> str | Unavailable:
    try:
        if found := os.confstr("CS_GNU_LIBC_VERSION"):
            return found
    except (ValueError, OSError):
        pass  # a C library that is not glibc
    musl = list((tree / "lib").glob("ld-musl-*"))
    return "musl" if musl else Unavailable(reason="the C library does not tell its version")


def _own_kernels() -> str | Unavailable:
    try:
        return kernels.isa()
    except FerrymanError as error:
        return Unavailable(reason=str(error))


def _nearest(path: Path) -> Path:
    """The path, or what is there of it: the folder in which the first install would make the rest."""
    path = path.absolute()
    return next((one for one in (path, *path.parents) if one.exists()), Path("/"))


def _free_bytes(place: Path) -> int | Unavailable:
    try:
        disk = os.statvfs(place)
    except OSError as error:
        return Unavailable(reason=f"{place}: {error.strerror}")
    return disk.f_bavail * disk.f_frsize
