"""The profiler against its bars: `python -m tests.benchmarks.profiler [--json]`."""

from __future__ import annotations

from importlib import metadata

from tests.benchmarks import profiler_agreement, profiler_energy, profiler_overhead
from tests.benchmarks.frame import main

PARTS = (*profiler_overhead.PARTS, *profiler_energy.PARTS, *profiler_agreement.PARTS)


def versions() -> dict[str, str]:
    """Of what the bars set ferryman against."""
    return {name: metadata.version(name) for name in ("torch", "executorch", "ai-edge-litert")}


if __name__ == "__main__":
    main("profiler", PARTS, versions)
