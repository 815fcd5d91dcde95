"""Which option of each layer: the least loss in a budget, of what is measured to be faster.

The allocator's dynamic program picks; what it picks is timed beside the dense layer, what does not show is struck out,
and it picks again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ferryman.converter.low_rank.options import Choices, Option, thinned
from ferryman.converter.low_rank.recipe import LowRank
from ferryman.converter.low_rank.shapes import Ranks, Way
from ferryman.converter.low_rank.timing import Stopwatch
from ferryman.converter.prune.budget import Cost, OverBudgetError
from ferryman.converter.quantize.allocate import Cost as Item
from ferryman.converter.quantize.allocate import choose

_SHOWN = 0.7
"""Of what a chain saves in multiplications, that must show in time; where no choice is within the budget then, it is
enough for a chain to be faster at all."""
_HALVINGS = 6
_TIMED = 3
"""Ranks of each kind of chain that are timed for a budget in latency, where all must be before any is picked."""
_LEAST = 0.01
"""Of the model's multiplications: layers of less stay as they are then."""
Times = tuple[float, float]
"""Seconds of a layer as it is, and of a chain in its place."""
Picks = list[Option]


@dataclass
class Solver:
    """Picks options of the same layers, maybe several times."""

    recipe: LowRank
    whole: Cost
    """Of the dense model."""
    watch: Stopwatch
    progress: Callable[[str], None] = lambda _: None
    times: dict[tuple[str, Way, Ranks], Times] = field(default_factory=dict)
    """What was measured, by path."""

    @property
    def timed(self) -> bool:
        """Whether chains must be faster; of bytes it is not asked."""
        return self.recipe.unit != "bytes"

    def pick(self, several: Sequence[Choices], scale: float = 1.0) -> Picks:
        """One option of each layer, within the budget.

        Args:
            several: what there is.
            scale: of the errors that a budget in dB or energy allows.

        Raises:
            OverBudgetError: there is none.
        """
        if not self.timed:
            return self._choose(several, [each.options for each in several], scale)
        try:
            return self._pick_faster(several, _SHOWN, scale)
        except OverBudgetError:
            return self._pick_faster(several, 0.0, scale)

    def _pick_faster(self, several: Sequence[Choices], shown: float, scale: float) -> Picks:
        left = [[one for one in each.options if self._may(each, one, shown)] for each in several]
        while True:
            picks = self._choose(several, left, scale)
            new = [at for at, one in enumerate(picks) if self._key(several[at], one) not in self.times and one.way]
            if not new:
                return picks
            self.progress(f"time {len(new)} layers beside what they could become")
            for at in new:
                self.time(several[at], [picks[at]])
                left[at] = [one for one in left[at] if self._may(several[at], one, shown)]

    def time(self, each: Choices, options: Sequence[Option]) -> None:
        """Measure options of a layer beside it."""
        chains = [one.key for one in options if one.way is not None]
        for chain, found in zip(chains, self.watch.compare(each.layer, chains), strict=True):
            self.times[each.layer.path, *chain] = found

    def _key(self, each: Choices, option: Option) -> tuple[str, Way, Ranks] | None:
        return None if option.way is None else (each.layer.path, option.way, option.ranks)

    def _may(self, each: Choices, option: Option, shown: float) -> bool:
        """Whether an option is not known to be too slow; one of higher ranks is as slow as a slow one."""
        key = self._key(each, option)
        if key is None:
            return True
        if key not in self.times:
            return not any(
                (path, way) == key[:2] and thin >= dense and all(map(operator.le, ranks, option.ranks))
                for (path, way, ranks), (dense, thin) in self.times.items()
            )
        dense, thin = self.times[key]
        ideal = each.options[0].price.macs / max(option.price.macs, 1)
        return dense > thin and dense / thin >= shown * ideal

    def _choose(self, several: Sequence[Choices], left: Sequence[Sequence[Option]], scale: float) -> Picks:
        unit, amount = self.recipe.unit, self.recipe.amount
        if unit == "energy":
            allowed = (1 - amount / 100) * scale
            return [min((one for one in row if one.error <= allowed), key=lambda one: one.price.macs) for row in left]
        costs = [[Item(self._size(one), one.loss) for one in row] for row in left]
        if unit == "db":
            allowed = 10 ** (-amount / 10) * scale
            return _of(left, choose(costs, error_max=allowed))
        total = self.whole.nbytes if unit == "bytes" else self.whole.macs
        fixed = total - sum(self._size(each.options[0]) for each in several)
        least = fixed + sum(min(one.size for one in row) for row in costs)
        most = math.floor(total * amount / 100)
        if least > most:
            raise OverBudgetError(self._beyond(least / total, several, left))
        return _of(left, choose(costs, size_max=most - fixed))

    def _size(self, option: Option) -> int:
        return option.price.nbytes if self.recipe.unit == "bytes" else option.price.macs

    def _beyond(self, least: float, several: Sequence[Choices], left: Sequence[Sequence[Option]]) -> str:
        slow = sum(len(each.options) - len(row) for row, each in zip(left, several, strict=True))
        why = f"; {slow} forms of layers are out, as they are not measured faster" if slow else ""
        return (
            f"{self.recipe.name}'s budget cannot be reached: the least is {math.ceil(least * 1000) / 10:g} % of the "
            f"dense model's {self.recipe.unit}, with every layer of the lowest rank{why}; ask for a larger budget"
        )

    def pick_by_time(self, several: Sequence[Choices], fits: Callable[[Picks], bool]) -> Picks:
        """The largest sum of layers' times with which the whole model fits; found by halving.

        Raises:
            OverBudgetError: it does not even with the fastest of all.
        """
        for number, each in enumerate(several):
            if each.options[0].price.macs < _LEAST * self.whole.macs:
                continue
            self.progress(f"time layer {number + 1} of {len(several)}: {each.layer.path}")
            for way in dict.fromkeys(one.way for one in each.options[1:]):
                self.time(each, thinned([one for one in each.options if one.way == way], _TIMED))
        left = [[one for one in each.options if self._timed_faster(each, one)] for each in several]
        costs = [[Item(self._ns(each, one), one.loss) for one in row] for each, row in zip(several, left, strict=True)]
        low = sum(min(one.size for one in row) for row in costs)
        high = sum(self._ns(each, each.options[0]) for each in several)
        best = _of(left, choose(costs, size_max=low))
        if not fits(best):
            raise OverBudgetError(
                f"{self.recipe.name}'s budget cannot be reached: it takes longer even with every layer as fast as it "
                "was measured to become; ask for a larger budget"
            )
        for _ in range(_HALVINGS):
            middle = (low + high) // 2
            picks = _of(left, choose(costs, size_max=middle))
            if fits(picks):
                low, best = middle, picks
            else:
                high = middle
        return best

    def _timed_faster(self, each: Choices, option: Option) -> bool:
        key = self._key(each, option)
        return key is None or (key in self.times and self._may(each, option, 0.0))

    def _ns(self, each: Choices, option: Option) -> int:
        """Of the layer, as it was measured beside the fastest chain; of a chain, in proportion to that."""
        found = [times for (path, _, _), times in self.times.items() if path == each.layer.path]
        dense = min((times[0] for times in found), default=0.0)
        key = self._key(each, option)
        return round(1e9 * (dense if key is None else dense * self.times[key][1] / self.times[key][0]))


def _of(left: Sequence[Sequence[Option]], picks: Sequence[int]) -> Picks:
    return [row[pick] for row, pick in zip(left, picks, strict=True)]
