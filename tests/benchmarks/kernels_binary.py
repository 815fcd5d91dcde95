"""Binary layers and networks: `python -m tests.benchmarks.kernels_binary [--json]`."""

from __future__ import annotations

from importlib import metadata

from tests.benchmarks import kernels_larq, kernels_layers, kernels_mst, kernels_neon, kernels_networks
from tests.benchmarks.frame import main

PARTS = (
    *kernels_layers.PARTS,
    *kernels_larq.PARTS,
    *kernels_mst.PARTS,
    *kernels_neon.PARTS,
    *kernels_networks.PARTS,
)


def versions() -> dict[str, str]:
    """Of everything the bars set ferryman against."""
    tools = ("torch", "executorch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
    return {tool: metadata.version(tool) for tool in tools}


if __name__ == "__main__":
    main("kernels_binary", PARTS, versions)
