"""Power management chip of the Raspberry Pi 5: `pmic_read_adc`, by the firmware's mailbox or by `vcgencmd`.

The sum over the rails is what the board's chips take; losses of the PMIC itself and whatever hangs on USB or the
header are not in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ferryman.profiler.samplers.base import Reading, stamped
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import EnergySource
from ferryman.runtime.contracts.record import Unavailable

_DEVICE = "dev/vcio"
_PROGRAMS = ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd")
_TIMEOUT_S = 1.0
_COMMAND = "pmic_read_adc"
_LINE = re.compile(
    r"^[ \t]*([A-Za-z0-9_]{1,40})_([AV])(?:[ \t]+\S{1,40}?)?=(-?[0-9]{1,9}(?:\.[0-9]{1,12})?)\2[ \t\r]*$", re.MULTILINE
)
# The firmware's property interface: size, code, then one tag (id, room, length, error, text), then the end tag.
_IOCTL_PROPERTY = 0xC0086400
_TAG_GENCMD = 0x00030080
_TEXT_BYTES = 1024
_REQUEST, _DONE, _END_TAG = 0, 0x80000000, 0
_HEADER = struct.Struct("<6I")
Mailbox = Callable[[int, bytearray], object]
"""(file descriptor, message that is answered in place)."""


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
        raise SensorError(f"pmic_read_adc: no rail with current and voltage in {text.strip()[:120]!r}")
    return watts


def ask_mailbox(descriptor: int, ask: Mailbox) -> str:
    """Have the firmware run the command.

    Raises:
        SensorError: the kernel or the firmware refuses.
    """
    size = _HEADER.size + _TEXT_BYTES + 4
    message = bytearray(size)
    _HEADER.pack_into(message, 0, size, _REQUEST, _TAG_GENCMD, _TEXT_BYTES, 0, 0)
    message[_HEADER.size : _HEADER.size + len(_COMMAND)] = _COMMAND.encode()
    try:
        ask(descriptor, message)
    except OSError as error:
        raise SensorError(f"/dev/vcio: {error.strerror}") from error
    _, code, _, _, _, failure = _HEADER.unpack_from(message)
    text = message[_HEADER.size : _HEADER.size + _TEXT_BYTES].decode(errors="replace").strip("\0")
    if code != _DONE or failure:
        words = text.partition("\0")[0][:120]
        raise SensorError(f"/dev/vcio: the firmware answers {code:#x}, error {failure}: {words!r}")
    return text.replace("\0", "\n")


def _ioctl(descriptor: int, message: bytearray) -> None:
    fcntl.ioctl(descriptor, _IOCTL_PROPERTY, message, True)


@dataclass
class PmicSampler:
    """Implements `Sampler`; a reading takes some 23 ms, most of which the caller sleeps."""

    way: str
    ask: Callable[[], str]
    let_go: Callable[[], None]
    period_s: float = 0.1
    settle_s: float = 0.0
    source: EnergySource = field(init=False)

    def __post_init__(self) -> None:
        self.source = EnergySource(
            name=f"Raspberry Pi PMIC ({self.way})",
            rails=tuple(parse_rails_w(self.ask())),
            unit="W",
            resolution=Unavailable(reason="differs from rail to rail, and is not published"),
            renewed_s=Unavailable(reason="not published"),
            uncertainty=Unavailable(reason="not published"),
            note="sum of the rails with current and voltage; without the PMIC's losses, USB and the header, "
            "so less than the supply gives; a rail below the converter's step reads 0",
        )

    def read(self) -> Sequence[Reading]:
        """See `Sampler.read`."""
        return stamped(self._watts)

    def close(self) -> None:
        """See `Sampler.close`."""
        self.let_go()

    def _watts(self) -> float:
        watts = parse_rails_w(self.ask())
        if tuple(watts) != self.source.rails:
            raise SensorError(f"pmic_read_adc: expected rails {self.source.rails}, found {tuple(watts)}")
        return sum(watts.values())


def open_source(root: Path = Path("/"), ask: Mailbox = _ioctl) -> PmicSampler | Unavailable:
    """The board's PMIC by the mailbox, which starts no program, else by vcgencmd; or why neither can be read."""
    reasons = []
    if os.path.lexists(root / _DEVICE):
        try:
            return _open_mailbox(root / _DEVICE, ask)
        except SensorError as error:
            reasons.append(str(error))
    for name in _PROGRAMS:
        program = root / name
        if os.access(program, os.X_OK):
            try:
                return PmicSampler("vcgencmd pmic_read_adc", partial(_run, program), lambda: None)
            except SensorError as error:
                reasons.append(str(error))
                break
    return Unavailable(reason="Raspberry Pi PMIC: " + ("; ".join(reasons) or "no /dev/vcio or vcgencmd on this device"))


def _open_mailbox(path: Path, ask: Mailbox) -> PmicSampler:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SensorError(f"/dev/vcio: {error.strerror}") from error
    try:
        return PmicSampler("mailbox", lambda: ask_mailbox(descriptor, ask), lambda: os.close(descriptor))
    except SensorError:
        os.close(descriptor)
        raise


def _run(program: Path) -> str:
    try:
        done = subprocess.run(
            [program, _COMMAND], capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise SensorError(f"{program}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise SensorError(f"{program} did not answer within {_TIMEOUT_S:g} s") from error
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[:120]
        raise SensorError(f"{program} {_COMMAND} ended with exit code {done.returncode}: {words!r}")
    return done.stdout.decode(errors="replace")
