"""What a device can run and what would be wise, each with its reason: pure functions of its facts, in a literal order.

Nothing here is measured: what follows from instruction sets, versions and sizes, no more. `ferryman profile` measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.session import INTERPRETERS

Level = Literal["ok", "note", "problem"]
PYTHON_MIN = (3, 11)
PYTHON_MAX_TFLITE = (3, 11)
"""tflite-runtime 2.14 has no wheels for later ones."""
GLIBC_MIN_TFLITE = (2, 34)
"""Tag of tflite-runtime 2.14's aarch64 wheels."""
GLIBC_MIN_WHEEL = (2, 28)
"""Tag of ferryman's own wheel."""
FREE_MIN_BYTES = 256 << 20
"""Less is soon full of two slots, an upload and an outbox."""
MEMORY_SMALL_BYTES = 768 << 20
MACHINES = ("aarch64", "x86_64")
_ONLY_32_BIT = {"ARM1176", "Cortex-A7", "Cortex-A8", "Cortex-A9", "Cortex-A15"}
_MEGABYTE = 10**6
_CLOSED = re.compile("closed to|ermission denied")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_ENERGY_HINTS: tuple[tuple[str, str], ...] = (
    (
        "Raspberry Pi 5",
        "let its user into the group that owns /dev/vcio (video): the board's PMIC tells the power of its rails",
    ),
    (
        "Raspberry Pi",
        "the board has no meter: put an INA219 or INA226 into its supply, or name a meter beside it with --meter",
    ),
    ("Jetson", "load the driver of the board's INA3221, so that it shows in /sys/class/hwmon"),
)


class Advice(Record):
    """One line of the report."""

    topic: str
    """`system`, an interpreter's name, `forms`, `memory`, `disk`, `clock`, `sensors`, `package`."""
    level: Level
    says: str
    because: str
    do: str = ""
    """The next step; empty: there is none to take."""


Rule = Callable[[DeviceFacts], Iterator[Advice]]


def advise(facts: DeviceFacts) -> tuple[Advice, ...]:
    """The report on a device."""
    return tuple(advice for rule in RULES for advice in rule(facts))


def userland(facts: DeviceFacts) -> Iterator[Advice]:
    """32-bit programs on whatever kernel are not served."""
    capable = facts.machine in MACHINES or _is_64_bit(facts)
    if facts.userland_bits == 32:  # noqa: PLR2004  # bits
        yield Advice(
            topic="system",
            level="problem",
            says="its programs are 32-bit: ferryman does not run there",
            because="ExecuTorch's libraries and ai-edge-litert are built for 64-bit Arm and x86 only",
            do="install the 64-bit image of its system" if capable else "take a device with a 64-bit processor",
        )
    elif facts.machine and facts.machine not in MACHINES:
        yield Advice(
            topic="system",
            level="problem",
            says=f"its machine is {facts.machine}: ferryman does not run there",
            because=f"wheels are built for {' and '.join(MACHINES)}",
        )


def _is_64_bit(facts: DeviceFacts) -> bool:
    kinds = {core.kind for core in facts.cores} if isinstance(facts.cores, tuple) else set()
    return bool(kinds) and not kinds & _ONLY_32_BIT and all(kind.startswith("Cortex-A") for kind in kinds)


def system(facts: DeviceFacts) -> Iterator[Advice]:
    """An emulator, Python, the C library, ferryman itself."""
    if facts.emulated:
        yield Advice(
            topic="system",
            level="note",
            says=f"its processor is emulated by {facts.emulated}: what it computes counts, its times do not",
            because="the process that told shows that emulator",
        )
    if (libc := _version(facts.libc)) and str(facts.libc).startswith("glibc") and libc < GLIBC_MIN_WHEEL:
        yield Advice(
            topic="system",
            level="problem",
            says=f"its {facts.libc} is too old",
            because=f"ferryman's wheel is built for glibc {_dotted(GLIBC_MIN_WHEEL)} and later",
            do="install a newer system: Debian 12 has 2.36",
        )
    elif facts.libc == "musl":
        yield Advice(
            topic="system",
            level="problem",
            says="its C library is musl: no wheel fits",
            because="ferryman's wheel and both TFLite interpreters are built for glibc",
            do="install a system with glibc, such as Debian",
        )
    if _is_phone(facts):
        yield Advice(
            topic="system",
            level="note",
            says="a phone: packages run there in ferryman's native runner, with ExecuTorch alone",
            because="neither Python nor the agent is expected behind adb",
        )
    elif isinstance(facts.python, Unavailable):
        yield Advice(
            topic="system",
            level="problem",
            says="no Python there",
            because=facts.python.reason,
            do="sudo apt-get install python3-venv, then firmware_scripts/provision.sh",
        )
    elif (python := _version(facts.python)) and python < PYTHON_MIN:
        yield Advice(
            topic="system",
            level="problem",
            says=f"its Python {facts.python} is too old",
            because=f"ferryman takes {_dotted(PYTHON_MIN)} or later",
            do="install a newer system: Debian 12 has 3.11",
        )
    elif isinstance(facts.ferryman, Unavailable):
        yield Advice(
            topic="system",
            level="problem",
            says="no ferryman there that tells of itself",
            because=facts.ferryman.reason,
            do="firmware_scripts/provision.sh there (docs/devices.md)",
        )


