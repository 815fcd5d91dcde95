"""A captured program -> the same with ferryman's quantized operators in the place of layers, layer by layer why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from msgspec import structs
from torch.fx import GraphModule, Node
from torch.nn import functional

from ferryman.converter import quant_operators as _quant_operators  # noqa: F401  # registers them
from ferryman.converter.capture import Captured, recapture
from ferryman.converter.functional import functional_module
from ferryman.converter.layer_calls import path_of
from ferryman.converter.quant_bits import BITS
from ferryman.converter.quantize.allocate import allocate, allocate_uniform
from ferryman.converter.quantize.blocks import find_blocks, open_attention, put_blocks
from ferryman.converter.quantize.equalize import equalize
from ferryman.converter.quantize.layers import (
    Held,
    Layer,
    check_paths,
    choose_bits,
    find_layers,
    for_all_uses,
    join_neighbours,
)
from ferryman.converter.quantize.observe import Scale, find_scale, observe, watch
from ferryman.converter.quantize.pruned import without_zeros
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quantize.rounding import Packed, pack_layer, round_layer
from ferryman.converter.quantize.sensitivity import FLOAT_BITS, Sensitivity, Tried, candidates
from ferryman.converter.quantize.weights import Rounded
from ferryman.converter.recognise import Constants
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import LayerForm

_INT8 = (-128, 127)
_FORMS = {8: "int8", 4: "4bit", 2: "2bit"}
_NAMED = 5
_ROWS_LEAST = 8
Batches = Sequence[Sequence[torch.Tensor]]


def lower_quantized(captured: Captured, recipe: Recipe, batches: Batches) -> tuple[Captured, tuple[LayerForm, ...]]:
    """Rewrite a program; `eager` stays the original module.

    Args:
        captured: the program.
        recipe: what becomes of it.
        batches: calibration inputs, flat, in the signature's order.

    Returns:
        The program with quantized operators, and what became of each convolution, linear layer and embedding; after
        these, in blocks, of products, softmax, GELU and layer norms.

    Raises:
        ModelError: nothing of it can be quantized, or the result cannot be captured again.
    """
    module = functional_module(captured.program)
    if recipe.equalize:
        equalize(module, batches)
    if recipe.blocks:
        open_attention(module)
    found = plan_layers(captured, module, recipe)
    others = find_blocks(module, Constants(module)) if recipe.blocks else []
    layers = [one for one in found.values() if isinstance(one, Layer)]
    hessians = _hessians(module, batches, layers) if recipe.gptq else {}
    chosen: dict[str, Tried] = {}
    budget = recipe.budget
    if budget:
        check_paths(layers, recipe.layers)
        recipe = structs.replace(recipe, layers=for_all_uses(layers, recipe.layers))
        watched = observe(module, batches, _wanted(layers))
        # Of few inputs, what a bias makes good for is all there is to measure.
        means = {node: one.mean for node, one in watched.items() if one.rows >= _ROWS_LEAST}
        options = {layer: candidates(layer, recipe) for layer in layers}
        found_by = Sensitivity(module, batches, options, recipe, means, hessians)
        chosen = allocate(captured.source.name, found_by.tried, budget)
        if budget.unit == "b":
            chosen = _best(found_by, chosen, layers, recipe)
        _give_bits(layers, recipe, {path: one.bits for path, one in chosen.items()})
    left = {layer.node: "as the recipe says" for layer in layers if layer.bits == FLOAT_BITS}
    layers = [layer for layer in layers if layer.bits != FLOAT_BITS]
    join_neighbours(layers)
    seen = observe(module, batches, _wanted(layers))
    rounded: dict[Layer, Rounded] = {}
    for layer in layers:
        mean = seen[layer.x].mean if layer.x in seen else None
        rounded[layer], layer.bias = round_layer(layer, layer.bits, recipe, hessians.get(layer), mean)
    scales = {node: find_scale(one, recipe.observer) for node, one in seen.items()}
    writer = _Writer(module, scales, recipe, _sharing(rounded))
    for layer in sorted(layers, key=lambda one: one.end):
        writer.put(layer, rounded[layer])
    writer.erase(layers)
    other_forms = put_blocks(module, others, writer.constant)
    by_node = {layer.node: layer for layer in layers}
    forms = tuple(
        LayerForm(
            path=path_of(node),
            form=_FORMS[by_node[node].bits],
            note=_describe(by_node[node], rounded, recipe, chosen, writer.sparse.get(by_node[node], "")),
        )
        if node in by_node
        else LayerForm(path=path_of(node), form="fp32", note=left.get(node) or str(one))
        for node, one in found.items()
    )
    return recapture(captured, module, "quantized operators"), (*forms, *other_forms)


def _best(
    sensitivity: Sensitivity, chosen: dict[str, Tried], layers: Sequence[Layer], recipe: Recipe
) -> dict[str, Tried]:
    """Of what was chosen and of the same bits for all, plainly or as the forms give them, what loses least together."""
    assert recipe.budget is not None  # noqa: S101  # there is a choice
    ways = [chosen]
    uniform_ways: tuple[Callable[[int], dict[Layer, int]], ...] = (
        lambda bits: dict.fromkeys(layers, bits),
        lambda bits: choose_bits(layers, bits, {}),
    )
    for same in uniform_ways:
        for bits in BITS:
            given = {layer.path: one for layer, one in same(bits).items()}
            uniform = allocate_uniform(sensitivity.tried, {**given, **recipe.layers}, recipe.budget)
            if uniform is not None:
                ways.append(uniform)
                break
    return min(ways, key=lambda way: sensitivity.together({path: one.bits for path, one in way.items()}))


def plan_layers(captured: Captured, module: GraphModule, recipe: Recipe) -> dict[Node, Layer | str]:
    """Every layer of a program with the bits that a recipe gives it, or why it stays in float.

    Args:
        captured: the program.
        module: its module, which becomes another one.
        recipe: what becomes of it.

    Raises:
        ModelError: nothing of it can be quantized, or the recipe names a layer that is not there.
    """
    found = find_layers(module, Constants(module))
    layers = [one for one in found.values() if isinstance(one, Layer)]
    if not layers:
        why = "; ".join(f"{path_of(node)}: {note}" for node, note in list(found.items())[:_NAMED])
        raise ModelError(f"{captured.source.name} has no layer to quantize ({why or 'no convolution, no linear'})")
    _give_bits(layers, recipe, recipe.layers)
    return found


def _give_bits(layers: Sequence[Layer], recipe: Recipe, given: Mapping[str, int]) -> None:
    for layer, bits in choose_bits(layers, recipe.bits, given).items():
        layer.bits = bits
        layer.static = layer.window is not None and not recipe.dynamic and bits != FLOAT_BITS


def _wanted(layers: Sequence[Layer]) -> dict[Node, int]:
    """Values whose range or mean is needed -> their channel dimension."""
    wanted = {}
    for layer in layers:
        if not layer.embedding:
            wanted[layer.x] = 1 if layer.window else layer.x.meta["val"].dim() - 1
        if layer.int8_out:
            wanted[layer.end] = 1
    return wanted


def _describe(
    layer: Layer, rounded: dict[Layer, Rounded], recipe: Recipe, chosen: dict[str, Tried], sparse: str
) -> str:
    scales = rounded[layer].scale.shape[1]
    scaled = "a scale per channel" if scales == 1 else f"a scale to every {rounded[layer].group}"
    alone = f", {chosen[layer.path].note}" if chosen else ""
    alone += f", {sparse}" if sparse else ""
    if layer.embedding:
        return scaled.replace("channel", "row") + alone
    in_blocks = recipe.blocks and layer.window is None
    given = "int8 in blocks of 32" if in_blocks else "int8" if layer.static else "dynamic int8"
    adds = ", adds" if layer.add else ""
    return f"{scaled}, {given} in, {'int8' if layer.int8_out else 'floats'} out{adds}{alone}"


# Weights.


def _hessians(module: GraphModule, batches: Batches, layers: Sequence[Layer]) -> dict[Layer, torch.Tensor]:
    """The sum of x x^T of what each layer computes from; not of grouped convolutions and embeddings.

    Layers that share their weights have one sum, an embedding tied to a linear layer too: they are rounded once, for
    all of them.
    """
    wanted: dict[Node, list[Layer]] = {}
    for layer in layers:
        if not layer.embedding and not (layer.window and layer.window[5] > 1):
            wanted.setdefault(layer.x, []).append(layer)
    sums: dict[Held, torch.Tensor] = {}

    def add(node: Node, value: torch.Tensor) -> None:
        for layer in wanted[node]:
            rows = _rows(value, layer).double()
            rows = rows[rows.isfinite().all(1)]
            sums[layer.held] = rows.T @ rows + sums.get(layer.held, 0)

    watch(module, batches, wanted, add)
    return {layer: sums[layer.held] for layer in layers if layer.held in sums}


def _rows(x: torch.Tensor, layer: Layer) -> torch.Tensor:
    """What each output is computed from: [outputs, inputs], in the order of the flattened weights."""
    if layer.window is None:
        return x.reshape(-1, x.shape[-1])
    _, kernel, stride, (top, left, bottom, right), dilation, *_ = layer.window
    padded = functional.pad(x, (left, right, top, bottom))
    columns = functional.unfold(padded, tuple(kernel), dilation=tuple(dilation), stride=tuple(stride))
    return columns.transpose(1, 2).flatten(0, 1)


def _sharing(rounded: Mapping[Layer, Rounded]) -> list[Layer]:
    """Embeddings and linear layers of the same integers, as where a decoder's words are tied; scales may differ."""
    linears = [layer for layer in rounded if layer.window is None and not layer.embedding]
    pairs = [
        (table, one)
        for table in rounded
        if table.embedding
        for one in linears
        if table.bits == one.bits and torch.equal(rounded[table].integers, rounded[one].integers)
    ]
    return [layer for pair in pairs for layer in pair]


