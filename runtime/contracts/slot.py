"""Which slot of a device serves, as a record on its disk."""

from __future__ import annotations

from typing import Literal, get_args

from ferryman.runtime.contracts.record import Record

SlotName = Literal["a", "b"]
Pick = Literal["first", "fastest", "smallest", "closest"]
PICKS: tuple[str, ...] = get_args(Pick)
"""How a device chooses among variants that it can run, as it found them on the golden vectors: the package's first; the
one of the least latency, and of those within a tenth of it the closest; of the fewest bytes; of the highest SQNR."""


class Slot(Record):
    """A complete, verified installation."""

    name: SlotName
    package_sha256: str
    package_name: str
    manifest_sha256: str
    """Of the slot's manifest.json, which in turn holds the hash of every payload."""
    installed_at_ns: int
    """Device wall clock, Unix epoch."""
    pick: Pick = "first"
    variant: str | None = None
    """What answers where a request names neither variant nor interpreter; None: the first that runs here."""
    interpreter: str | None = None

    @property
    def answers(self) -> str | None:
        """The same in words; None: the first that runs here."""
        return f"{self.variant} on {self.interpreter}, the {self.pick}" if self.variant else None


class SlotState(Record):
    """The whole truth about the store: what is not named here does not count."""

    schema: int = 1
    active: Slot | None = None
    previous: Slot | None = None
