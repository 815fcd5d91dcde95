"""Where the time goes: one table for every interpreter, an operator a row."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.samples import Samples

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Flag = Literal["undelegated", "layout copy"]
"""Runs in the interpreter's portable kernels; moves data and computes nothing (transpose, copy, cast of layout)."""


class Operator(Record):
    """One operator of the artifact as it ran."""

    name: str
    """The interpreter's own."""
    kind: str
    """`conv2d`, `linear`, `add`, ...: the same word on every interpreter."""
    module: str | None
    """Path of the module it came from, of several the nearest that holds them; None: not known."""
    delegate: str | None
    """`xnnpack`, `ferryman`, ...; None: the interpreter's own kernels."""
    samples: Samples
    share: float
    """Of the sum over all operators, 0 to 1, each with the mean of the middle half of its samples: a median of whole
    microseconds would be 0 for many."""
    bytes_moved: Count | None
    """Inputs, weights and outputs, each once; None: not known."""
    macs: Count | None
    """Multiplications and additions in pairs; None: not known, 0: none."""
    flags: tuple[Flag, ...] = ()


class Peak(Record, tag="peak"):
    """What this device can do at most, from a short measurement: the roof over the operators."""

    gmacs_per_s: float
    """fp32 multiply-adds, one thread."""
    gbytes_per_s: float
    """Read from memory beyond the caches, one thread."""
    int8_gmacs_per_s: float | Unavailable
    cache_gbytes_per_s: float | None = None
    """The same of what stays in the first cache: small operators reach more than memory gives."""
    busy: float | Unavailable = Unavailable(reason="not taken")
    """Share of all processors' time that others took meanwhile: under load the roof comes out lower."""


class Operators(Record, tag="operators"):
    """Of one (variant, interpreter)."""

    source: str
    """How the times were had: the interpreter's own events, or each operator alone."""
    rows: tuple[Operator, ...]
    """In the order they run."""
    whole: Samples
    """Whole runs beside them, timed the same way."""
    peak: Peak | Unavailable
