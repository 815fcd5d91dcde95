"""Keeps shared weights shared in `.tflite`.

The toolchain multiplies the weights of a linear layer by the scale of the norm before it. Where several layers share
their weights, and their norms differ, or an embedding reads the same table, that makes as many copies. Such norms are
written so that their scale meets what depends on the input first: the same operations, in an order that cannot be
folded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ferryman.converter.recognise import attribute
from ferryman.converter.shared import readers_of

aten = torch.ops.aten
_LINEAR = (aten.linear.default, aten.matmul.default)
_SAME = (aten.to.dtype, aten.type_as.default, aten.dropout.default)
"""What may stand between a norm and a layer, and does nothing to it."""


def keep_shared(module: GraphModule) -> GraphModule:
    """Rewrite the norms before linear layers whose weights something else reads as well, in place."""
    for norms in _read_differently(module):
        for norm in norms:
            _open(module, norm)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _read_differently(module: GraphModule) -> Iterator[set[Node]]:
    """The norms before the readers of each tensor, where these are not all the same."""
    readers: dict[int, dict[Node, None]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            if isinstance(value, torch.Tensor) and value.dim() > 1:
                readers.setdefault(value.data_ptr(), {}).update(dict.fromkeys(readers_of(node)))
    for several in readers.values():
        norms = {reader: _norm_before(reader) for reader in several if reader.target in _LINEAR}
        scales = {reader: None if norm is None else _scale(module, norm) for reader, norm in norms.items()}
        if len(several) > len(norms) or len(set(scales.values())) > 1:
            yield {norm for norm in norms.values() if norm is not None}


def _norm_before(reader: Node) -> Node | None:
    """What scales each channel of a linear layer's input: a norm, or the last product of one."""
    node = reader.args[0]
    while isinstance(node, Node) and node.target in _SAME:
        node = node.args[0]
    if not isinstance(node, Node):
        return None
    if node.target in (aten.layer_norm.default, aten.rms_norm.default) and len(node.args) > 2:  # noqa: PLR2004  # a scale
        return node if isinstance(node.args[2], Node) else None
    return node if _read_product(node) else None


def _read_product(node: Node) -> tuple[Node, Node, Node] | None:
    """Of (x * by row) * by channel, the three."""
    if node.target != aten.mul.Tensor:
        return None
    operands = [one for one in node.args if isinstance(one, Node)]
    scales = [one for one in operands if one.op == "get_attr"]
    if len(operands) != 2 or len(scales) != 1:  # noqa: PLR2004  # both tensors
        return None
    (inner,) = (one for one in operands if one is not scales[0])
    while inner.target in _SAME and isinstance(inner.args[0], Node):
        inner = inner.args[0]
    parts = [one for one in inner.args if isinstance(one, Node)] if inner.target == aten.mul.Tensor else []
    rows = [one for one in parts if one.op != "get_attr" and one.meta["val"].shape[-1] == 1]
    if len(parts) != 2 or len(rows) != 1:  # noqa: PLR2004  # both tensors
        return None
    (x,) = (one for one in parts if one is not rows[0])
    return x, rows[0], scales[0]


def _scale(module: GraphModule, norm: Node) -> tuple[int, ...]:
    """Where its scale and offset are held."""
    nodes = norm.args[2:4] if norm.target != aten.mul.Tensor else norm.args
    held = [attribute(module, str(one.target)) for one in nodes if isinstance(one, Node) and one.op == "get_attr"]
    return tuple(one.data_ptr() for one in held)


def _open(module: GraphModule, norm: Node) -> None:
    graph = module.graph

    def call(target: Any, *args: Any) -> Node:  # noqa: ANN401  # an operator's
        made: Node = graph.call_function(target, args)
        made.meta = {key: norm.meta[key] for key in ("nn_module_stack", "stack_trace") if key in norm.meta}
        made.meta["val"] = target(*[one.meta["val"] if isinstance(one, Node) else one for one in args])
        return made

    args: list[Any] = list(norm.args)
    with graph.inserting_before(norm):
        product = _read_product(norm)
        if product is not None:
            x, rows, scale = product
            made = call(aten.mul.Tensor, x, call(aten.mul.Tensor, rows, scale))
        else:
            x, sizes, scale, *rest = args
            dims = list(range(-len(sizes), 0))
            offset, epsilon = None, rest[0] if rest else None
            if norm.target == aten.layer_norm.default:
                offset, epsilon = [*rest, *(None, 1e-5)[len(rest) :]][:2]
                x = call(aten.sub.Tensor, x, call(aten.mean.dim, x, dims, True))
            epsilon = torch.finfo(torch.float32).eps if epsilon is None else epsilon
            square = call(aten.mean.dim, call(aten.mul.Tensor, x, x), dims, True)
            rows = call(aten.rsqrt.default, call(aten.add.Tensor, square, epsilon))
            made = call(aten.mul.Tensor, x, call(aten.mul.Tensor, rows, scale))
            made = made if offset is None else call(aten.add.Tensor, made, offset)
    norm.replace_all_uses_with(made)
