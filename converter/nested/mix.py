"""Mix'n'Match: a level for each axis of a nested network, so that the sub-network keeps to a budget and loses least.

What single axes save and lose is taken to add up (MatFormer picks levels by hand; the allocator of mixed precision
picks them here). Of latency it adds up only nearly, so a choice is measured, and made anew where it is over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, Loss, pair_of
from ferryman.converter.nested.axes import Axis
from ferryman.converter.nested.network import Nested, masked
from ferryman.converter.prune.budget import OverBudgetError, count
from ferryman.converter.prune.latency import Latency, checked
from ferryman.converter.quantize.allocate import Cost, choose
from ferryman.runtime.contracts.errors import CallerError

Unit = Literal["flops", "bytes", "latency"]
OfLevels = Callable[[Mapping[str, int]], float]
_BATCHES = 4
_TRIES = 4
_PARTS = 10**6
"""What the whole network costs, in whole numbers."""


@dataclass(frozen=True)
class Mixed:
    """Levels, axis by axis, and what they cost and lose."""

    levels: Mapping[str, int]
    kept: float
    """Of the whole network's flops, bytes or latency."""
    error: float
    """How much the loss rises; without a loader squared error over signal, of the example."""


def mix(
    nested: Nested,
    percent: float,
    unit: Unit = "flops",
    *,
    example: tuple[Any, ...] | torch.Tensor,
    loader: Iterable[Batch] | None = None,
    loss: Loss = functional.cross_entropy,
    latency: Latency | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Mixed:
    """Choose a level for each axis.

    Args:
        nested: of `nest`.
        percent: of the whole network's cost that is kept at most, above 0.
        unit: of the budget; `latency` needs a function that measures.
        example: positional inputs of one call, of the shapes that `nest` was given.
        loader: (inputs, targets) batches, of which a few tell what each level loses.
        loss: of (outputs, targets).
        latency: seconds of a module: `latency_on` a device, or `measured_latency`.
        progress: told what begins.

    Raises:
        OverBudgetError: the smallest sub-network is over the budget.
        CallerError: unit or percent is none, or there is no `latency`.
        ModelError: as `nest`.
    """
    if unit not in ("flops", "bytes", "latency") or (unit == "latency") != (latency is not None):
        raise CallerError(f"a budget is in flops or bytes, or in latency with a function that measures; found {unit!r}")
    if not 0 < percent <= 100:  # noqa: PLR2004  # percent
        raise CallerError(f"a budget is above 0 and at most 100 percent, found {percent!r}")
    args = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    cost = _cost(unit, args, latency)
    axes = nested.axes()
    levels = nested.nesting.levels
    progress("cost of each level")
    whole = cost(nested.variant(levels[-1]))
    saved = _savings(nested, axes, cost, whole)
    progress("loss of each level")
    worth = _worth(nested, args, loader, loss)
    errors = _errors(nested, axes, worth)
    options = [
        [Cost(round(_PARTS * (1 - saved[name, level] / whole)), errors[name, level]) for level in levels]
        for name in nested.bounds
    ]
    fixed = _PARTS * (len(options) - 1)
    base = worth({})
    aim = percent / 100
    kept = math.inf
    for _ in range(_TRIES):
        try:
            picks = choose(options, size_max=round(_PARTS * aim) + fixed)
        except CallerError:
            break
        found = {name: levels[pick] for name, pick in zip(nested.bounds, picks, strict=True)}
        progress("the choice")
        kept = cost(nested.variant(found)) / whole
        if kept <= percent / 100:
            mixed = Mixed(found, kept, worth(found) - base)
            return _better(
                nested,
                mixed,
                percent / 100,
                lambda levels: cost(nested.variant(levels)) / whole,
                lambda levels: worth(levels) - base,
            )
        aim -= kept - percent / 100
    least = cost(nested.variant(levels[0])) / whole
    raise OverBudgetError(
        f"no sub-network keeps to {percent:g} percent of the {unit}: the smallest has {100 * least:.1f}; allow more, "
        "or nest with a smaller first level"
    )


def _cost(unit: Unit, args: tuple[Any, ...], latency: Latency | None) -> Callable[[nn.Module], float]:
    if latency is not None:
        return checked(latency)
    return lambda module: float(count(module, args).macs if unit == "flops" else count(module, args).nbytes)


def _savings(
    nested: Nested, axes: Iterable[Axis], cost: Callable[[nn.Module], float], whole: float
) -> dict[tuple[str, int], float]:
    """What each axis saves at each level; axes alike are measured once."""
    found: dict[tuple[str, int], float] = {}
    known: dict[object, float] = {}
    for axis, level in itertools.product(axes, nested.nesting.levels):
        key = (axis.kind, level)
        if level == nested.nesting.levels[-1]:
            known[key] = 0.0
        elif key not in known:
            known[key] = max(0.0, whole - cost(nested.variant({axis.name: level})))
        found[axis.name, level] = known[key]
    return found


def _better(nested: Nested, mixed: Mixed, budget: float, share: OfLevels, loses: OfLevels) -> Mixed:
    """What was chosen, or one level of all axes where that loses less within the budget: errors add up only nearly."""
    for level in nested.nesting.levels:
        alike = dict.fromkeys(nested.bounds, level)
        error = loses(alike)
        if error < mixed.error and (kept := share(alike)) <= budget:
            mixed = Mixed(alike, kept, error)
    return mixed


@torch.no_grad()
def _worth(nested: Nested, args: tuple[Any, ...], loader: Iterable[Batch] | None, loss: Loss) -> OfLevels:
    """How bad a sub-network is, by its levels."""
    batches = [pair_of(batch, number) for number, batch in enumerate(itertools.islice(loader or (), _BATCHES), 1)]
    if loader is not None and not batches:
        raise CallerError("the loader gives no batches")
    whole = nested.model(*args)
    signal = float(whole.double().square().sum()) or 1.0

    @torch.no_grad()
    def worth(levels: Mapping[str, int]) -> float:
        ends = {name: nested.bounds[name][1 + nested.nesting.levels.index(level)] for name, level in levels.items()}
        with masked(nested.model, ends):
            if batches:
                return sum(float(loss(nested.model(inputs), targets)) for inputs, targets in batches) / len(batches)
            return float((nested.model(*args) - whole).double().square().sum()) / signal

    return worth


def _errors(nested: Nested, axes: Iterable[Axis], worth: OfLevels) -> dict[tuple[str, int], float]:
    base = worth({})
    return {
        (axis.name, level): max(0.0, worth({axis.name: level}) - base)
        for axis, level in itertools.product(axes, nested.nesting.levels)
    }
