"""What every backend gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ferryman.converter.capture import Captured
from ferryman.runtime.contracts.manifest import Lowering, RuntimeName


@dataclass(frozen=True)
class Lowered:
    """An artifact, and what became of the graph in it."""

    data: bytes
    lowering: Lowering
    origins: dict[str, str] = field(default_factory=dict)
    """See `Variant.origins`."""


class Backend(Protocol):
    """Lowers a captured program to one runtime's artifact."""

    runtime: RuntimeName
    suffix: str

    def lower(self, captured: Captured) -> Lowered:
        """Lower.

        Raises:
            ModelError: the toolchain refuses; the message says which operator or shape, and what to do.
        """

    def lower_entries(self, entries: Mapping[str, Captured]) -> dict[str, Lowered]:
        """Lower several programs into one artifact, which holds the weights that they share once.

        Args:
            entries: by name; ExecuTorch calls them methods, TFLite signatures.

        Returns:
            By name, each with the one artifact's bytes and what became of its own graph.

        Raises:
            ModelError: as `lower`.
        """
