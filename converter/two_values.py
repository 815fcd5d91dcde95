"""Layers of signs whose weights have two values a channel that are not each other's negative.

With values m + d and m - d, a dot product with signs is d times that with weights of -1 and 1, plus m times the sum of
the signs, which is one more output channel whose weights are all 1. So such a layer is two binary ones.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from ferryman.converter.layer_calls import read_call, read_pad
from ferryman.converter.recognise import Recogniser


def split_two_valued(module: GraphModule) -> None:
    """Replace each such layer of one group by `layer(d * signs) + m * layer(ones)`; its bias stays with the first."""
    recogniser = Recogniser(module)
    found = []
    for node in module.graph.nodes:
        call = read_call(node)
        if call is None or call.weight not in recogniser.constants or (call.window and call.window[5] != 1):
            continue
        padded = read_pad(call.x) if call.window else None
        if not recogniser.sign(call.x) and not (padded and recogniser.sign(padded[0])):
            continue
        weight = recogniser.constants[call.weight]
        values = _two_values(weight)
        if values is not None:
            found.append((node, call.weight, weight, *values))
    for one in found:
        _split(module, *one)
    module.recompile()


def _two_values(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Half the difference and the mean of each channel's two values, as they broadcast; None where there are more."""
    flat = weight.flatten(1)
    low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    if not bool(((flat == low) | (flat == high)).all()) or bool((flat.abs() == flat[:, :1].abs()).all()):
        return None
    shape = (-1, *[1] * (weight.dim() - 1))
    return ((high - low) / 2).reshape(shape), ((high + low) / 2).reshape(shape)


def _split(
    module: GraphModule, node: Node, source: Node, weight: torch.Tensor, d: torch.Tensor, m: torch.Tensor
) -> None:
    graph = module.graph
    # With one value in a channel, d is 0 there.
    centred = torch.where(weight > m, d, -d)
    offset = m.reshape(-1, *[1] * (weight.dim() - 2)) if weight.dim() > 2 else m.reshape(-1)  # noqa: PLR2004  # an image
    with graph.inserting_before(node):
        constants = []
        for name, value in (("centred", centred), ("ones", torch.ones_like(weight[:1])), ("offset", offset)):
            module.register_buffer(f"two_values_{node.name}_{name}", value.contiguous())
            constants.append(graph.get_attr(f"two_values_{node.name}_{name}"))
            constants[-1].meta["val"] = value
        first, second = (graph.node_copy(node, lambda argument: argument) for _ in range(2))
        first.replace_input_with(source, constants[0])
        second.replace_input_with(source, constants[1])
        # The bias comes after the weight in every one of these operators.
        second.args = (*second.args[:2], None, *second.args[3:])
        second.meta["val"] = node.meta["val"].narrow(1 if weight.dim() > 2 else -1, 0, 1)  # noqa: PLR2004  # an image
        scaled = graph.call_function(torch.ops.aten.mul.Tensor, (second, constants[2]))
        both = graph.call_function(torch.ops.aten.add.Tensor, (first, scaled))
    for made in (scaled, both):
        made.meta = dict(node.meta)
    node.replace_all_uses_with(both)
    graph.erase_node(node)
