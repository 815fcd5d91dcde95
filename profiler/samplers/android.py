"""A phone at the other end of `adb`: rails of its power monitor, else its battery by whatever it lets a shell read.

A phone that charges over USB measures its charger: connect with `adb tcpip` and unplug it. Battery numbers come, in
this order, from sysfs (closed to a shell on most phones), from BatteryManager by `cmd battery get current_now` (Android
15), and as the charge counter of `dumpsys battery`, whose steps are of about 1 mAh: minutes of runs for a few per cent.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ferryman.profiler.samplers import odpm
from ferryman.profiler.samplers.base import Reading, Sampler, stamped
from ferryman.profiler.samplers.power_supply import CELL_UV, BatterySampler, Properties
from ferryman.profiler.sysfs import SensorError, to_int
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

Shell = Callable[[str], str]
"""Runs a command on the phone: its standard output.

Raises:
    SensorError: it cannot be reached, or the command failed; in its own words.
"""
_TIMEOUT_S = 5.0
_SUPPLY = "/sys/class/power_supply/battery"
_STATUS = {"2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}
_FIELD = re.compile(r"^\s*([A-Za-z ]{1,40}):\s*(\S{1,60}).*$", re.MULTILINE)
_MARK = "--ferryman--"


def adb_shell(serial: str) -> Shell:
    """The real `adb` program.

    Args:
        serial: as `adb devices` lists it; empty for the only one.
    """
    target = ["-s", serial] if serial else []

    def run(command: str) -> str:
        try:
            done = subprocess.run(
                ["adb", *target, "shell", command],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise SensorError("no adb on this machine; on Debian or Ubuntu: sudo apt-get install adb") from error
        except OSError as error:
            raise SensorError(f"adb: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise SensorError(f"adb: no answer within {_TIMEOUT_S:g} s") from error
        if done.returncode:
            words = (done.stderr or done.stdout).decode(errors="replace").strip()[:160]
            raise SensorError(f"adb shell ended with exit code {done.returncode}: {words!r}")
        return done.stdout.decode(errors="replace").replace("\r\n", "\n")

    return run


def parse_dumpsys(text: str) -> dict[str, str]:
    """`dumpsys battery`, under the names and in the units of sysfs (uV, uAh).

    Raises:
        SensorError: it says nothing of a status; quoted.
    """
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        fields.setdefault(name.strip().lower(), value)
    if "status" not in fields:
        raise SensorError(f"dumpsys battery: no status in {text.strip()[:120]!r}")
    found = {"status": _STATUS.get(fields["status"], f"unknown ({fields['status']})")}
    if "voltage" in fields:
        found["voltage_now"] = str(1000 * to_int(fields["voltage"], "dumpsys battery: voltage"))
    if "charge counter" in fields:
        found["charge_counter"] = fields["charge counter"]
    return found


def open_phone(serial: str, shell: Shell | None = None) -> Sampler | Unavailable:
    """The best source the phone has, or each one's reason why not."""
    shell = shell or adb_shell(serial)
    name = serial or "adb"
    reasons = []
    for open_way in (_open_odpm, _open_sysfs, _open_manager, ChargeSampler):
        try:
            return open_way(shell, name)
        except SensorError as error:
            reasons.append(str(error))
    return Unavailable(reason=f"adb {name}: " + "; ".join(dict.fromkeys(reasons)))


def _open_odpm(shell: Shell, name: str) -> Sampler:
    listing = shell(f"ls -d /{odpm.FOLDER}/iio:device*/energy_value 2>/dev/null || true")
    files = [line for line in listing.split() if re.fullmatch(rf"/{odpm.FOLDER}/iio:device\d+/energy_value", line)]
    if not files:
        raise SensorError("no energy_value of a power monitor")
    enabled = shell(f"cat /{odpm.FOLDER}/iio:device*/enabled_rails 2>/dev/null || true")
    return odpm.OdpmSampler(lambda: _print_files(shell, files), name, enabled)


def _open_sysfs(shell: Shell, name: str) -> Sampler:
    names = ("status", "power_now", "energy_now", "current_now", "voltage_now", "charge_counter", "charge_now")
    files = [f"{_SUPPLY}/{file}" for file in names]

    def fetch() -> Properties:
        texts = _print_files(shell, files)
        return _properties({path.rpartition("/")[2]: text.strip() for path, text in texts.items() if text.strip()})

    return BatterySampler(f"battery of {name} (sysfs)", fetch)


def _open_manager(shell: Shell, name: str) -> Sampler:
    def fetch() -> Properties:
        battery, _, current = shell(f"dumpsys battery && echo {_MARK} && cmd battery get current_now").partition(_MARK)
        found = parse_dumpsys(battery)
        if current.strip():
            found["current_now"] = current.strip()
        return _properties(found)

    return BatterySampler(f"battery of {name} (BatteryManager)", fetch, period_s=1.0)


def _print_files(shell: Shell, files: Sequence[str]) -> dict[str, str]:
    """Of one moment; empty where one cannot be read."""
    printed = shell(f"for f in {' '.join(files)}; do echo {_MARK}; cat $f 2>/dev/null; done; true")
    texts = printed.split(f"{_MARK}\n")[1:]
    if len(texts) != len(files):
        raise SensorError(f"adb shell: expected {len(files)} files, found {printed.strip()[:120]!r}")
    return dict(zip(files, texts, strict=True))


def _properties(found: Mapping[str, str]) -> Properties:
    def get(name: str) -> str:
        if name not in found:
            raise SensorError(f"no {name}")
        return found[name]

    return get


@dataclass
class ChargeSampler:
    """Implements `Sampler`: charge that left the battery, times its voltage."""

    shell: Shell
    name: str
    period_s: float = 1.0
    settle_s: float = 0.0
    source: EnergySource = field(init=False)
    _joules: float = 0.0

    def __post_init__(self) -> None:
        self._last_uah, self._last_uv = self._take()
        self.source = EnergySource(
            name=f"charge counter of {self.name} (dumpsys battery)",
            rails=("whole device",),
            unit="J",
            resolution=Unavailable(reason="of the fuel gauge"),
            renewed_s=Unavailable(reason="of the fuel gauge"),
            uncertainty=Unavailable(reason="of the fuel gauge"),
            note="charge drawn times the voltage; coarse, so the window must be minutes",
        )

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return stamped(self._drawn_j)

    def close(self) -> None:
        """Nothing is open."""

    def _drawn_j(self) -> float:
        now_uah, now_uv = self._take()
        fell_uah = self._last_uah - now_uah
        if fell_uah < 0:
            raise SensorError(f"{self.source.name} rose from {self._last_uah} to {now_uah}")
        self._joules += fell_uah * 3.6e-3 * (now_uv + self._last_uv) / 2e6
        self._last_uah, self._last_uv = now_uah, now_uv
        return self._joules

    def _take(self) -> tuple[int, int]:
        found = _properties(parse_dumpsys(self.shell("dumpsys battery")))
        if found("status") != "Discharging":
            raise SensorError(
                f"the battery is {found('status').lower()[:20]}; unplug the phone, and use adb over Wi-Fi"
            )
        charge_uah, voltage_uv = (to_int(found(name), name) for name in ("charge_counter", "voltage_now"))
        if charge_uah <= 0 or voltage_uv not in CELL_UV:
            raise SensorError(f"dumpsys battery: {charge_uah} uAh at {voltage_uv} uV make no sense")
        return charge_uah, voltage_uv
