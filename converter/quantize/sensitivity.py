"""What a model's outputs lose by each layer's rounding, alone or of several together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ferryman.converter.quant_bits import BITS
from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quantize.rounding import pack_layer, round_layer
from ferryman.runtime.compare import SQNR_CAP_DB

BATCHES_MAX = 16
"""Of calibration, for one measurement of all layers; more are left out, evenly."""
FLOAT_BITS = 32
"""Of a layer that stays in float."""
Batches = Sequence[Sequence[torch.Tensor]]
_Weights = tuple[torch.Tensor, torch.Tensor]
_Key = tuple[Layer, int]


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


class Sensitivity:
    """Of a program that is not yet rewritten; activations stay floats."""

    def __init__(
        self,
        module: GraphModule,
        batches: Batches,
        options: Mapping[Layer, Sequence[int]],
        recipe: Recipe,
        means: Mapping[Node, torch.Tensor | None],
        hessians: Mapping[Layer, torch.Tensor],
    ) -> None:
        """Round each layer alone to each number of bits, and see what that does to the outputs.

        Args:
            module: the program.
            batches: calibration inputs, flat.
            options: bits to try; 32: it stays in float, which costs nothing.
            recipe: how weights are rounded.
            means: what layers compute from -> its mean, for biases to make good.
            hessians: as `round_weights` takes them.
        """
        self._module = module
        self._batches = batches[:: -(-len(batches) // BATCHES_MAX)]
        self._rounded: dict[Layer, dict[int, _Weights]] = {}
        nbytes: dict[_Key, int] = {}
        for layer, several in options.items():
            self._rounded[layer] = {}
            for bits in several:
                if bits == FLOAT_BITS:
                    nbytes[layer, bits] = layer.weight.nbytes
                    continue
                made, bias = round_layer(layer, bits, recipe, hessians.get(layer), means.get(layer.x))
                nbytes[layer, bits] = pack_layer(layer, bits, made).nbytes
                self._rounded[layer][bits] = made.values().reshape(layer.weight.shape), bias
        runner = _Forks(module, self._rounded)
        with torch.no_grad():
            for inputs in self._batches:
                runner.measure(inputs)
        self.tried = {
            layer: [
                Tried(bits, layer.weight.numel(), nbytes[layer, bits], runner.error((layer, bits))) for bits in several
            ]
            for layer, several in options.items()
        }

    def together(self, chosen: Mapping[str, int]) -> float:
        """What the outputs lose where all layers are rounded, by the bits of their paths; relative, in the square."""
        given = {
            layer: weights[chosen[layer.path]]
            for layer, weights in self._rounded.items()
            if chosen[layer.path] in weights
        }
        lost: torch.Tensor | float = 0.0
        energy: torch.Tensor | float = 0.0
        with torch.no_grad():
            for inputs in self._batches:
                expected = _outputs(Interpreter(self._module).run(*inputs, enable_io_processing=False))
                found = _outputs(_Rounded(self._module, given).run(*inputs, enable_io_processing=False))
                lost = lost + _squares(found, expected)
                energy = energy + _squares([torch.zeros_like(one) for one in expected], expected)
        return _relative(torch.as_tensor(lost), torch.as_tensor(energy))


class _Layers(Interpreter):
    """Runs a program, and lets `leave` say what each of some layers gives, by what it computes from."""

    def __init__(self, module: GraphModule, layers: Iterable[Layer]) -> None:
        super().__init__(module)
        several = list(layers)
        self._begins = {layer.takes[0]: layer for layer in several}
        self._ends = {layer.end: layer for layer in several}
        self._inputs: dict[Layer, torch.Tensor] = {}

    def leave(self, layer: Layer, x: torch.Tensor, value: Any) -> Any:  # noqa: ANN401  # of a program
        raise NotImplementedError

    def run_node(self, n: Node) -> object:
        if n in self._begins:
            self._inputs[self._begins[n]] = self.env[self._begins[n].x]  # still there: `n` reads it
        value = super().run_node(n)
        layer = self._ends.get(n)
        return value if layer is None else self.leave(layer, self._inputs.pop(layer), value)


class _Rounded(_Layers):
    """Runs a program with other weights in some layers."""

    def __init__(self, module: GraphModule, rounded: Mapping[Layer, _Weights]) -> None:
        super().__init__(module, rounded)
        self._rounded = rounded

    def leave(self, layer: Layer, x: torch.Tensor, value: Any) -> Any:  # noqa: ANN401, ARG002  # of a program
        return _compute(layer, x, self._rounded[layer])


class _Forks(_Layers):
    """Runs a program, and from the end of each layer on once more for each of its roundings."""

    def __init__(self, module: GraphModule, rounded: Mapping[Layer, Mapping[int, _Weights]]) -> None:
        super().__init__(module, rounded)
        self._rounded = rounded
        self._rest = Interpreter(module, garbage_collect_values=False)
        nodes = list(module.graph.nodes)
        self._after = {layer.end: nodes[nodes.index(layer.end) + 1 :] for layer in rounded}
        self._expected: list[torch.Tensor] = []
        self._energy: torch.Tensor | float = 0.0
        self._lost: dict[_Key, torch.Tensor] = {}

    def measure(self, inputs: Sequence[torch.Tensor]) -> None:
        """Add one batch."""
        self._expected = _outputs(Interpreter(self.module).run(*inputs, enable_io_processing=False))
        self._energy = self._energy + _squares([torch.zeros_like(one) for one in self._expected], self._expected)
        self.run(*inputs, enable_io_processing=False)

    def error(self, key: _Key) -> float:
        """Relative to the outputs' own squares; what cannot be told counts as infinitely bad."""
        if key not in self._lost:
            return 0.0
        return _relative(self._lost[key], torch.as_tensor(self._energy))

    def leave(self, layer: Layer, x: torch.Tensor, value: Any) -> Any:  # noqa: ANN401  # of a program
        for bits, weights in self._rounded[layer].items():
            self._fork(layer.end, _compute(layer, x, weights), (layer, bits))
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
        self._lost[key] = _squares(_outputs(result), self._expected) + self._lost.get(key, 0)


def _squares(outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> torch.Tensor:
    """float64[outputs]: of the differences to what is expected, where that is finite."""
    pairs = zip(outputs, expected, strict=True)
    return torch.stack([(a - b)[b.isfinite()].square().sum() for a, b in pairs])


def _relative(lost: torch.Tensor, energy: torch.Tensor) -> float:
    error = float((lost / energy.clamp(min=torch.finfo(torch.float64).tiny)).mean())
    return error if np.isfinite(error) else float("inf")


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
