"""On-device power monitor of phones with a Google Tensor (Pixel 6 and later): counters of microjoules by rail.

`/sys/bus/iio/devices/iio:device*/energy_value`, on the phone itself or through any shell that prints a file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ferryman.profiler.samplers.base import Reading
from ferryman.profiler.sysfs import SensorError, paths, read_text
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

FOLDER = "sys/bus/iio/devices"
DEVICES = tuple(f"iio:device{number}" for number in range(4))
_STAMP = re.compile(r"^t=([0-9]{1,18})\s*$", re.MULTILINE)
_RAIL = re.compile(r"^CH[0-9]{1,3}\(T=[0-9]{1,18}\)\[([^\]\s]{1,60})\], ?([0-9]{1,18})\s*$", re.MULTILINE)
_ENABLED = re.compile(r"^CH[0-9]{1,3}\[([^\]\s]{1,60})\]:([^\s:]{1,60})\s*$", re.MULTILINE)
Texts = Mapping[str, str]
"""`energy_value` of each device, by its name."""


def parse_rails_uj(text: str) -> tuple[int, dict[str, int]]:
    """Milliseconds since the phone started, and microjoules by rail; channels move, names stay.

    Raises:
        SensorError: it is no such text; quoted.
    """
    stamp, rails = _STAMP.search(text), dict(_RAIL.findall(text))
    if stamp is None or not rails:
        raise SensorError(f"energy_value: expected `t=` and rails, found {text.strip()[:120]!r}")
    return int(stamp[1]), {rail: int(value) for rail, value in rails.items()}


@dataclass
class OdpmSampler:
    """Implements `Sampler`.

    Counters carry the phone's own time, which is laid on ours at the first reading: so neither a slow link nor a value
    that was taken a little earlier gets into the time between two readings.
    """

    fetch: Callable[[], Texts]
    place: str
    enabled: str = ""
    """Text of `enabled_rails`, which says what a rail feeds."""
    period_s: float = 0.25
    settle_s: float = 0.5
    source: EnergySource = field(init=False)

    def __post_init__(self) -> None:
        began_ns = time.perf_counter_ns()
        first = self._take()
        self._offset_ns = (began_ns + time.perf_counter_ns()) // 2 - 1_000_000 * first[0]
        self._last = self._first = first
        feeds = dict(_ENABLED.findall(self.enabled))
        self.source = EnergySource(
            name=f"ODPM at {self.place}",
            rails=tuple(f"{rail} ({feeds[rail]})" if rail in feeds else rail for rail in first[1]),
            unit="J",
            resolution=1e-6 * len(first[1]),
            renewed_s=Unavailable(reason="see the phone's sampling_rate"),
            uncertainty=Unavailable(reason="not published"),
            note="sum of the rails, not the whole phone; whether one rail feeds another the phone does not say",
        )

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        time_ms, rails = now = self._take()
        if rails.keys() != self._last[1].keys():
            raise SensorError(f"ODPM: expected rails {sorted(self._last[1])}, found {sorted(rails)}")
        fallen = [rail for rail, value in rails.items() if value < self._last[1][rail]]
        if fallen or time_ms < self._last[0]:
            raise SensorError(f"ODPM: {', '.join(fallen) or 'its clock'} went back; did the phone start again?")
        if time_ms == self._last[0]:
            return ()
        self._last = now
        joules = sum(value - self._first[1][rail] for rail, value in rails.items()) / 1e6
        return ((self._offset_ns + 1_000_000 * time_ms, joules),)

    def close(self) -> None:
        """Nothing is open."""

    def _take(self) -> tuple[int, dict[str, int]]:
        """Of all devices together; their times differ by less than a reading takes, and the first one's stands."""
        found = [parse_rails_uj(text) for text in self.fetch().values()]
        if not found:
            raise SensorError("ODPM: no energy_value")
        rails = {rail: value for _, of_device in found for rail, value in of_device.items()}
        return found[0][0], rails


def open_source(root: Path = Path("/")) -> OdpmSampler | Unavailable:
    """The rails of this phone, or why they cannot be read."""
    try:
        folders = [path.parent for path in paths(root / FOLDER, "iio:device*/energy_value")]
        if not folders:
            return Unavailable(reason="ODPM: no energy_value on this device")
        enabled = "\n".join(read_text(path) for folder in folders for path in paths(folder, "enabled_rails"))
        return OdpmSampler(
            lambda: {folder.name: read_text(folder / "energy_value") for folder in folders}, "iio", enabled
        )
    except SensorError as error:
        return Unavailable(reason=f"ODPM: {error}")
