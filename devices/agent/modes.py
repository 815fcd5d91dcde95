"""How much a device's link may be used, switched on the device itself: `ROOT/telemetry-mode.json`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.telemetry import Priority
from ferryman.runtime.durable import write_durable

log = logging.getLogger(__name__)

Mode = Literal["full", "metered", "offline"]
MODES: tuple[Mode, ...] = get_args(Mode)
FILE = "telemetry-mode.json"
METERED_EVERY_S = 900.0
"""On a metered link, what waits goes at most so often."""
LEVELS: dict[Mode, tuple[Priority, ...]] = {
    "full": tuple(Priority),
    "metered": (Priority.NORMAL, Priority.VITAL),
    "offline": (),
}
"""What is sent at all."""
_FILE_MAX_BYTES = 4096


class Switch(Record):
    """What the file holds."""

    mode: Mode


def switch(root: Path, mode: Mode) -> None:
    """Set the mode of the agent that serves `root`, now and after every restart.

    Raises:
        CallerError: there is no such folder.
        DeviceError: the disk refused; the mode is as it was.
    """
    if not root.is_dir():
        raise CallerError(f"{root} is no folder; name the agent's --root")
    write_durable(root / FILE, encode(Switch(mode=mode)))


class Modes:
    """Follows the switch; reads the file only when it has changed."""

    def __init__(self, root: Path, default: Mode = "full") -> None:
        """Name the folder.

        Args:
            root: the agent's.
            default: as long as nobody has switched.
        """
        self._path = root / FILE
        self._default = default
        self._seen: tuple[int, int, int] | None = None
        self._mode: Mode = default

    def now(self) -> Mode:
        """The mode; a file that cannot be read changes nothing, and is logged."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._seen, self._mode = None, self._default
            return self._mode
        except OSError as error:
            log.debug("%s: %s", self._path, error)
            return self._mode
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._seen:
            self._seen = seen
            self._read()
        return self._mode

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                self._mode = decode(file.read(_FILE_MAX_BYTES), Switch).mode
        except (OSError, ValueError) as error:
            log.error(  # noqa: TRY400  # said in full
                "%s cannot be read: %s; going on with mode %s; switch anew with `ferryman outbox mode`",
                self._path,
                error,
                self._mode,
            )
