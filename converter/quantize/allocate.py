"""Bits layer by layer: what each layer costs the model's outputs at each, and the choice that loses least in a budget.

Every layer is rounded alone, and what the outputs lose by it measured; losses are taken to add up, as they nearly do
while each is small. Under that a dynamic program finds the best choice of all (L-GreCo, Markov et al. 2024, does the
same for gradients).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ferryman.converter.quant_bits import BITS
from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.recipe import Budget, Recipe
from ferryman.converter.quantize.rounding import pack_layer, round_layer
from ferryman.runtime.compare import SQNR_CAP_DB
from ferryman.runtime.contracts.errors import CallerError, ModelError

BATCHES_MAX = 16
"""Of calibration, for one measurement of all layers; more are left out, evenly."""
_FLOAT_BITS = 32
_STATES_MAX = 2**14
"""Sums of sizes that are told apart; where there are more, the choice is within budget and very nearly the best."""
Batches = Sequence[Sequence[torch.Tensor]]


class Cost(NamedTuple):
    """Of one option."""

    size: int
    error: float


@dataclass(frozen=True)
class Tried:
    """One layer at some bits, or all that a module's path stands for."""

    bits: int
    weights: int
    nbytes: int
    """Of its weights and their scales in the artifact."""
    error: float
    """What the model's outputs lose in the square, relative to their own: of several outputs, the mean."""

    @property
    def note(self) -> str:
        """The error in words."""
        least = 10 ** (-SQNR_CAP_DB / 10)
        return f"alone {-10 * np.log10(max(self.error, least)):.0f} dB"


def allocate(name: str, tried: Mapping[Layer, Sequence[Tried]], budget: Budget) -> dict[str, Tried]:
    """Choose for each module's path.

    Args:
        name: of the model, for the error's words.
        tried: what there is to choose from; layers of one path get the same.
        budget: what must hold. Of those that do, least is lost with bits, and with dB least bytes are taken.

    Raises:
        ModelError: nothing to choose from is within the budget.
    """
    by_path: dict[str, list[Sequence[Tried]]] = {}
    for layer, options in tried.items():
        by_path.setdefault(layer.path, []).append(options)
    there = [[_both(same) for same in zip(*several, strict=True)] for several in by_path.values()]
    if budget.unit == "b":
        counted = sum(options[0].weights for options in there if options[0].bits != _FLOAT_BITS)
        costs = [[Cost(_bits(one), one.error) for one in options] for options in there]
        least = sum(min(cost.size for cost in options) for options in costs)
        if least > budget.value * counted:
            raise ModelError(
                f"{name}: no choice has {budget.value:g} bits a weight: with what the recipe says of single layers the "
                f"least is {np.ceil(1000 * least / counted) / 1000:g}; give that, or fix fewer layers"
            )
        picks = choose(costs, size_max=int(budget.value * counted))
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


def _both(same: Iterable[Tried]) -> Tried:
    several = list(same)
    return Tried(
        several[0].bits,
        sum(one.weights for one in several),
        sum(one.nbytes for one in several),
        sum(one.error for one in several),
    )


def _bits(one: Tried) -> int:
    return 0 if one.bits == _FLOAT_BITS else one.bits * one.weights


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


# The measurement.


