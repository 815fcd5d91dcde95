"""What a device is and has: what `ferryman devices probe` asks for, over any link."""

from __future__ import annotations

from ferryman.runtime.contracts.numbers import Bytes, Megahertz, Small
from ferryman.runtime.contracts.record import Record, Unavailable


class Core(Record):
    """Cores of one kind; big.LITTLE has several."""

    kind: str
    """`Cortex-A72`, or what the kernel calls it."""
    count: Small
    max_mhz: Megahertz | Unavailable


class Sensor(Record):
    """A source of energy or heat, by the name under which the profiler knows it."""

    name: str
    measures: str
    """`energy`, `temperature`."""
    available: bool
    detail: str = ""
    """What it reads; where it is not available, why not and what would make it so."""


class Interpreter(Record):
    """What can run artifacts there."""

    name: str
    version: str


class DeviceFacts(Record, kw_only=True):
    """Facts, each as the device itself told it; what it could not tell is Unavailable, with the reason."""

    model: str | Unavailable
    """Board or phone: `Raspberry Pi 4 Model B Rev 1.4`."""
    soc: str | Unavailable
    machine: str
    """Of the kernel: `aarch64`."""
    userland_bits: Small | Unavailable = Unavailable(reason="not told")
    """Of its programs: 32 or 64, whatever the kernel is."""
    emulated: str = ""
    """By which emulator it runs there; empty: by none that shows itself."""
    cores: tuple[Core, ...] | Unavailable
    isa: tuple[str, ...]
    """Instruction sets that kernels are chosen by, as the kernel names them."""
    memory_bytes: Bytes | Unavailable
    memory_available_bytes: Bytes | Unavailable
    os: str | Unavailable
    """`Debian GNU/Linux 12 (bookworm)`, `Android 14 (API 34)`."""
    kernel: str
    libc: str | Unavailable
    """`glibc 2.36`, `bionic`."""
    python: str | Unavailable
    ferryman: str | Unavailable
    kernels: str | Unavailable
    """Instruction set that ferryman's own operators chose there."""
    operators: Small | Unavailable = Unavailable(reason="not told")
    """Version of ferryman's own operators, as packages require it."""
    interpreters: tuple[Interpreter, ...]
    sensors: tuple[Sensor, ...]
    root: str
    """Of the slot store."""
    free_bytes: Bytes | Unavailable
    """Where `root` is."""
    root_writable: bool | Unavailable
    clock_synchronized: bool | Unavailable
    """By NTP, as the kernel tells (adjtimex)."""
