"""A dense model with its layers and data, and the models that come of it."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ferryman.converter.compress.training import Batch, copy_model, pair_of
from ferryman.converter.low_rank.attention import close_attention, open_attention
from ferryman.converter.low_rank.decompose import build
from ferryman.converter.low_rank.layers import Layer, find_layers, put
from ferryman.converter.low_rank.learned import Ordered
from ferryman.converter.low_rank.moments import gather
from ferryman.converter.low_rank.options import Choices, find_choices, learned_choices, model_outputs, weigh
from ferryman.converter.low_rank.recipe import LowRank
from ferryman.converter.low_rank.shapes import Way, chain
from ferryman.converter.low_rank.solve import Picks, Solver
from ferryman.converter.low_rank.timing import Stopwatch, Timer
from ferryman.converter.low_rank.trp import Targets
from ferryman.converter.prune.budget import OverBudgetError, count
from ferryman.converter.prune.latency import Latency
from ferryman.runtime.contracts.errors import CallerError, ModelError

_BATCHES = 8
"""Of the loader, that are looked at."""
_TIGHTENED = 6
_MATRICES: tuple[Way, ...] = ("svd", "spatial")
"""Chains that are the truncation of one matrix."""
Say = Callable[[str], None]


class Work:
    """Of one call of `factorize`."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        recipe: LowRank,
        loader: Iterable[Batch] | None,
        latency: Latency | None,
        timer: Timer | None,
        progress: Say,
    ) -> None:
        """Copy the model and find its layers.

        Args:
            model: dense.
            inputs: of one call.
            recipe: checked.
            loader: of data, if any.
            latency: seconds of a model, for a budget in it.
            timer: of layers.
            progress: told what begins.

        Raises:
            CallerError: the model cannot be copied, or fails with the inputs.
            ModelError: none of its layers can be low-rank.
        """
        self.inputs, self.recipe, self.latency, self.progress = inputs, recipe, latency, progress
        self.dense = copy_model(model).eval()
        self.opened = open_attention(self.dense)
        self.found = find_layers(self.dense, inputs, lambda one: chain(one, "svd", (1,), bias=True))
        if not self.found.layers:
            why = "; ".join(f"{path or 'the model'}: {one}" for path, one in self.found.whole.items())
            raise ModelError(f"nothing of the model can be low-rank: {why or 'it has no layers with weights'}")
        self.loader = loader
        self.batches = [inputs] if loader is None else _inputs(loader)
        self.before = count(self.dense, inputs)
        self.solver = Solver(recipe, self.before, Stopwatch(timer), progress)
        self.learned: dict[Layer, Ordered] = {}

    def choices(self, only: Sequence[Way] | None = None) -> list[Choices]:
        """What each layer can become, as its weights are now.

        Raises:
            CallerError: the model fails with the loader's batches.
        """
        self.progress(f"decompose {len(self.found.layers)} layers")
        moments = gather(self.dense, self.found.layers, self.batches, centred=self.loader is not None)
        several = []
        for layer in self.found.layers:
            if layer in self.learned:
                several.append(learned_choices(layer, moments[layer], self.learned[layer]))
            else:
                several.append(find_choices(layer, moments[layer], only))
        if self.recipe.unit != "energy":
            self.progress("measure what outputs lose by each layer")
            weigh(self.dense, several, self.batches[:2])
        return several

    def targets(self) -> Targets:
        """Ranks to train towards.

        Raises:
            OverBudgetError: none are within the budget.
        """
        several = self.choices(_MATRICES)
        picks = self.pick(several)
        return {each.layer: one.key for each, one in zip(several, picks, strict=True) if one.way is not None}

    def pick(self, several: Sequence[Choices]) -> Picks:
        """One option of each layer, within the budget.

        Raises:
            OverBudgetError: there is none.
        """
        amount = self.recipe.amount
        self.progress(f"choose ranks: {amount} {'dB' if self.recipe.unit == 'db' else f'% {self.recipe.unit}'}")
        if self.latency is not None:
            latency, goal = self.latency, self.latency(self.dense) * amount / 100
            return self.solver.pick_by_time(several, lambda picks: latency(self.build(several, picks)) <= goal)
        if self.recipe.unit != "db":
            return self.solver.pick(several)
        scale, left = 1.0, math.inf
        for _ in range(_TIGHTENED):
            picks = self.solver.pick(several, scale)
            left = self._left_db(self.build(several, picks))
            if left >= amount:
                return picks
            self.progress(f"{left:.1f} dB are left: choose with less")
            scale *= 10 ** ((left - amount - 0.5) / 10)
        raise OverBudgetError(f"{self.recipe.name}: {left:.1f} dB are left with all that was tried; ask for fewer")

    @torch.no_grad()
    def _left_db(self, made: nn.Module) -> float:
        """What a model's outputs hold against the dense model's."""
        pairs = [(model_outputs(self.dense, one), model_outputs(made, one)) for one in self.batches]
        lost = sum(float((one - other).square().sum()) for one, other in pairs)
        whole = sum(float(one.square().sum()) for one, _ in pairs)
        return 10 * math.log10(max(whole, 1e-300) / lost) if lost else math.inf

    def build(self, several: Sequence[Choices], picks: Picks) -> nn.Module:
        """A copy of the model with chains in layers' places, in eval mode."""
        made = copy.deepcopy(self.dense)
        instead: dict[Layer, nn.Module] = {}
        for each, option in zip(several, picks, strict=True):
            if option.way is not None:
                factors = each.factors(option)
                instead[each.layer] = build(each.layer, factors, each.decomposer.shift(factors))
        made = put(made, instead)
        if self.recipe.how == "decomposed":
            close_attention(made, self.opened, {path for layer in instead for path in layer.paths})
        return made.eval()


def _inputs(loader: Iterable[Batch]) -> list[tuple[torch.Tensor]]:
    """Those of the first batches, taken without a trace in the random state.

    Raises:
        CallerError: there are none, or they are something else.
    """
    if isinstance(loader, Iterator):
        raise CallerError("the loader can be iterated over only once; give a DataLoader or a list of batches")
    with torch.random.fork_rng(devices=()):
        found = [(pair_of(batch, number)[0],) for number, batch in enumerate(itertools.islice(loader, _BATCHES), 1)]
    if not found:
        raise CallerError("the loader gives no batches")
    return found
