"""Input sets to verify with: the example, and random ones that look like it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ferryman.converter.capture import Captured

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
        shapes = captured.input_shapes(partial(_size, index))
        yield tuple(_random(shape, like, generator) for shape, like in zip(shapes, captured.example, strict=True))


def _random(shape: tuple[int, ...], example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if example.numel() == 0:
        return torch.zeros(shape, dtype=example.dtype)
    if example.is_floating_point():
        finite = example[torch.isfinite(example)].double()
        spread = float(finite.std()) if finite.numel() > 1 else 0.0
        mean = float(finite.mean()) if finite.numel() else 0.0
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * (spread or 1.0) + mean).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    above = min(high + 1, torch.iinfo(torch.int64).max)
    return torch.randint(min(low, above - 1), above, shape, generator=generator).to(example.dtype)


def _size(index: int, least: int, largest: int) -> int:
    low, high = max(least, 1), max(min(largest, _LARGEST_SIZE), least, 1)
    return (low, high, (low + high) // 2)[index % 3]
