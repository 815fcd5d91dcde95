"""Bits layer by layer: the choice that loses least in a budget.

What the outputs lose by each layer alone (see `sensitivity`) is taken to add up, as it nearly does
while each is small. Under that a dynamic program finds the best choice of all (L-GreCo, Markov et al. 2024, does the
same for gradients).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.recipe import Budget
from ferryman.converter.quantize.sensitivity import FLOAT_BITS, Tried
from ferryman.runtime.contracts.errors import CallerError, ModelError

_STATES_MAX = 2**14
"""Sums of sizes that are told apart; where there are more, the choice is within budget and very nearly the best."""


class Cost(NamedTuple):
    """Of one option."""

    size: int
    error: float


Measured = Mapping[Layer, Sequence[Tried]]
_Paths = tuple[str, ...]


def allocate(name: str, tried: Measured, budget: Budget) -> dict[str, Tried]:
    """Choose for each module's path.

    Args:
        name: of the model, for the error's words.
        tried: what there is to choose from; layers of one path get the same, and those that share their weights.
        budget: what must hold. Of those that do, least is lost with bits, and with dB least bytes are taken.

    Raises:
        ModelError: nothing to choose from is within the budget.
    """
    by_paths = _by_paths(tried)
    there = list(by_paths.values())
    if budget.unit == "b":
        counted = sum(options[0].weights for options in there if options[0].bits != FLOAT_BITS)
        costs = [[Cost(_bits(one), one.error) for one in options] for options in there]
        least = sum(min(cost.size for cost in options) for options in costs)
        if least > budget.value * counted:
            raise ModelError(
                f"{name}: no choice has {budget.value:g} bits a weight: with what the recipe says of single layers the "
                f"least is {np.ceil(1000 * least / counted) / 1000:g}; give that, or fix fewer layers"
            )
        picks = choose(costs, size_max=_bits_most(by_paths, budget))
    else:
        costs = [[Cost(one.nbytes, one.error) for one in options] for options in there]
        error = sum(min(cost.error for cost in options) for options in costs)
        error_max = 10 ** (-budget.value / 10)
        if not error <= error_max:
            raise ModelError(
                f"{name}: no choice leaves {budget.value:g} dB: with most bits everywhere "
                f"{-10 * np.log10(error):.1f} are left; ask for less, or have layers that lose most stay in float"
            )
        picks = choose(costs, error_max=error_max)
    return {path: options[pick] for paths, options, pick in zip(by_paths, there, picks, strict=True) for path in paths}


def allocate_uniform(tried: Measured, bits: Mapping[str, int], budget: Budget) -> dict[str, Tried] | None:
    """A choice that is given path by path; None where it takes more bits than the budget, or was not tried."""
    by_paths = _by_paths(tried)
    found = {
        paths: one for paths, options in by_paths.items() for one in options if {one.bits} == {bits[p] for p in paths}
    }
    fits = found.keys() == by_paths.keys() and sum(map(_bits, found.values())) <= _bits_most(by_paths, budget)
    return {path: one for paths, one in found.items() for path in paths} if fits else None


def _bits_most(by_paths: Mapping[_Paths, Sequence[Tried]], budget: Budget) -> int:
    counted = sum(options[0].weights for options in by_paths.values() if options[0].bits != FLOAT_BITS)
    return int(budget.value * counted)


def _by_paths(tried: Measured) -> dict[_Paths, list[Tried]]:
    """Options of all the layers that must have the same bits, by their paths."""
    found: list[list[Layer]] = []
    for layer in tried:
        joined = [several for several in found if any(_must_agree(layer, one) for one in several)]
        found = [several for several in found if several not in joined]
        found.append([*(one for several in joined for one in several), layer])
    order = list(tried)
    found.sort(key=lambda several: order.index(several[0]))
    return {
        tuple(dict.fromkeys(one.path for one in several)): [
            _all(dict(zip(several, same, strict=True))) for same in zip(*(tried[one] for one in several), strict=True)
        ]
        for several in found
    }


def _must_agree(one: Layer, other: Layer) -> bool:
    return one.path == other.path or one.held == other.held


def _all(same: Mapping[Layer, Tried]) -> Tried:
    """Of layers at the same bits; weights that several share are held once."""
    once = {layer.held: one for layer, one in same.items()}.values()
    return Tried(
        next(iter(once)).bits,
        sum(one.weights for one in once),
        sum(one.nbytes for one in once),
        sum(one.error for one in same.values()),
    )


def _bits(one: Tried) -> int:
    return 0 if one.bits == FLOAT_BITS else one.bits * one.weights


# The choice.


def choose(
    options: Sequence[Sequence[Cost]], *, size_max: int | None = None, error_max: float | None = None
) -> list[int]:
    """Pick one option of each, by dynamic programming: the least error in a size, or the least size in an error.

    Sums that another is no larger and no worse than are dropped as they arise, so what is found is the best, unless
    there are more than _STATES_MAX left. The budget always holds, and equal costs give the same picks every time.

    Args:
        options: what to pick from, each non-empty.
        size_max: most that sizes may sum up to.
        error_max: most that errors may sum up to, added in this order.

    Returns:
        Indexes, one a row of `options`.

    Raises:
        CallerError: not one budget is given, or nothing is within it.
    """
    if (size_max is None) == (error_max is None):
        raise CallerError("give either size_max or error_max")
    sizes, errors = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], int]] = []
    for row in options:
        sizes = np.add.outer(sizes, np.array([cost.size for cost in row], np.int64)).reshape(-1)
        errors = np.add.outer(errors, np.array([cost.error for cost in row])).reshape(-1)
        kept = _front(sizes, errors)
        sizes, errors = sizes[kept], errors[kept]
        steps.append((kept, len(row)))
    # Along the front sizes rise and errors fall.
    within = np.ones(len(sizes), bool)
    if size_max is not None:
        within = sizes <= size_max
    if error_max is not None:
        within = errors <= error_max
    if not within.any():
        raise CallerError(
            f"no choice is within size {size_max}, or error {error_max}: the smallest has size {sizes[0]}, the best "
            f"error {errors[-1]:g}; allow that"
        )
    at = int(np.flatnonzero(within)[0 if size_max is None else -1])
    picks = []
    for kept, count in reversed(steps):
        at, pick = divmod(int(kept[at]), count)
        picks.append(pick)
    return picks[::-1]


def _front(sizes: NDArray[np.int64], errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indexes of those that no other is as small and as good as, smallest first; at most about _STATES_MAX."""
    order: NDArray[np.int64] = np.lexsort((errors, sizes))
    best = np.minimum.accumulate(errors[order])
    front: NDArray[np.int64] = order[np.concatenate([[True], best[1:] < best[:-1]])]
    if len(front) <= _STATES_MAX:
        return front
    # The best of each slot, and the smallest of all: whatever the budget, there must be a way to be within it.
    slot = (sizes[front] - sizes[front[0]]) * _STATES_MAX // (sizes[front[-1]] - sizes[front[0]] + 1)
    last = np.concatenate([slot[1:] != slot[:-1], [True]])
    last[0] = True
    thinned: NDArray[np.int64] = front[last]
    return thinned
