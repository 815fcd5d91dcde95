"""Which slot of a device serves, as a record on its disk."""

from __future__ import annotations

from typing import Literal

from ferryman.runtime.contracts.record import Record

SlotName = Literal["a", "b"]


class Slot(Record):
    """A complete, verified installation."""

    name: SlotName
    package_sha256: str
    package_name: str
    manifest_sha256: str
    """Of the slot's manifest.json, which in turn holds the hash of every payload."""
    installed_at_ns: int
    """Device wall clock, Unix epoch."""


class SlotState(Record):
    """The whole truth about the store: what is not named here does not count."""

    schema: int = 1
    active: Slot | None = None
    previous: Slot | None = None
