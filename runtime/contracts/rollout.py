"""What a device should run and what it does run, in the manner of a device shadow; both are retained JSON messages."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.errors import WireError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.slot import HealthRules, Measured

__all__ = ["Desired", "Health", "Measured", "Reported", "State", "Window"]

MESSAGE_MAX_BYTES = 64 << 10
"""Of a `Desired`; longer ones are none."""
Version = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[str, msgspec.Meta(max_length=200)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Minute = Annotated[int, msgspec.Meta(ge=0, lt=24 * 60)]

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

    begin_minute: Minute
    """0 to 1439."""
    end_minute: Minute


class Desired(Record):
    """What a device should run."""

    version: Version
    """Grows with every change of what this device should run; an older one is ignored."""
    rollout: Name
    """Id of what asks for it."""
    release: Name
    """`family/version`; empty: of no release, see `previous`."""
    package_sha256: Annotated[str, msgspec.Meta(max_length=64)]
    previous: bool = False
    """The way back: where this package is in a slot, it serves again from there, at once and without a trial; else
    the release is fetched, or refused where none is named. That the device holds it for bad does not matter."""
    pick: Name = "first"
    """See `parse_pick`."""
    variants: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)] = ()
    """Only these are fetched; empty: all that can run there."""
    health: HealthRules = HealthRules()
    update_max_bytes: Count | None = None
    """What it may cost on the wire; the device's own budgets hold beside it. None: no matter."""
    window: Window | None = None
    force: bool = False
    """Try again what this device holds for bad."""


class Health(Record):
    """How a package served during its trial."""

    seconds: float
    starts: Count
    """Of the agent, within the trial."""
    requests: Count
    errors: Count
    """Requests that failed by the package's fault; those a caller got wrong do not count."""
    latency_ns: Count | None
    """Median of a call; of the golden vectors where nobody asked."""
    before_latency_ns: Count | None
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
    at_ns: Count
    """Device wall clock."""
    desired_version: Version
    rollout: Name
    state: State
    release: Name | None
    """That serves; None: none, or one that came by another way."""
    package_sha256: Annotated[str, msgspec.Meta(max_length=64)] | None
    """That serves."""
    model: Annotated[str, msgspec.Meta(max_length=1000)]
    """The kind of device it is, as the device tree or DMI tells; devices of one kind answer alike."""
    error: WireError | None = None
    """Why it waits, refused, failed or rolled back."""
    wire_bytes: Count = 0
    """Fetched for this desired version, retries and metadata included."""
    wire_total_bytes: Count = 0
    """What was planned."""
    measured: tuple[Measured, ...] = ()
    """In states trial, confirmed and rolled-back."""
    health: Health | None = None
