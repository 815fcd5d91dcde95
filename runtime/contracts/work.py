"""What an operator has to do, before anybody has run it: what a prediction of its time goes by."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.record import Record

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Work(Record):
    """One operator; the words and units are those of `ferryman.runtime.contracts.operators.Operator`."""

    kind: str
    macs: Count
    """Multiplications and additions in pairs; 0: none."""
    bytes_moved: Count
    """Inputs, weights and outputs, each once."""
