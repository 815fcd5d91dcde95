"""A program whose hidden axes are computed in parts, of which the first few are taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ferryman.converter.functional import drop_unused
from ferryman.converter.layer_calls import is_layer
from ferryman.converter.nested.axes import Axis, aten, parameters

Held = dict[tuple[str, int, int], nn.Parameter]
"""(name, first unit, end) -> a parameter's part: the same object in every sub-network."""
_GROUPS_AT: dict[object, int] = {aten.conv2d.default: 6, aten.conv2d.padding: 6, aten.convolution.default: 8}


def take_parts(module: GraphModule, axes: Sequence[Axis], bounds: Mapping[str, Sequence[int]], held: Held) -> None:
    """Rewrite a program to compute these axes in parts, in place.

    Args:
        module: whose nodes the axes are.
        axes: of it.
        bounds: by axis: 0, then where each part that is taken ends.
        held: parts that exist already; new ones are added.
    """
    for axis in axes:
        _take(module, axis, bounds[axis.name], held)
    drop_unused(module)


def _take(module: GraphModule, axis: Axis, bounds: Sequence[int], held: Held) -> None:
    graph, total = module.graph, None
    of = parameters(axis)
    for part, (start, end) in enumerate(itertools.pairwise(bounds)):
        new: dict[Node, Node] = {}
        for node in (*sorted({*axis.writers, *axis.between}, key=_place(axis)), axis.reader):
            with graph.inserting_before(axis.reader):
                for parameter, dim in of.get(node, ()):
                    new[parameter] = _cut(module, parameter, dim, start, end, part, held)
                made = graph.node_copy(node, lambda one, new=new: new.get(one, one))  # type: ignore[misc]
                if is_layer(node) and node in axis.between:
                    _set(made, _GROUPS_AT[node.target], end - start)
                if node is axis.reader and part:
                    _set(made, 2, None)  # the bias is added once
            new[node] = made
        if total is None:
            total = new[axis.reader]
        else:
            with graph.inserting_before(axis.reader):
                total = graph.call_function(aten.add.Tensor, (total, new[axis.reader]))
            total.meta = dict(axis.reader.meta)
    assert total is not None  # noqa: S101  # bounds hold a part at least
    axis.reader.replace_all_uses_with(total)
    graph.erase_node(axis.reader)


def _place(axis: Axis) -> Callable[[Node], int]:
    return {node: at for at, node in enumerate(axis.reader.graph.nodes)}.__getitem__


def _set(node: Node, at: int, value: object) -> None:
    args = list(node.args)
    if at < len(args):
        args[at] = value  # type: ignore[call-overload]  # an argument's
        node.args = tuple(args)


def _cut(module: GraphModule, parameter: Node, dim: int, start: int, end: int, part: int, held: Held) -> Node:
    """A parameter's units from `start` to `end`, as a parameter of its own."""
    name = str(parameter.target)
    if (name, start, end) not in held:
        whole = module.get_parameter(name) if name in dict(module.named_parameters()) else module.get_buffer(name)
        cut = whole.detach().narrow(dim, start, end - start).clone(memory_format=torch.contiguous_format)
        held[name, start, end] = nn.Parameter(cut, requires_grad=False)
    owner, _, attribute = name.rpartition(".")
    place = module.get_submodule(owner)
    box = f"part{part}"
    if not hasattr(place, box):
        place.add_module(box, nn.Module().eval())
    getattr(place, box).register_parameter(attribute, held[name, start, end])
    made = module.graph.get_attr(".".join(filter(None, (owner, box, attribute))))
    made.meta = {"val": held[name, start, end]}
    return made
