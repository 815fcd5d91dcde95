"""Which slot of a device serves, as a record on its disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

SlotName = Literal["a", "b"]
BAD_MAX = 32
BY_HAND = "rolled back by hand"
"""Why a package is bad that a person went back from."""
DEFAULT_ROOT = Path("/var/lib/ferryman")
PICKS = ("first", "fastest", "smallest", "closest", "largest")
_PICK = re.compile(
    rf"({'|'.join(PICKS)})(?:-(\d{{1,6}}(?:\.\d{{1,3}})?)ms)?(?:-(\d{{1,6}})mb)?(?:-(\d{{1,6}}(?:\.\d{{1,3}})?)mj)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Pick:
    """How a device chooses among variants that it can run, as it found them on the golden vectors.

    The package's first; the one of the least latency, and of those within a tenth of it the closest; of the fewest
    bytes; of the highest SQNR; or of nested ones the largest network. Only those within a budget count.
    """

    kind: str
    latency_ms: float | None
    """Of a call with the first golden vector, at most; None: no matter."""
    memory_mb: int | None
    """Of the process that runs it, at most, in 10^6 bytes that are its alone; None: no matter."""
    energy_mj: float | None = None
    """Of a call, at most, above idle; None: no matter. Only where the device measured it."""


def parse_pick(name: str) -> Pick:
    """Read `first`, `fastest`, `smallest`, `closest` or `largest`, with `-20ms`, `-60mb`, `-5mj` or several behind it.

    Raises:
        CallerError: it is something else.
    """
    read = _PICK.fullmatch(name) if isinstance(name, str) else None
    if read is None or (read[1] == "first" and name != "first"):
        raise CallerError(
            f"pick {name!r} is not known; there are: {', '.join(PICKS)}, the last four with a budget of latency, "
            "memory or energy, in this order, such as largest-20ms, fastest-60mb or largest-20ms-60mb-5mj"
        )
    latency, memory, energy = read[2], read[3], read[4]
    return Pick(
        read[1],
        None if latency is None else float(latency),
        None if memory is None else int(memory),
        None if energy is None else float(energy),
    )


class Measured(Record):
    """What a variant's golden vectors showed on a device."""

    variant: str
    interpreter: str
    latency_ns: int | None
    memory_bytes: int | None
    sqnr_db: float
    size_bytes: int = 0
    """Of the variant's payload."""
    share: float | None = None
    """Of a nested network's multiplications, over those of the largest; None: it is not nested."""
    energy_j: float | None = None
    """Of a call, above idle; None: nobody measured it."""


class HealthRules(Record):
    """When a package that serves on trial is good, and when it is bad."""

    window_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 60.0
    """It must serve well for so long, without a break."""
    starts_max: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    """More starts of the agent within the trial are a crash loop."""
    errors_max: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    """Share of requests that may fail; at least one must."""
    latency_max_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Of the median; None: no matter."""
    slower_max: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Times the package before, the median; None: no matter."""
    drift_max: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Distance of outputs from those of the package before; None: no matter."""


class Trial(Record):
    """The active package serves on trial: it is confirmed, or the previous one serves again."""

    desired_version: int
    rollout: str
    rules: HealthRules
    began_at_ns: int
    """Device wall clock, for people; the window is counted by a monotonic clock."""
    starts: int = 0
    """Of the agent since; each is written down before it serves."""
    before_latency_ns: int | None = None
    """Median of a call of the package before."""


class BadPackage(Record):
    """A package that served badly here, or that a person went back from; it is not tried again by itself."""

    package_sha256: str
    reason: str
    at_ns: int

    def refusal(self, name: str) -> str:
        """What whoever asks for it again is told; `name` is what they call it."""
        what = f"was {self.reason}" if self.reason == BY_HAND else f"served badly ({self.reason})"
        return (
            f"{name} {self.package_sha256[:12]} {what} on this device and is not tried again by itself; publish "
            "another version, or say --force"
        )


class Slot(Record):
    """A complete, verified installation."""

    name: SlotName
    package_sha256: str
    package_name: str
    manifest_sha256: str
    """Of the slot's manifest.json, which in turn holds the hash of every payload."""
    installed_at_ns: int
    """Device wall clock, Unix epoch."""
    pick: str = "first"
    """See `parse_pick`."""
    variant: str | None = None
    """What answers where a request names neither variant nor interpreter; None: the first that runs here."""
    interpreter: str | None = None
    release: str | None = None
    """`family/version` that it is; None: it came by another way, and nobody has named one since."""
    variants: tuple[str, ...] | None = None
    """Only these of the package's variants are in the slot; None: all."""
    measured: tuple[Measured, ...] = ()
    """What the golden vectors showed when it was proven."""

    @property
    def answers(self) -> str | None:
        """The same in words; None: the first that runs here."""
        return f"{self.variant} on {self.interpreter}, the {self.pick}" if self.variant else None


class SlotState(Record):
    """The whole truth about the store: what is not named here does not count."""

    schema: int = 1
    active: Slot | None = None
    previous: Slot | None = None
    trial: Trial | None = None
    """Of the active slot; None: it is confirmed."""
    bad: tuple[BadPackage, ...] = ()
    """The newest `BAD_MAX`."""
