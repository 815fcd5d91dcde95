"""Statistics of a deployed model's activations, layer by layer, by adaptive estimators of mutual information."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.record import Record, Unavailable

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Layer(Record):
    """What one tensor held over all inputs; of quantized numbers, what they stand for."""

    name: str
    """Its place in the order of running, and the operator that writes it."""
    module: str | None
    shape: tuple[Count, ...]
    dtype: str
    """What is stored."""
    least: float
    """Of the finite values; so of those below. 0 where there was none."""
    most: float
    mean: float
    std: float
    zeros: float
    """Share of values that are zero, 0 to 1."""
    saturated: float
    """Share at the ends of its integer type or of its clamp, 0 to 1, zeros apart: those behind a ReLU are `zeros`. Of
    floats, share of those equal to the least or the most, beyond the one that every tensor has."""
    information_bits: float | Unavailable
    """Mutual information between the input and the binned activations, at most `information_max_bits`."""
    unit_bits: float | Unavailable = Unavailable(reason="not taken")
    """The same for a single unit, the mean over units: tells layers apart whose units together know every input."""
    dead: float | None = None
    """Share of channels that were zero for every input; None: it has no channels."""
    not_finite: float = 0.0
    """Share of NaN and infinite values."""


class LayerStatistics(Record, tag="layers"):
    """Of one (variant, interpreter)."""

    source: str
    inputs: Count
    """How many input sets the statistics are over."""
    rows: tuple[Layer, ...]
    information_max_bits: float = 0.0
    """What tells all inputs apart: log2 of how many differ."""
    outputs_db: float | None = None
    """How alike the copy that shows its layers and the artifact answer, `ferryman.runtime.compare`; 200: to the bit."""
    left_out: tuple[str, ...] = ()
    """Tensors that cannot be seen, each with the reason."""
