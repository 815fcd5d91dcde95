"""Puts sparse operators into a graph in the place of chosen layers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ferryman.converter import sparse_operators as _sparse_operators  # noqa: F401  # registers them
from ferryman.converter.sparse.layers import PrunedLayer

Numbers = tuple[Any, ...]


def arguments(one: PrunedLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Numbers]:
    """Values, index bytes, bias, and the numbers that follow x, these three and, of an image, what is added."""
    index = (
        torch.from_numpy(one.places.index).view(torch.int8) if one.places.index.size else torch.zeros(1).to(torch.int8)
    )
    ends = (one.places.index_bits, one.low, one.high)
    window = one.layer.window
    if window is None:
        return one.values, index, one.layer.bias, ends
    channels, kernel, stride, padding, dilation, groups, *_ = window
    sizes = (channels, list(kernel), list(stride), list(padding), list(dilation), groups)
    return one.values, index, one.layer.bias, (*sizes, False, False, *ends)


def put_sparse(module: GraphModule, chosen: Collection[PrunedLayer]) -> None:
    """Have operators give the values of these layers' ends, and take out what they stand for.

    Args:
        module: changed in place.
        chosen: layers of it.
    """
    graph = module.graph
    order = {node: at for at, node in enumerate(graph.nodes)}
    made: dict[Node, Node] = {}
    names: dict[tuple[str, bytes], str] = {}

    def constant(tensor: torch.Tensor) -> Node:
        """A buffer; the same bytes are held once, as where a layer is called again."""
        key = str(tensor.dtype), tensor.numpy().tobytes()
        if key not in names:
            names[key] = f"sparse_{len(names)}"
            module.register_buffer(names[key], tensor.contiguous())
        return graph.get_attr(names[key])

    for one in sorted(chosen, key=lambda each: order[each.end]):
        *tensors, numbers = arguments(one)
        with graph.inserting_after(one.end):
            anchor = graph.call_function(torch.ops.aten.alias.default, (one.end,))
        with graph.inserting_before(anchor):
            held = [constant(tensor) for tensor in tensors]
            x = made.get(one.layer.x, one.layer.x)
            if one.layer.window is None:
                new = graph.call_function(torch.ops.ferryman.sparse_linear.default, (x, *held, *numbers))
            else:
                add = None if one.add is None else made.get(one.add, one.add)
                new = graph.call_function(torch.ops.ferryman.sparse_conv2d.default, (x, *held, add, *numbers))
        graph.erase_node(anchor)
        node = one.layer.node
        new.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
        made[one.end] = new
        one.end.replace_all_uses_with(new)
    graph.eliminate_dead_code()
    module.recompile()
