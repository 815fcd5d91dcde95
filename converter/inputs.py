"""Input sets to verify with: the example, and random ones that look like it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ferryman.converter.capture import Captured
from ferryman.runtime.contracts.tensor import DynamicDim, TensorSpec

_SEED = 20
_LARGEST_SIZE = 64
"""Of a dynamic dimension when verifying, so that a large bound does not make it slow."""


def input_sets(captured: Captured, count: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """The example first, then `count` random sets; the same every time.

    Floats are normal with the example's mean and spread, integers lie between the example's least and largest (ids
    stay in their table, masks stay masks), and dynamic dimensions take their least, their largest and a middle size.
    """
    yield captured.example
    generator = torch.Generator().manual_seed(_SEED)
    for index in range(count):
        yield tuple(
            _random(spec, example, index, generator)
            for spec, example in zip(captured.signature.inputs, captured.example, strict=True)
        )


def _random(spec: TensorSpec, example: torch.Tensor, index: int, generator: torch.Generator) -> torch.Tensor:
    shape = tuple(_size(dim, index) if isinstance(dim, DynamicDim) else dim for dim in spec.shape)
    if example.numel() == 0:
        return torch.zeros(shape, dtype=example.dtype)
    if example.is_floating_point():
        finite = example[torch.isfinite(example)].double()
        spread = float(finite.std()) if finite.numel() > 1 else 0.0
        mean = float(finite.mean()) if finite.numel() else 0.0
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * (spread or 1.0) + mean).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


def _size(dim: DynamicDim, index: int) -> int:
    low, high = max(dim.min, 1), max(min(dim.max, _LARGEST_SIZE), dim.min)
    return (low, high, (low + high) // 2)[index % 3]
