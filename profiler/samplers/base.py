"""What a source of energy readings is."""

from __future__ import annotations

from typing import Literal, Protocol


class Sampler(Protocol):
    """One source, opened and read once with success."""

    source: str
    """What it is, with whatever scales its numbers."""
    rails: tuple[str, ...]
    """What it covers, under its own names."""
    unit: Literal["W", "J"]
    """Of a reading: power now, or joules since it was opened."""
    period_s: float
    """How often it is worth reading."""

    def read(self) -> float:
        """Take a reading.

        Raises:
            SensorError: it cannot be read (any more), or makes no sense.
        """
