"""A copy of an artifact whose intermediate values are outputs as well, and what those are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Stored(NamedTuple):
    """Quantized numbers: what is stored stands for (stored - zero_point) * scale."""

    scale: float
    zero_point: int
    least: int
    most: int
    """What is stored is clamped to."""


@dataclass(frozen=True)
class Value:
    """One tensor that an operator writes."""

    name: str
    module: str | None = None
    """Path of the module it came from; None: not known."""
    channels: int | None = None
    """The axis of its channels; None: it has none, or nobody knows."""
    stored: Stored | None = None
    """None: it holds the numbers themselves."""


@dataclass(frozen=True)
class Exposed:
    """The copy is `front`, the artifact's own bytes, and `tail`."""

    front: bytes
    tail: bytes
    values: tuple[Value, ...]
    """In the order they are written."""
    outputs: tuple[int, ...]
    """Which of the copy's outputs each value is; the first are the artifact's own."""
    left_out: tuple[str, ...]
    """Values that cannot be outputs, each with the reason."""