def measure(
    module: GraphModule,
    batches: Batches,
    options: Mapping[Layer, Sequence[int]],
    recipe: Recipe,
    means: Mapping[Node, torch.Tensor | None],
    hessians: Mapping[Layer, torch.Tensor],
) -> dict[Layer, list[Tried]]:
    """Round each layer alone to each number of bits, and see what that does to the outputs; activations stay floats.

    Args:
        module: the program, not yet rewritten.
        batches: calibration inputs, flat.
        options: bits to try; 32: it stays in float, which costs nothing.
        recipe: how weights are rounded.
        means: what layers compute from -> its mean, for biases to make good.
        hessians: as `round_weights` takes them.
    """
    rounded: dict[Layer, dict[int, _Weights]] = {}
    nbytes: dict[tuple[Layer, int], int] = {}
    for layer, several in options.items():
        rounded[layer] = {}
        for bits in several:
            if bits == _FLOAT_BITS:
                nbytes[layer, bits] = layer.weight.nbytes
                continue
            made, bias = round_layer(layer, bits, recipe, hessians.get(layer), means.get(layer.x))
            nbytes[layer, bits] = pack_layer(layer, bits, made).nbytes
            rounded[layer][bits] = made.values().reshape(layer.weight.shape), bias
    runner = _Forks(module, rounded)
    with torch.no_grad():
        for inputs in batches[:: -(-len(batches) // BATCHES_MAX)]:
            runner.measure(inputs)
    return {
        layer: [Tried(bits, layer.weight.numel(), nbytes[layer, bits], runner.error((layer, bits))) for bits in several]
        for layer, several in options.items()
    }


_Weights = tuple[torch.Tensor, torch.Tensor]
_Key = tuple[Layer, int]


class _Forks(Interpreter):
    """Runs a program, and from the end of each layer on once more for each of its roundings."""

    def __init__(self, module: GraphModule, rounded: Mapping[Layer, Mapping[int, _Weights]]) -> None:
        super().__init__(module)
        self._rounded = rounded
        self._begins = {layer.takes[0]: layer for layer in rounded}
        self._ends = {layer.end: layer for layer in rounded}
        self._rest = Interpreter(module, garbage_collect_values=False)
        nodes = list(module.graph.nodes)
        self._after = {layer.end: nodes[nodes.index(layer.end) + 1 :] for layer in rounded}
        self._inputs: dict[Layer, torch.Tensor] = {}
        self._expected: list[torch.Tensor] = []
        self._energy: torch.Tensor | float = 0.0
        self._lost: dict[_Key, torch.Tensor] = {}

    def measure(self, inputs: Sequence[torch.Tensor]) -> None:
        """Add one batch."""
        self._expected = _outputs(Interpreter(self.module).run(*inputs, enable_io_processing=False))
        self._energy = self._energy + self._squares([torch.zeros_like(one) for one in self._expected])
        self.run(*inputs, enable_io_processing=False)

    def error(self, key: _Key) -> float:
        """Relative to the outputs' own squares; what cannot be told counts as infinitely bad."""
        if key not in self._lost:
            return 0.0
        energy = torch.as_tensor(self._energy).clamp(min=torch.finfo(torch.float64).tiny)
        error = float((self._lost[key] / energy).mean())
        return error if np.isfinite(error) else float("inf")

    def run_node(self, n: Node) -> object:
        if n in self._begins:
            self._inputs[self._begins[n]] = self.env[self._begins[n].x]  # still there: `n` reads it
        value = super().run_node(n)
        if n in self._ends:
            layer = self._ends[n]
            x = self._inputs.pop(layer)
            for bits, weights in self._rounded[layer].items():
                self._fork(n, _compute(layer, x, weights), (layer, bits))
        return value

    def _fork(self, end: Node, value: torch.Tensor, key: _Key) -> None:
        # What comes after may change values in place: it works on copies, which share memory where the values do.
        held = {node: one for node, one in self.env.items() if node.op != "get_attr"}
        weights = {node: one for node, one in self.env.items() if node.op == "get_attr"}
        self._rest.env = {**weights, **dict(zip(held, copy.deepcopy(list(held.values())), strict=True)), end: value}
        result: Any = None
        for node in self._after[end]:
            result = self._rest.env[node] = self._rest.run_node(node)
        self._rest.env = {}
        self._lost[key] = self._squares(_outputs(result)) + self._lost.get(key, 0)

    def _squares(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """float64[outputs]: of the differences to what is expected, where that is finite."""
        pairs = zip(outputs, self._expected, strict=True)
        return torch.stack([(a - b)[b.isfinite()].square().sum() for a, b in pairs])


def _outputs(result: Any) -> list[torch.Tensor]:  # noqa: ANN401  # of a program
    return [one.double() for one in tree_leaves(result)]


def _compute(layer: Layer, x: torch.Tensor, weights: _Weights) -> torch.Tensor:
    """What the layer gives with other weights and bias."""
    weight, bias = weights
    if layer.embedding:
        return functional.embedding(x, weight)
    if layer.window is None:
        return functional.linear(x, weight, bias)
    _, _, stride, (top, left, bottom, right), dilation, groups, *_ = layer.window
    padded = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(padded, weight, bias, tuple(stride), 0, tuple(dilation), groups)


def candidates(layer: Layer, recipe: Recipe) -> tuple[int, ...]:
    """Bits that a recipe with a budget chooses from; what it says of the layer itself goes before."""
    fixed = recipe.layers.get(layer.path)
    return (fixed,) if fixed else tuple(bits for bits in BITS if bits >= recipe.bits)
