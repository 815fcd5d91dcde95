"""Transformers in blocks (BCT, Dong et al. 2023): products of activations, softmax, GELU and layer norms on such rows.

Linear layers and embeddings are rewritten elsewhere, with scales to every 32 activations; this does the rest, so that
large intermediate results are int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ferryman.converter.layer_calls import path_of
from ferryman.converter.quant_operators import GELU, GELU_TANH, LAYER_NORM, SILU, SOFTMAX
from ferryman.converter.recognise import Constants
from ferryman.runtime.contracts.manifest import LayerForm

aten = torch.ops.aten
ferryman = torch.ops.ferryman
_NAMES = {GELU: "GELU", GELU_TANH: "GELU", SILU: "SiLU", SOFTMAX: "softmax", LAYER_NORM: "layer norm"}
_MATRIX_RANK = 2
_SAFE_SOFTMAX = aten._safe_softmax.default  # noqa: SLF001  # an operator's name
_ATTENTION = ("attn_mask", "dropout_p", "is_causal")
_META = ("nn_module_stack", "stack_trace")
_IN_BLOCKS = 7
"""Where a quantized linear layer has this among its arguments."""


@dataclass(frozen=True)
class Product:
    """A product of two activations."""

    node: Node
    turned: bool
    """Its second operand has its last two dimensions the other way round."""


@dataclass(frozen=True)
class Function:
    """A function of rows."""

    node: Node
    kind: int
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    epsilon: float = 0.0


def open_attention(module: GraphModule) -> None:
    """Write attention as products and a softmax, and leave out dropouts, which do nothing by now."""
    for node in list(module.graph.nodes):
        if node.target == aten.dropout.default and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target == aten.scaled_dot_product_attention.default:
            _open(module, node)
    module.recompile()


def _open(module: GraphModule, node: Node) -> None:
    args: list[Any] = list(node.args)
    query, key, value, *rest = args
    given: dict[str, Any] = dict(zip(_ATTENTION, rest, strict=False)) | node.kwargs
    mask, dropout, causal = (given.get(name) for name in _ATTENTION)
    shapes = [one.meta["val"].shape for one in (query, key, value)]
    same = all(shape[:-_MATRIX_RANK] == shapes[0][:-_MATRIX_RANK] for shape in shapes)
    sizes = (shapes[0][-2], shapes[1][-2])
    if dropout or node.kwargs.get("enable_gqa") or not same or (causal and not all(isinstance(n, int) for n in sizes)):
        return  # it stays as it is, in float
    graph = module.graph

    def call(target: Any, *args: Any) -> Node:  # noqa: ANN401  # an operator's
        made: Node = graph.call_function(target, args)
        made.meta = {key: node.meta[key] for key in _META if key in node.meta}
        made.meta["val"] = target(*[one.meta["val"] if isinstance(one, Node) else one for one in args])
        return made

    scale = node.kwargs.get("scale")
    with graph.inserting_before(node):
        scaled = call(aten.mul.Tensor, query, 1 / math.sqrt(shapes[0][-1]) if scale is None else scale)
        scores = call(aten.matmul.default, scaled, call(aten.transpose.int, key, -2, -1))
        if causal:
            name = f"ferryman_causal_{sizes[0]}_{sizes[1]}"
            module.register_buffer(name, torch.full(sizes, -math.inf).triu(1))
            hidden = graph.get_attr(name)
            hidden.meta["val"] = scores.meta["val"].new_empty(sizes)
            scores = call(aten.add.Tensor, scores, hidden)
        if mask is not None and mask.meta["val"].dtype == torch.bool:
            scores = call(aten.where.ScalarOther, mask, scores, -math.inf)
        elif mask is not None:
            scores = call(aten.add.Tensor, scores, mask)
        made = call(aten.matmul.default, call(_SAFE_SOFTMAX, scores, -1), value)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def find_blocks(module: GraphModule, constants: Constants) -> list[Product | Function]:
    """What can be rewritten besides layers, in order."""
    found: list[Product | Function] = []
    for node in module.graph.nodes:
        one = _read_product(node, constants) or _read_function(node, constants)
        if one is not None:
            found.append(one)
    return found


def _read_product(node: Node, constants: Constants) -> Product | None:
    if node.target not in (aten.matmul.default, aten.bmm.default):
        return None
    args: list[Any] = list(node.args)
    a, b = args
    if not isinstance(a, Node) or not isinstance(b, Node) or a in constants or b in constants:
        return None
    shapes = [one.meta["val"].shape for one in (a, b)]
    if len(shapes[0]) < _MATRIX_RANK or shapes[0][:-_MATRIX_RANK] != shapes[1][:-_MATRIX_RANK]:
        return None
    if {a.meta["val"].dtype, b.meta["val"].dtype} != {torch.float32}:
        return None
    rank = len(shapes[0])
    if b.target == aten.transpose.int and _dims(b, rank) == {rank - 2, rank - 1}:
        return Product(node, turned=True)
    return Product(node, turned=False)


def _dims(transposed: Node, rank: int) -> set[int]:
    dims: list[Any] = list(transposed.args[1:])
    return {int(dim) % rank for dim in dims}


def _read_function(node: Node, constants: Constants) -> Function | None:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    x = node.args[0]
    value, given = node.meta.get("val"), x.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(given, torch.Tensor) or not given.dim():
        return None
    if {value.dtype, given.dtype} != {torch.float32}:
        return None
    if node.target == aten.layer_norm.default:
        return _read_norm(node, constants)
    kind = _kind(node, given.dim())
    return None if kind is None else Function(node, kind)


def _kind(node: Node, rank: int) -> int | None:
    if node.target == aten.gelu.default:
        return GELU_TANH if node.kwargs.get("approximate") == "tanh" else GELU
    if node.target in (aten.silu.default, aten.silu_.default):
        return SILU
    softmax = node.target in (aten.softmax.int, _SAFE_SOFTMAX)
    return SOFTMAX if softmax and node.args[1] in (-1, rank - 1) else None


def _read_norm(node: Node, constants: Constants) -> Function | None:
    args: list[Any] = list(node.args)
    _, shape, *rest = args
    weight, bias, epsilon = [*rest, *(None, None, 1e-5)[len(rest) :]][:3]
    if len(shape) != 1 or any(one is not None and one not in constants for one in (weight, bias)):
        return None
    channels = int(shape[0])
    return Function(
        node,
        LAYER_NORM,
        torch.ones(channels) if weight is None else constants[weight].detach(),
        torch.zeros(channels) if bias is None else constants[bias].detach(),
        float(epsilon),
    )


def put_blocks(
    module: GraphModule, found: Sequence[Product | Function], constant: Callable[[torch.Tensor], Node]
) -> list[LayerForm]:
    """Rewrite what was found; layers that read their rows have been by now.

    Args:
        module: in which.
        found: by `find_blocks`.
        constant: holds a tensor in the module.

    Returns:
        What became of each.
    """
    made = {}
    for one in found:
        with module.graph.inserting_before(one.node):
            operator = _put_product(module, one) if isinstance(one, Product) else _put_function(module, one, constant)
        operator.meta = {key: one.node.meta[key] for key in _META if key in one.node.meta}
        one.node.replace_all_uses_with(operator)
        module.graph.erase_node(one.node)
        made[one.node] = operator
    forms = []
    for one in found:
        operator = made[one.node]
        if isinstance(one, Product):
            forms.append(LayerForm(path=path_of(one.node), form="int8", note="product of two, both in blocks of 32"))
            continue
        blocks = bool(operator.users) and all(_takes_blocks(user, operator) for user in operator.users)
        operator.args = (*operator.args[:-1], blocks)
        note = f"{_NAMES[one.kind]} by polynomials, {'blocks of 32' if blocks else 'floats'} out"
        forms.append(LayerForm(path=path_of(one.node), form="int8" if blocks else "fp32", note=note))
    return forms


def _put_product(module: GraphModule, product: Product) -> Node:
    a, b = product.node.args
    b = b.args[0] if product.turned else b  # type: ignore[union-attr]  # a transposition
    return module.graph.call_function(ferryman.quant_matmul.default, (a, b, product.turned))


def _put_function(module: GraphModule, function: Function, constant: Callable[[torch.Tensor], Node]) -> Node:
    both = [None if one is None else constant(one) for one in (function.weight, function.bias)]
    return module.graph.call_function(
        ferryman.quant_function.default, (function.node.args[0], *both, function.kind, function.epsilon, False)
    )


def _takes_blocks(user: Node, value: Node) -> bool:
    """Whether an operator reads a value as its rows alone, and in blocks."""
    if user.args[0] is not value or any(one is value for one in user.args[1:]):
        return False
    return user.target == ferryman.quant_matmul.default or (
        user.target == ferryman.quant_linear.default and bool(user.args[_IN_BLOCKS])
    )
