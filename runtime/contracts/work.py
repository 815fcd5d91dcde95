"""What an operator has to do, before anybody has run it: what a prediction of its time goes by."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.record import Record

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Work(Record):
    """One operator; what `ferryman.runtime.contracts.operators.Operator` tells too has its words and units."""

    kind: str
    macs: Count
    """Multiplications and additions in pairs; 0: none."""
    bytes_moved: Count
    """Inputs, weights and outputs, each once."""
    channels: Count = 0
    """Of the output, which kernels compute some at a time; 0: not known, or none."""
    loops: Count = 0
    """Innermost loops for each of these channels: the output's positions, times those of a kernel over all channels."""
