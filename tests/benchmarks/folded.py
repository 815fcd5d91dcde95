"""Folded, merged, low-rank and nested networks: bytes, memory, starts, speed: `-m tests.benchmarks.folded [--json]`."""

from __future__ import annotations

from tests.benchmarks import folded_low_rank, folded_memory, folded_merge, folded_nested
from tests.benchmarks.frame import main
from tests.benchmarks.kernels_binary import versions

PARTS = (*folded_memory.PARTS, *folded_merge.PARTS, *folded_low_rank.PARTS, *folded_nested.PARTS)


if __name__ == "__main__":
    main("folded", PARTS, versions)