def runtimes(facts: DeviceFacts) -> Iterator[Advice]:
    """Each interpreter: there, or how it would get there."""
    if isinstance(facts.ferryman, Unavailable):
        return
    have = {one.name: one.version for one in facts.interpreters}
    for names in INTERPRETERS.values():
        for name in names:
            if name in have:
                yield Advice(topic=name, level="ok", says=f"{name} {have[name]} runs there", because="it is installed")
            elif not have.keys() & set(names) and not _is_phone(facts):  # one of a runtime is enough
                yield _missing_interpreter(name, facts, alone=not have)


def _is_phone(facts: DeviceFacts) -> bool:
    return facts.libc == "bionic"


def _missing_interpreter(name: str, facts: DeviceFacts, *, alone: bool) -> Advice:
    level: Level = "problem" if alone else "note"
    if name == "executorch":
        return Advice(
            topic=name,
            level=level,
            says="executorch does not run there",
            because="its libraries come in ferryman's wheel, and this ferryman has none",
            do="install ferryman from its wheel there (docs/devices.md)",
        )
    extra = {"ai-edge-litert": "litert", "tflite-runtime": "tflite"}[name]
    python, libc = _version(facts.python), _version(facts.libc)
    if name == "tflite-runtime" and python and python[:2] > PYTHON_MAX_TFLITE:
        why = f"it has no wheels past Python {_dotted(PYTHON_MAX_TFLITE)}, found {facts.python}"
        return Advice(topic=name, level="note", says="tflite-runtime cannot be installed there", because=why)
    if name == "tflite-runtime" and facts.machine == "aarch64" and libc and libc < GLIBC_MIN_TFLITE:
        why = f"its wheels want glibc {_dotted(GLIBC_MIN_TFLITE)}, found {facts.libc}"
        return Advice(topic=name, level="note", says="tflite-runtime cannot be installed there", because=why)
    return Advice(
        topic=name,
        level=level,
        says=f"{name} is not there: packages run there on what they were proven on and the device has",
        because="it is not installed beside ferryman",
        do=f"pip install 'ferryman[{extra}]' in ferryman's environment there",
    )


def forms(facts: DeviceFacts) -> Iterator[Advice]:
    """Which kernels the processor allows."""
    isa = set(facts.isa)
    if facts.machine == "aarch64" and "asimd" in isa:
        if "asimddp" in isa:
            yield _form("ok", "int8, 4bit and 2bit run on dot products of bytes", "the processor has asimddp")
        else:
            yield _form(
                "note",
                "int8, 4bit and 2bit run, without dot products of bytes: expect less of a gain over fp32",
                "the processor has no asimddp (Cortex-A53, A57 and A72 have none), so bytes are widened before they "
                "are multiplied",
                "measure before choosing: ferryman push --pick fastest, or ferryman profile",
            )
        yield _form("ok", "binary runs on bit counts of vectors", "asimd has them on every 64-bit Arm")
        if "i8mm" in isa:
            yield _form(
                "note",
                "matrix products of bytes (i8mm) are there; ferryman's own operators use dot products instead",
                "they are built for neon and neon_dot",
            )
    elif facts.machine == "x86_64":
        own = {"avx512_vnni", "avx512_vpopcntdq", "avx512bw", "avx512vl", "avx512f"}
        if own <= isa:
            yield _form("ok", "all forms run on AVX-512 with VNNI and VPOPCNTDQ", "the processor has them")
        elif {"avx2", "fma", "f16c"} <= isa:
            yield _form("ok", "all forms run on AVX2", "the processor has avx2, fma and f16c, and not all of AVX-512")
        else:
            yield _form(
                "note", "all forms run on plain x86-64 code, slowly", "the processor has no AVX2 with FMA and F16C"
            )
    if isinstance(facts.kernels, str) and "asimddp" in isa and facts.kernels in {"neon", "scalar"}:
        yield _form(
            "problem",
            f"ferryman's own operators use {facts.kernels} there",
            "the processor has asimddp, which neon_dot takes; is FERRYMAN_KERNELS_ISA set?",
            "unset FERRYMAN_KERNELS_ISA, or install ferryman's wheel again",
        )


