"""What a phone tells of itself at one moment, as text, and what that says.

Files of /proc and /sys are laid out as on the phone, so that the readers of other devices read them. What a shell may
not read there comes from Android's services: `dumpsys thermalservice` (Android 10), `dumpsys battery`, properties.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ferryman.devices.fleet.phone.phone import Phone
from ferryman.profiler import conditions as readers
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.measurement import Conditions, Reading
from ferryman.runtime.contracts.numbers import epoch_ns, whole
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.cpu import instruction_sets

T = TypeVar("T")
_CPUS, _THERMAL = "/sys/devices/system/cpu", "/sys/class/thermal"
_FILES = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/loadavg"),
    *(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq", f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_governor"),
    *(f"{_CPUS}/cpu[0-9]*/cpufreq/cpuinfo_max_freq", "/sys/devices/soc0/family", "/sys/devices/soc0/soc_id"),
    *(f"{_THERMAL}/thermal_zone*/type", f"{_THERMAL}/thermal_zone*/temp"),
    *(f"{_THERMAL}/cooling_device*/type", f"{_THERMAL}/cooling_device*/cur_state"),
)
_PROPERTIES = (
    *("ro.product.manufacturer", "ro.product.model", "ro.soc.manufacturer", "ro.soc.model", "ro.board.platform"),
    *("ro.build.version.release", "ro.build.version.sdk"),
)
_MARK = "--ferryman--"
_LINE = re.compile(r"(/[A-Za-z0-9_./-]{1,200}):(.*)")
_STATUS = re.compile(r"^\s*Thermal Status:\s*(\d{1,2})\s*$", re.MULTILINE)
_TEMPERATURE = re.compile(r"Temperature\{mValue=(-?[\d.]{1,12}), mType=(-?\d{1,3}), mName=([^,}]{1,60}), mStatus=\d")
_FIELD = re.compile(r"^\s*([A-Za-z ]{1,40}):\s*(\S{1,60})\s*$", re.MULTILINE)
_NO_TEMPERATURES = {6, 7, 8}
"""Types whose value is a voltage, a current, a percentage (android.os.Temperature)."""
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""PowerManager.THERMAL_STATUS_*, by number."""
_CHARGERS = ("ac powered", "usb powered", "wireless powered", "dock powered")


@dataclass(frozen=True)
class Snapshot:
    """One moment."""

    files: Mapping[str, str]
    properties: Mapping[str, str]
    thermal: str
    """`dumpsys thermalservice`."""
    battery: Mapping[str, str]
    """Fields of `dumpsys battery`, in lower case."""
    kernel: str
    machine: str
    cores: str
    """Those a process there may use, as `0-7`."""
    time_ns: int
    """The phone's wall clock."""

    def prop(self, *names: str) -> str:
        """The first of these that is set; empty where none is."""
        return next((self.properties[name] for name in names if self.properties.get(name)), "")

    @property
    def cpuinfo(self) -> str:
        """Of /proc; empty where it cannot be read."""
        return self.files.get("/proc/cpuinfo", "")

    @property
    def model(self) -> str | Unavailable:
        """Maker and model."""
        maker, model = self.prop("ro.product.manufacturer"), self.prop("ro.product.model")
        if not model:
            return Unavailable(reason="no ro.product.model")
        return model if model.lower().startswith(maker.lower()) else f"{maker} {model}"

    @property
    def os(self) -> str | Unavailable:
        """`Android 14 (API 34)`."""
        release, level = self.prop("ro.build.version.release"), self.prop("ro.build.version.sdk")
        return f"Android {release} (API {level})" if release else Unavailable(reason="no ro.build.version.release")

    @property
    def soc(self) -> str | Unavailable:
        """As Android 12 and later tell; else what the board is called."""
        found = f"{self.prop('ro.soc.manufacturer')} {self.prop('ro.soc.model')}".strip()
        return found or self.prop("ro.board.platform") or Unavailable(reason="no ro.soc.model, no ro.board.platform")

    @property
    def thermal_status(self) -> int | Unavailable:
        """Of THERMAL_STATUS; how far Android itself has stepped down."""
        found = _STATUS.search(self.thermal)
        if found is None:
            return Unavailable(reason="dumpsys thermalservice tells no status (Android 10 does)")
        return int(found[1])

    def temperatures(self) -> tuple[Reading, ...] | Unavailable:
        """Thermal zones; where a shell may not read them, those that Android's thermal service tells."""
        try:
            with self.laid_out() as root:
                return readers.temperatures_c(root)
        except SensorError as error:
            found = tuple(parse_temperatures(self.thermal))
            return found or Unavailable(reason=f"{error}; dumpsys thermalservice tells none")

    def throttled(self) -> tuple[str, ...] | Unavailable:
        """`thermal` where a cooling device of a processor is at work, `thermal light` and so on as Android tells."""
        reasons: list[str] = []
        status = self.thermal_status
        known = isinstance(status, int)
        if isinstance(status, int) and status > 0:
            name = THERMAL_STATUS[status] if status < len(THERMAL_STATUS) else str(status)
            reasons.append(f"thermal {name}")
        try:
            with self.laid_out() as root:
                reasons += readers.throttled(root)
                known = True
        except SensorError:
            pass  # a shell may not see the cooling devices of most phones
        return tuple(reasons) if known else status if isinstance(status, Unavailable) else ()

    @property
    def power_source(self) -> str | Unavailable:
        """`mains` where something charges it, `battery`."""
        told = [self.battery[name] for name in _CHARGERS if name in self.battery]
        if not told:
            return Unavailable(reason="dumpsys battery tells no charger")
        return "mains" if "true" in told else "battery"

    @property
    def battery_percent(self) -> float | Unavailable:
        """Charge over the full one."""
        level, scale = (whole(self.battery.get(name, "")) for name in ("level", "scale"))
        if level is None or not scale or level > scale:
            return Unavailable(reason="dumpsys battery tells no level")
        return 100.0 * level / scale

    @property
    def battery_c(self) -> float | Unavailable:
        """Temperature of the battery; Android counts tenths."""
        said = self.battery.get("temperature", "")
        tenths = whole(said.removeprefix("-"))
        celsius = None if tenths is None else (-tenths if said.startswith("-") else tenths) / 10
        if celsius is None or not readers.PLAUSIBLE_C[0] <= celsius <= readers.PLAUSIBLE_C[1]:
            return Unavailable(reason="dumpsys battery tells no temperature")
        return celsius

    @contextmanager
    def laid_out(self) -> Iterator[Path]:
        """A folder with the files where the phone has them."""
        with tempfile.TemporaryDirectory(prefix="ferryman-phone-") as folder:
            for path, text in self.files.items():
                target = Path(folder) / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
            yield Path(folder)

    def conditions(self, versions: Mapping[str, str]) -> Conditions:
        """As a measurement has them.

        Args:
            versions: of what took part.
        """
        isa = instruction_sets(self.cpuinfo)
        affinity = parse_cores(self.cores)
        with self.laid_out() as root:
            return Conditions(
                device_model=self.model,
                soc=self.soc,
                cpu_model=_try(lambda: readers.cpu_model(self.cpuinfo)),
                cpu_count=self.cpuinfo.count("\nprocessor") + self.cpuinfo.startswith("processor") or len(affinity),
                isa=tuple(name for name in readers.ISA_OF_INTEREST if name in isa),
                governor=_try(lambda: readers.governor(root)),
                clocks_mhz=_try(lambda: readers.clocks_mhz(root, self.cpuinfo)),
                temperatures_c=self.temperatures(),
                throttled=self.throttled(),
                power_source=self.power_source,
                load_1m=_try(lambda: readers.load_1m(root)),
                memory_total_bytes=_try(lambda: readers.meminfo_bytes(root, "MemTotal")),
                memory_available_bytes=_try(lambda: readers.meminfo_bytes(root, "MemAvailable")),
                kernel=self.kernel,
                machine=self.machine,
                affinity=affinity,
                versions=dict(versions) | ({"android": self.os} if isinstance(self.os, str) else {}),
            )


