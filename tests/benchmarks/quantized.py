"""Weights of 8, 4 and 2 bits: `python -m tests.benchmarks.quantized [--json]`."""

from __future__ import annotations

from tests.benchmarks import quantized_linear, quantized_llama, quantized_networks
from tests.benchmarks.frame import main
from tests.benchmarks.kernels_binary import versions

PARTS = (*quantized_networks.PARTS, *quantized_linear.PARTS, *quantized_llama.PARTS)


if __name__ == "__main__":
    main("quantized", PARTS, versions)
