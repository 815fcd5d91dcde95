"""Statistics of a deployed model's activations, layer by layer (seed: adaptive mutual-information estimators)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.record import Record, Unavailable

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Layer(Record):
    """What one tensor held over all inputs."""

    name: str
    module: str | None
    shape: tuple[Count, ...]
    dtype: str
    least: float
    most: float
    mean: float
    std: float
    zeros: float
    """Share of values that are zero, 0 to 1."""
    saturated: float
    """Share at the ends of its integer type or of its clamp, 0 to 1."""
    information_bits: float | Unavailable
    """Mutual information between the input and the binned activations."""


class LayerStatistics(Record, tag="layers"):
    """Of one (variant, interpreter)."""

    source: str
    inputs: Count
    """How many input sets the statistics are over."""
    rows: tuple[Layer, ...]
