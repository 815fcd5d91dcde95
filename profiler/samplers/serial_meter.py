"""A meter on a serial line that prints a reading a line: `serial:/dev/ttyUSB0?baud=115200&unit=mW&column=2`.

A reading is of the moment its line ends. Numbers are split by commas, semicolons, tabs or blanks; lines that hold none
in that column (a heading, half a line) are left out, and a line that says nothing else is an error after a while.
"""

from __future__ import annotations

import math
import os
import re
import select
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from ferryman.profiler.samplers.base import Inbox, Reading
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

UNITS: dict[str, tuple[Literal["W", "J"], float]] = {
    "W": ("W", 1.0),
    "mW": ("W", 1e-3),
    "J": ("J", 1.0),
    "mJ": ("J", 1e-3),
    "mWh": ("J", 3.6),
    "Wh": ("J", 3600.0),
}
BAUDS = {baud: getattr(termios, f"B{baud}") for baud in (9600, 19200, 38400, 57600, 115200, 230400)}
_LINE_MAX = 1024
_FIRST_S = 10.0
_SPLIT = re.compile(r"\s*[,;]\s*|\s+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:[eE][+-]?[0-9]{1,2})?")


def parse_line(line: bytes, column: int) -> float | None:
    """The number in a column, counted from 1; None if there is none."""
    fields = _SPLIT.split(line.decode("ascii", errors="replace").strip())
    if len(fields) < column or not _NUMBER.fullmatch(fields[column - 1]):
        return None
    value = float(fields[column - 1])
    return value if math.isfinite(value) else None


class SerialSampler:
    """Implements `Sampler`; listens from when it is made, in a thread of its own."""

    def __init__(self, path: str, baud: int, unit: str, column: int, period_s: float, settle_s: float) -> None:
        """Open the line, and wait for the first reading.

        Args:
            path: of the terminal device.
            baud: one of BAUDS.
            unit: of the numbers, one of UNITS.
            column: where on the line the number is, from 1.
            period_s: between two lines.
            settle_s: readings so soon after a change of load are left out.

        Raises:
            SensorError: the line cannot be opened, or nothing comes.
        """
        self.settle_s, self.period_s = settle_s, period_s
        kind, self._scale = UNITS[unit]
        self._column = column
        self.source = EnergySource(
            name=f"serial meter {path}, column {column} in {unit}",
            rails=("what the meter is in",),
            unit=kind,
            resolution=Unavailable(reason="depends on the meter"),
            renewed_s=Unavailable(reason="depends on the meter"),
            uncertainty=Unavailable(reason="depends on the meter"),
            note=f"stamped on arrival; readings of the first {settle_s:g} s after a change of load are left out",
        )
        self._inbox = Inbox(self.source.name, max(10.0, 3 * period_s))
        self._descriptor = _open(path, baud)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="serial meter", daemon=True)
        self._thread.start()
        try:
            self._inbox.wait(_FIRST_S + 2 * period_s)
        except SensorError:
            self.close()
            raise

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return self._inbox.take()

    def close(self) -> None:
        """See `Sampler.close`."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        for descriptor in (self._descriptor, self._stop_read, self._stop_write):
            with suppress(OSError):
                os.close(descriptor)

    def _listen(self) -> None:
        rest, skipping = b"", True  # the first line may have begun before we listened
        while True:
            ready, _, _ = select.select([self._descriptor, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            try:
                data = os.read(self._descriptor, 4096)
            except OSError as error:
                self._inbox.fail(str(error.strerror))
                return
            if not data:
                self._inbox.fail("the line was closed")
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                value = None if skipping else parse_line(line, self._column)
                skipping = False
                if value is not None:
                    self._inbox.put(value * self._scale)
            if len(rest) > _LINE_MAX:
                rest, skipping = b"", True


def _open(path: str, baud: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SensorError(f"{path}: {error.strerror}") from error
    try:
        _, _, control, _, _, _, characters = termios.tcgetattr(descriptor)
        control = (control | termios.CLOCAL | termios.CREAD | termios.CS8) & ~(termios.PARENB | termios.CSTOPB)
        termios.tcsetattr(descriptor, termios.TCSANOW, [0, 0, control, 0, BAUDS[baud], BAUDS[baud], characters])
    except termios.error as error:
        os.close(descriptor)
        raise SensorError(f"{path}: {error.args[-1]}") from error
    os.set_blocking(descriptor, True)
    return descriptor
