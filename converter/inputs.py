"""Input sets to verify with: the example, and random ones that look like it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ferryman.converter.capture import Captured

_SEED = 20
_LARGEST_SIZE = 64
"""Of a dynamic dimension when verifying, so that a large bound does not make it slow."""
_LARGEST_INDEX = 1 << 20
"""Longer tables are not told from numbers."""
Range = tuple[int, int]
"""Least and largest, both included."""


def input_sets(captured: Captured, count: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """The example first, then `count` random sets; the same every time.

    Floats are normal with the example's mean and spread. Integers are uniform. Where eager refuses a large value, the
    input is an index into something: it is drawn from all that eager takes, however few of them the example holds. All
    others (numbers, masks) lie between the example's least and largest, for nobody knows what more would mean. Dynamic
    dimensions take their least, their largest and a middle size.
    """
    yield captured.example
    ranges = _ranges(captured)
    generator = torch.Generator().manual_seed(_SEED)
    for index in range(count):
        shapes = captured.input_shapes(partial(_size, index))
        yield tuple(
            _random(shape, like, between, generator)
            for shape, like, between in zip(shapes, captured.example, ranges, strict=True)
        )


def _ranges(captured: Captured) -> list[Range]:
    """What each input's integers are drawn from."""
    own = [(int(one.min()), int(one.max())) if _counts(one) else (0, 0) for one in captured.example]
    with captured.unchanged():
        found = [_index_range(captured, position, between) for position, between in enumerate(own)]
        if found == own or all(_takes(captured, dict(enumerate(ends))) for ends in zip(*found, strict=True)):
            return found
    return own  # the indices are not independent of each other


def _counts(example: torch.Tensor) -> bool:
    return example.numel() > 0 and not example.is_floating_point()


def _index_range(captured: Captured, position: int, own: Range) -> Range:
    example = captured.example[position]
    if not _counts(example) or example.dtype == torch.bool:
        return own
    low, high = own
    refused = min(_LARGEST_INDEX, torch.iinfo(example.dtype).max)
    if refused <= high or _takes(captured, {position: refused}) or not _takes(captured, {position: high}):
        return own
    while refused - high > 1:
        middle = (high + refused) // 2
        if _takes(captured, {position: middle}):
            high = middle
        else:
            refused = middle
    return (0 if low > 0 and _takes(captured, {position: 0}) else low), high


def _takes(captured: Captured, filled: dict[int, int]) -> bool:
    """Whether eager runs on the example with the integers of some inputs, by position, all of one value."""
    inputs = list(captured.example)
    for position, value in filled.items():
        if _counts(inputs[position]):
            inputs[position] = torch.full_like(inputs[position], value)
    try:
        captured.eager(inputs)
    except Exception:  # noqa: BLE001  # whatever a model raises
        return False
    return True


def _random(shape: tuple[int, ...], example: torch.Tensor, between: Range, generator: torch.Generator) -> torch.Tensor:
    if example.numel() == 0:
        return torch.zeros(shape, dtype=example.dtype)
    if example.is_floating_point():
        finite = example[torch.isfinite(example)].double()
        spread = float(finite.std()) if finite.numel() > 1 else 0.0
        mean = float(finite.mean()) if finite.numel() else 0.0
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * (spread or 1.0) + mean).to(example.dtype)
    low, high = between
    above = min(high + 1, torch.iinfo(torch.int64).max)
    return torch.randint(min(low, above - 1), above, shape, generator=generator).to(example.dtype)


def _size(index: int, least: int, largest: int) -> int:
    low, high = max(least, 1), max(min(largest, _LARGEST_SIZE), least, 1)
    return (low, high, (low + high) // 2)[index % 3]
