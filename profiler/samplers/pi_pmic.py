"""Power management chip of the Raspberry Pi 5: `vcgencmd pmic_read_adc`.

The sum over the rails is what the board's chips take; losses of the PMIC itself and whatever hangs on USB or the
header are not in it.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.record import Unavailable

_PROGRAMS = ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd")
_TIMEOUT_S = 1.0
_LINE = re.compile(
    r"^[ \t]*([A-Za-z0-9_]{1,40})_([AV])(?:[ \t]+\S{1,40}?)?=(-?[0-9]{1,9}(?:\.[0-9]{1,12})?)\2[ \t\r]*$", re.MULTILINE
)


def parse_rails_w(text: str) -> dict[str, float]:
    """Watts by rail: current times voltage where both are reported, paired by name (channel numbers do not match).

    Raises:
        SensorError: no rail has both; the text is quoted.
    """
    readings: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, kind, value in _LINE.findall(text):
        readings[kind][rail] = float(value)
    watts = {rail: current * readings["V"][rail] for rail, current in readings["A"].items() if rail in readings["V"]}
    if not watts:
        raise SensorError(f"vcgencmd pmic_read_adc: no rail with current and voltage in {text.strip()[:120]!r}")
    return watts


@dataclass
class PmicSampler:
    """Implements `Sampler`; a reading takes some 24 ms, which bounds the rate."""

    program: Path
    rails: tuple[str, ...]
    source: str = "Raspberry Pi PMIC (vcgencmd pmic_read_adc)"
    unit: Literal["W", "J"] = "W"
    period_s: float = 0.1

    def read(self) -> float:
        """See `Sampler.read`."""
        watts = _read_rails_w(self.program)
        if tuple(watts) != self.rails:
            raise SensorError(f"vcgencmd pmic_read_adc: expected rails {self.rails}, found {tuple(watts)}")
        return sum(watts.values())


def open_source(root: Path = Path("/")) -> PmicSampler | Unavailable:
    """The board's PMIC, or why it cannot be read."""
    for name in _PROGRAMS:
        program = root / name
        if os.access(program, os.X_OK):
            try:
                return PmicSampler(program, tuple(_read_rails_w(program)))
            except SensorError as error:
                return Unavailable(reason=f"Raspberry Pi PMIC: {error}")
    return Unavailable(reason="Raspberry Pi PMIC: no vcgencmd on this device")


def _read_rails_w(program: Path) -> dict[str, float]:
    try:
        done = subprocess.run(
            [program, "pmic_read_adc"], capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise SensorError(f"{program}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise SensorError(f"{program} did not answer within {_TIMEOUT_S:g} s") from error
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[:120]
        raise SensorError(f"{program} pmic_read_adc ended with exit code {done.returncode}: {words!r}")
    return parse_rails_w(done.stdout.decode(errors="replace"))