def _form(level: Level, says: str, because: str, do: str = "") -> Advice:
    return Advice(topic="forms", level=level, says=says, because=because, do=do)


def memory(facts: DeviceFacts) -> Iterator[Advice]:
    """How much there is for models."""
    total, free = facts.memory_bytes, facts.memory_available_bytes
    if isinstance(total, Unavailable):
        return
    available = "" if isinstance(free, Unavailable) else f", {free / _MEGABYTE:,.0f} MB of it available now"
    if total < MEMORY_SMALL_BYTES:
        yield Advice(
            topic="memory",
            level="note",
            says="small: prefer one interpreter, and int8 or fewer bits for what is large",
            because=f"it has {total / _MEGABYTE:,.0f} MB{available}; runtimes hold weights as in the artifact, "
            "and once more packed",
            do="check packages with --package; push --pick largest-20ms-60mb chooses within a budget",
        )
    else:
        yield Advice(
            topic="memory", level="ok", says=f"{total / _MEGABYTE:,.0f} MB{available}", because="the kernel tells"
        )


def disk(facts: DeviceFacts) -> Iterator[Advice]:
    """Room and rights where packages go."""
    if facts.root_writable is False:
        yield Advice(
            topic="disk",
            level="problem",
            says=f"{facts.root} cannot be written by who asked",
            because="it belongs to another user, or its file system is read-only",
            do=f"sudo install -d -o USER {facts.root}, with the user of the devices file; on a read-only system, give "
            "it a partition of its own",
        )
    if isinstance(facts.free_bytes, int) and facts.free_bytes < FREE_MIN_BYTES:
        yield Advice(
            topic="disk",
            level="problem",
            says=f"only {facts.free_bytes / _MEGABYTE:,.0f} MB free at {facts.root}",
            because="two slots, an upload and the outbox live there",
            do="make room, or put `root` on another file system",
        )


def clock(facts: DeviceFacts) -> Iterator[Advice]:
    """Whether its time is to be believed."""
    if facts.clock_synchronized is False:
        yield Advice(
            topic="clock",
            level="problem",
            says="its clock is not synchronized",
            because="certificates and signed releases expire by it, and telemetry is dated by it",
            do="sudo timedatectl set-ntp true, or see that it reaches a time server",
        )


def sensors(facts: DeviceFacts) -> Iterator[Advice]:
    """Whether energy and heat can be measured, and how that could be had."""
    energy = [one for one in facts.sensors if one.measures == "energy"]
    if there := [one for one in energy if one.available]:
        yield Advice(
            topic="sensors", level="ok", says=f"energy is measured by {there[0].name}", because=there[0].detail
        )
    elif energy:
        yield Advice(
            topic="sensors",
            level="note",
            says="energy cannot be measured there as it is",
            because="; ".join(one.detail for one in energy),
            do=_energy_hint(facts),
        )
    heat = [one for one in facts.sensors if one.measures == "temperature"]
    if heat and not any(one.available for one in heat):
        yield Advice(
            topic="sensors",
            level="note",
            says="no temperature: profiles cannot wait until it is cool",
            because=heat[0].detail,
        )


def _energy_hint(facts: DeviceFacts) -> str:
    if _is_phone(facts):
        return "unplug it and use adb over Wi-Fi, or name a meter beside it with --meter (docs/android.md)"
    model = str(facts.model) if isinstance(facts.model, str) else ""
    for part, hint in _ENERGY_HINTS:
        if part in model:
            return hint
    if any(one.name == "rapl" and _CLOSED.search(one.detail) for one in facts.sensors):
        return "let its user read /sys/class/powercap/intel-rapl:*/energy_uj, or name a meter beside it with --meter"
    return "name a meter beside it with --meter (docs/profiler/energy.md)"


def _version(text: str | Unavailable) -> tuple[int, int] | None:
    found = _VERSION.search(text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


RULES: tuple[Rule, ...] = (userland, system, runtimes, forms, memory, disk, clock, sensors)
"""In the order of the report."""
