"""Evens out the ranges of channels between a layer and the one that reads it, without changing what they compute.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1.
Where f(s * x) = s * f(x) for every s > 0, channel i of the first layer may be divided by any s_i and the second's
weights on it multiplied by s_i. s_i = sqrt(r1_i / r2_i) gives both the range sqrt(r1_i * r2_i). Weights that share a
scale over inputs lose less then, and so do activations, which share one over channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ferryman.converter.layer_calls import is_layer, read_call
from ferryman.converter.quantize.layers import Layer, find_layers, only_user, read_ends
from ferryman.converter.quantize.observe import watch
from ferryman.converter.recognise import Constants

_INFINITE = float("inf")
_ROOM = 2.0
"""Other inputs may go this much farther than calibration did, and still not reach a clip."""
_ROUNDS = 40
_STILL = 1e-3
_MOST = 1e4
"""That a channel is multiplied or divided by."""


@dataclass(eq=False)
class _Pair:
    """Two layers; the second reads nothing but the first."""

    first: Layer
    second: Layer
    clip: float
    """Where the activation between them clips."""
    scale: torch.Tensor
    """float32[channels]: what the first has been divided by so far."""
    least: torch.Tensor
    """float32[channels]: to divide by less would bring calibration near the clip."""
    free: torch.Tensor
    """bool[channels]: those that are not near it anyway."""


def equalize(module: GraphModule, batches: Sequence[Sequence[torch.Tensor]]) -> int:
    """Rewrite the layers of a float program in place, with what follows them folded in.

    Between the two may be nothing, a relu, or an activation that also clips above. Channels that calibration takes
    near the clip stay as they are, and others are not brought there: clipping does the same as before.

    Args:
        module: the program.
        batches: calibration inputs, flat.

    Returns:
        How many pairs of layers were equalized.
    """
    constants = Constants(module)
    layers = [one for one in find_layers(module, constants).values() if isinstance(one, Layer)]
    pairs = _find_pairs(layers, constants)
    _find_room(module, batches, pairs)
    for _ in range(_ROUNDS):
        if not pairs or max([_even_out(pair) for pair in pairs]) < _STILL:
            break
    for layer in dict.fromkeys(layer for pair in pairs for layer in (pair.first, pair.second)):
        _write(module, layer)
    module.graph.eliminate_dead_code()
    module.recompile()
    return len(pairs)


def _find_pairs(layers: Sequence[Layer], constants: Constants) -> list[_Pair]:
    weights = {layer: call.weight for layer in layers if is_layer(layer.node) and (call := read_call(layer.node))}
    shared = Counter(constants[weight].data_ptr() for weight in weights.values())
    own = [layer for layer, weight in weights.items() if shared[constants[weight].data_ptr()] == 1]
    readers = {layer.takes[0]: layer for layer in own}
    pairs = []
    for first in own:
        end, clip = first.end, _INFINITE
        user = only_user(end)
        ends = read_ends(user) if user is not None else None
        if user is not None and ends is not None:
            low, clip = ends
            if low not in (0.0, -_INFINITE):
                continue
            end, user = user, only_user(user)
        second = readers.get(user) if user is not None else None
        if second is None or second.x is not end or (first.window is None) != (second.window is None):
            continue
        ones = torch.ones(len(first.weight))
        pairs.append(_Pair(first, second, clip, ones, torch.zeros_like(ones), ones.bool()))
    return pairs


def _find_room(module: GraphModule, batches: Sequence[Sequence[torch.Tensor]], pairs: Sequence[_Pair]) -> None:
    """See how near calibration comes to where activations clip, channel by channel."""
    clipped = {pair.first.end: pair for pair in pairs if pair.clip < _INFINITE}

    def look(node: Node, value: torch.Tensor) -> None:
        pair = clipped[node]
        highest = value.movedim(1 if pair.first.window else -1, 0).flatten(1).amax(1)
        pair.least = torch.maximum(pair.least, _ROOM * highest / pair.clip)

    if clipped:
        watch(module, batches, clipped, look)
    for pair in clipped.values():
        pair.free = pair.least < 1


def _even_out(pair: _Pair) -> float:
    """Divide the first's channels and multiply the second's inputs; how far from 1 the largest factor was."""
    first, second = pair.first, pair.second
    ranges, read = first.weight.flatten(1).abs().amax(1), _by_input(second).abs().amax((1, 3)).flatten()
    wanted = pair.scale * torch.where((ranges > 0) & (read > 0), (ranges / read).sqrt(), 1.0)
    wanted = torch.maximum(wanted.clamp(1 / _MOST, _MOST), pair.least)
    by = torch.where(pair.free & wanted.isfinite(), wanted / pair.scale, 1.0)
    pair.scale = pair.scale * by
    first.weight = first.weight / by.reshape(-1, *[1] * (first.weight.dim() - 1))
    first.bias = first.bias / by
    groups = _by_input(second)
    second.weight = (groups * by.reshape(groups.shape[0], 1, -1, 1)).reshape(second.weight.shape)
    return float((by - 1).abs().max())


def _by_input(layer: Layer) -> torch.Tensor:
    """A layer's weights as [groups, out / groups, in / groups, taps]."""
    groups = layer.window[5] if layer.window else 1
    out, inputs = layer.weight.shape[:2]
    return layer.weight.reshape(groups, out // groups, inputs, -1)


def _write(module: GraphModule, layer: Layer) -> None:
    """Have one call with the layer's present weights give the value of its end."""
    graph, node = module.graph, layer.node
    with graph.inserting_after(layer.end):
        anchor = graph.call_function(torch.ops.aten.alias.default, (layer.end,))
    with graph.inserting_before(anchor):
        held = [_hold(module, value) for value in (layer.weight, layer.bias)]
        made = graph.call_function(node.target, (node.args[0], *held, *node.args[3:]))  # type: ignore[arg-type]  # an operator
    graph.erase_node(anchor)
    made.meta = {**layer.end.meta, "nn_module_stack": node.meta.get("nn_module_stack", {})}
    layer.end.replace_all_uses_with(made)


def _hold(module: GraphModule, value: torch.Tensor) -> Node:
    name = f"equalized_{sum(1 for _ in module.buffers())}"
    module.register_buffer(name, value.contiguous())
    node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node
