"""What a device should run and what it does run, in the manner of a device shadow; both are retained JSON messages."""

from __future__ import annotations

from typing import Literal

from ferryman.runtime.contracts.errors import WireError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.slot import HealthRules, Measured

__all__ = ["Desired", "Health", "Measured", "Reported", "State", "Window"]

State = Literal[
    "waiting",  # for a maintenance window, for power, for less heat, for the day's data budget
    "downloading",
    "installing",
    "trial",  # it serves, and is watched
    "confirmed",  # it served well
    "rolled-back",  # it did not, and the package before serves again
    "refused",  # not tried: bad already, does not fit this device, no budget, not trusted
    "failed",  # tried, and the old package serves; the same may succeed another time
]


class Window(Record):
    """When of a day updates may be installed, in the device's local time; over midnight where the end is earlier."""

    begin_minute: int
    """0 to 1439."""
    end_minute: int


class Desired(Record):
    """What a device should run."""

    version: int
    """Grows with every change of what this device should run; an older one is ignored."""
    rollout: str
    """Id of what asks for it."""
    release: str
    """`family/version`; empty: of no release, see `previous`."""
    package_sha256: str
    previous: bool = False
    """The way back: where this package is in a slot, it serves again from there, at once and without a trial; else
    the release is fetched, or refused where none is named. That the device holds it for bad does not matter."""
    pick: str = "first"
    """See `parse_pick`."""
    variants: tuple[str, ...] = ()
    """Only these are fetched; empty: all that can run there."""
    health: HealthRules = HealthRules()
    update_max_bytes: int | None = None
    """What it may cost on the wire; the device's own budgets hold beside it. None: no matter."""
    window: Window | None = None
    force: bool = False
    """Try again what this device holds for bad."""


class Health(Record):
    """How a package served during its trial."""

    seconds: float
    starts: int
    """Of the agent, within the trial."""
    requests: int
    errors: int
    """Requests that failed by the package's fault; those a caller got wrong do not count."""
    latency_ns: int | None
    """Median of a call; of the golden vectors where nobody asked."""
    before_latency_ns: int | None
    """The same of the package before."""
    energy_j: float | None = None
    """Of a call, where the device has a meter and was asked to use it."""
    before_energy_j: float | None = None
    """The same of the package before."""
    drift: float | None = None
    """See `ferryman.runtime.contracts.drift`: the largest distance of an output from the package before; None: none
    is kept."""


class Reported(Record):
    """What a device runs, and how far it is on its way to what it should."""

    device: str
    at_ns: int
    """Device wall clock."""
    desired_version: int
    rollout: str
    state: State
    release: str | None
    """That serves; None: none, or one that came by another way."""
    package_sha256: str | None
    """That serves."""
    model: str
    """The kind of device it is, as the device tree or DMI tells; devices of one kind answer alike."""
    error: WireError | None = None
    """Why it waits, refused, failed or rolled back."""
    wire_bytes: int = 0
    """Fetched for this desired version, retries and metadata included."""
    wire_total_bytes: int = 0
    """What was planned."""
    measured: tuple[Measured, ...] = ()
    """In states trial, confirmed and rolled-back."""
    health: Health | None = None