def take(phone: Phone) -> Snapshot:
    """Ask for all of it in one line.

    Raises:
        LinkError: the phone does not answer.
        DeviceError: it answers nonsense.
    """
    asks = (
        f'grep -sH "" {" ".join(_FILES)}',
        *(f"getprop {name}" for name in _PROPERTIES),
        "dumpsys thermalservice 2>/dev/null",
        "dumpsys battery 2>/dev/null",
        "uname -r",
        "uname -m",
        "grep -s Cpus_allowed_list /proc/self/status",
        "date +%s",
    )
    return parse(phone.do("; ".join(f"{ask}; echo {_MARK}" for ask in asks)))


def parse(said: str) -> Snapshot:
    """Take apart what `take` asked for; what is missing is empty."""
    parts = said.replace("\r\n", "\n").split(f"{_MARK}\n")
    parts += [""] * (len(_PROPERTIES) + 8 - len(parts))
    lines: dict[str, list[str]] = {}
    for line in parts[0].splitlines():
        found = _LINE.fullmatch(line)
        if found and ".." not in found[1]:
            lines.setdefault(found[1], []).append(found[2])
    files = {path: "\n".join(text) + "\n" for path, text in lines.items()}
    files = {path: text for path, text in files.items() if not any(other.startswith(f"{path}/") for other in files)}
    count = len(_PROPERTIES)
    thermal, battery, kernel, machine, cores, now = parts[1 + count : 7 + count]
    return Snapshot(
        files=files,
        properties={
            name: text.strip() for name, text in zip(_PROPERTIES, parts[1 : 1 + count], strict=True) if text.strip()
        },
        thermal=thermal,
        battery={name.strip().lower(): value for name, value in reversed(_FIELD.findall(battery))},
        kernel=kernel.strip(),
        machine=machine.strip(),
        cores=cores.partition(":")[2].strip(),
        time_ns=epoch_ns(now),
    )


def parse_temperatures(thermal: str) -> Iterator[Reading]:
    """The current ones; where it tells none, those it has kept."""
    _, _, current = thermal.partition("Current temperatures from HAL:")
    for value, kind, name in _TEMPERATURE.findall(current) or _TEMPERATURE.findall(thermal):
        try:
            celsius = float(value)
        except ValueError:
            continue
        if int(kind) not in _NO_TEMPERATURES and readers.PLAUSIBLE_C[0] <= celsius <= readers.PLAUSIBLE_C[1]:
            yield Reading(value=celsius, source=f"thermalservice {name}")


def parse_cores(text: str) -> tuple[int, ...]:
    """`0-3,6` -> 0, 1, 2, 3, 6; nothing where it is no such list."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text, re.ASCII):
        return ()
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def _try(read: Callable[[], T]) -> T | Unavailable:
    try:
        return read()
    except SensorError as error:
        return Unavailable(reason=str(error))
