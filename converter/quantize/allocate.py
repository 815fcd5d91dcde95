"""Bits layer by layer: the choice that loses least in a budget.

What the outputs lose by each layer alone (see `sensitivity`) is taken to add up, as it nearly does
while each is small. Under that a dynamic program finds the best choice of all (L-GreCo, Markov et al. 2024, does the
same for gradients).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def allocate(name: str, tried: Measured, budget: Budget) -> dict[str, Tried]:
    """Choose for each module's path.

    Args:
        name: of the model, for the error's words.
        tried: what there is to choose from; layers of one path get the same.
        budget: what must hold. Of those that do, least is lost with bits, and with dB least bytes are taken.

    Raises:
        ModelError: nothing to choose from is within the budget.
    """
    by_path = _by_path(tried)
    there = list(by_path.values())
    if budget.unit == "b":
        counted = sum(options[0].weights for options in there if options[0].bits != FLOAT_BITS)
        costs = [[Cost(_bits(one), one.error) for one in options] for options in there]
        least = sum(min(cost.size for cost in options) for options in costs)
        if least > budget.value * counted:
            raise ModelError(
                f"{name}: no choice has {budget.value:g} bits a weight: with what the recipe says of single layers the "
                f"least is {np.ceil(1000 * least / counted) / 1000:g}; give that, or fix fewer layers"
            )
        picks = choose(costs, size_max=_bits_most(by_path, budget))
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
    return {path: options[pick] for path, options, pick in zip(by_path, there, picks, strict=True)}


def allocate_uniform(tried: Measured, bits: Mapping[str, int], budget: Budget) -> dict[str, Tried] | None:
    """A choice that is given path by path; None where it takes more bits than the budget, or was not tried."""
    by_path = _by_path(tried)
    found = {path: one for path, options in by_path.items() for one in options if one.bits == bits[path]}
    fits = found.keys() == by_path.keys() and sum(map(_bits, found.values())) <= _bits_most(by_path, budget)
    return found if fits else None


def _bits_most(by_path: Mapping[str, Sequence[Tried]], budget: Budget) -> int:
    counted = sum(options[0].weights for options in by_path.values() if options[0].bits != FLOAT_BITS)
    return int(budget.value * counted)


def _by_path(tried: Measured) -> dict[str, list[Tried]]:
    by_path: dict[str, list[Sequence[Tried]]] = {}
    for layer, options in tried.items():
        by_path.setdefault(layer.path, []).append(options)
    return {path: [_both(same) for same in zip(*several, strict=True)] for path, several in by_path.items()}


def _both(same: Iterable[Tried]) -> Tried:
    several = list(same)
    return Tried(
        several[0].bits,
        sum(one.weights for one in several),
        sum(one.nbytes for one in several),
        sum(one.error for one in several),
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