# Rewriting.


class _Writer:
    """Puts operators into a graph."""

    def __init__(
        self, module: GraphModule, scales: dict[Node, Scale], recipe: Recipe, shared: Collection[Layer]
    ) -> None:
        self._module = module
        self._scales = scales
        self._blocks = recipe.blocks
        self._sparse = recipe.sparse
        self.sparse: dict[Layer, str] = {}
        """Those that were put without their zeros -> in words."""
        self._shared = shared
        self._without_zeros: dict[tuple[Held, int], tuple[Packed, Packed]] = {}
        self._made: dict[Node, Node] = {}
        self._held: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def put(self, layer: Layer, rounded: Rounded) -> None:
        """Have an operator give the value of the layer's end."""
        graph = self._module.graph
        with graph.inserting_after(layer.end):
            anchor = graph.call_function(torch.ops.aten.alias.default, (layer.end,))
        with graph.inserting_before(anchor):
            made = self._image(layer, rounded) if layer.window else self._rows(layer, rounded)
        graph.erase_node(anchor)
        made.meta = {key: layer.node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in layer.node.meta}
        self._made[layer.end] = made  # for the operators that read int8, which come later
        if not layer.int8_out:
            layer.end.replace_all_uses_with(made)

    def erase(self, layers: Sequence[Layer]) -> None:
        """Take the layers out, with what they took in: graphs do not drop activations in place by themselves."""
        inside = {node for layer in layers for node in layer.inside()}
        for node in reversed(self._module.graph.nodes):
            if node in inside and not node.users:
                self._module.graph.erase_node(node)

    def _image(self, layer: Layer, rounded: Rounded) -> Node:
        window = layer.window
        assert window is not None  # noqa: S101  # put looked
        channels, kernel, stride, padding, dilation, groups, *_ = window
        packed = self._pack(layer, rounded)
        x = self._scales[layer.x] if layer.static else Scale(0.0, 0)
        out, low, high = Scale(0.0, 0), *_INT8
        if layer.int8_out:
            out = self._scales[layer.end]
            low, high = (_end(end, out) for end in layer.ends)
        add = self._scales[layer.add] if layer.add else Scale(0.0, 0)
        return self._module.graph.call_function(
            torch.ops.ferryman.quant_conv2d.default,
            (
                self._made.get(layer.x, layer.x),
                self.constant(packed.weight),
                self.constant(packed.scale),
                self.constant(layer.bias),
                self._made[layer.add] if layer.add else None,
                *(channels, list(kernel), list(stride), list(padding), list(dilation), groups, False, layer.bits),
                *(x.scale, x.zero, out.scale, out.zero, low, high, add.scale, add.zero),
                *(packed.index_bits, packed.unpack),
            ),
        )

    def _rows(self, layer: Layer, rounded: Rounded) -> Node:
        x = self._made.get(layer.x, layer.x)
        lanes = layer.embedding and layer in self._shared
        packed = self._pack(layer, rounded, lanes=lanes)
        weight, scale, zero = self.constant(packed.weight), self.constant(packed.scale), self._maybe(packed.zero)
        if layer.embedding:
            numbers = (*rounded.integers.shape, layer.bits, rounded.group, lanes)
            return self._module.graph.call_function(
                torch.ops.ferryman.quant_embedding.default, (x, weight, scale, zero, *numbers)
            )
        return self._module.graph.call_function(
            torch.ops.ferryman.quant_linear.default,
            (
                x,
                weight,
                scale,
                zero,
                self.constant(layer.bias),
                layer.bits,
                rounded.group,
                self._blocks,
                packed.index_bits,
            ),
        )

    def _pack(self, layer: Layer, rounded: Rounded, *, lanes: bool = False) -> Packed:
        packed = pack_layer(layer, layer.bits, rounded, lanes=lanes)
        if self._sparse and layer not in self._shared:
            packed = self._leave_zeros_out(layer, rounded, packed)
            if packed.index_bits:
                self.sparse[layer] = "zeros left out" if packed.unpack or not layer.window else "zeros skipped"
        return packed

    def _leave_zeros_out(self, layer: Layer, rounded: Rounded, dense: Packed) -> Packed:
        """Shared weights are measured once: another time something else might be faster."""
        key = layer.held, layer.bits
        before, chosen = self._without_zeros.get(key, (None, dense))
        if before is None or not torch.equal(before.weight, dense.weight):
            chosen = without_zeros(layer, layer.bits, rounded, dense)
            self._without_zeros[key] = dense, chosen
        return replace(chosen, scale=dense.scale, zero=dense.zero)

    def _maybe(self, value: torch.Tensor | None) -> Node | None:
        return None if value is None else self.constant(value)

    def constant(self, value: torch.Tensor) -> Node:
        """A buffer; the same bytes are held once."""
        value = value.contiguous()
        value = value.view(torch.int8) if value.dtype == torch.uint8 else value
        key = (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
        if key not in self._held:
            self._held[key] = f"ferryman_{len(self._held)}"
            self._module.register_buffer(self._held[key], value)
        return self._module.graph.get_attr(self._held[key])


def _end(value: float, scale: Scale) -> int:
    """Where an activation clips int8."""
    if not np.isfinite(value):
        return _INT8[value > 0]
    return int(np.clip(np.rint(value / scale.scale) + scale.zero, *_INT8))
