"""Pruned networks: layers without their zeros, and fewer channels: `python -m tests.benchmarks.pruned [--json]`."""

from __future__ import annotations

from tests.benchmarks import pruned_layers, pruned_networks
from tests.benchmarks.frame import main
from tests.benchmarks.kernels_binary import versions

PARTS = (*pruned_layers.PARTS, *pruned_networks.PARTS)


if __name__ == "__main__":
    main("pruned", PARTS, versions)
