"""What every backend gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ferryman.converter.capture import Captured
from ferryman.runtime.contracts.manifest import Lowering, RuntimeName


@dataclass(frozen=True)
class Lowered:
    """An artifact, and what became of the graph in it."""

    data: bytes
    lowering: Lowering


class Backend(Protocol):
    """Lowers a captured program to one runtime's artifact."""

    runtime: RuntimeName
    suffix: str

    def lower(self, captured: Captured) -> Lowered:
        """Lower.

        Raises:
            ModelError: the toolchain refuses; the message says which operator or shape, and what to do.
        """
