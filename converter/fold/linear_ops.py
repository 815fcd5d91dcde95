"""Convolutions and linear layers of a captured graph as linear maps: read, joined, and written anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional

from ferryman.converter.layer_calls import path_of
from ferryman.converter.recognise import Constants

aten = torch.ops.aten
_TRANSPOSED = (None, functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_CALLS = (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d)
Sizes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Map:
    """A convolution or a linear layer, which stands for one too where `dims` is 0."""

    node: Node
    """Whose value it gives."""
    x: Node
    weight: torch.Tensor
    """float32[out, in / groups, *kernel]."""
    bias: torch.Tensor
    """float32[out]."""
    stride: Sizes = ()
    padding: Sizes = ()
    """Zeros on either side, of each dimension."""
    dilation: Sizes = ()
    groups: int = 1

    @property
    def dims(self) -> int:
        """Dimensions of its window; 0: it works on the last dimension alone."""
        return len(self.stride)

    @property
    def axis(self) -> int:
        """Of its channels."""
        return 1 if self.dims else self.node.meta["val"].dim() - 1

    @property
    def kernel(self) -> Sizes:
        """Size of its window."""
        return tuple(self.weight.shape[2:])

    @property
    def plain(self) -> bool:
        """Whether its window is dense."""
        return all(d == 1 or k == 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    def multiplications(self) -> int:
        """Of one call as it was captured."""
        return math.prod(sizes(self.node)) // len(self.weight) * self.weight.numel()


def sizes(node: Node) -> Sizes:
    """Of a value; of dynamic ones as captured."""
    return tuple(one if isinstance(one, int) else int(one.node.hint) for one in node.meta["val"].shape)


def is_float(node: Node) -> bool:
    """Whether a value is a float32 tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def read_map(node: Node, constants: Constants) -> Map | None:
    """What a node computes; None where it is no such layer, or its weights are not constant."""
    kind = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or not is_float(node):
        return None
    if node.target == aten.matmul.default:
        return _read_product(node, constants)
    return _read_layer(node, constants) if kind in _CALLS and _all_constant(node.args[1:3], constants) else None


def _read_layer(node: Node, constants: Constants) -> Map | None:
    args: list[Any] = list(node.args)
    x, weight, bias, *rest = [*args, None][: max(3, len(args))]
    weights = constants[weight]
    offset = torch.zeros(len(weights)) if bias is None else constants[bias]
    if weights.dtype != torch.float32 or not is_float(x):
        return None
    if node.target == aten.linear.default:
        return Map(node, x, weights, offset)
    dims = weights.dim() - 2
    if x.meta["val"].dim() != dims + 2:
        return None
    defaults: list[Any] = [[1], [0], [1], 1]
    stride, padding, dilation, groups = [*rest, *defaults[len(rest) :]]
    spread = _each(dilation, dims)
    around = _around(padding, weights.shape[2:], spread)
    return None if around is None else Map(node, x, weights, offset, _each(stride, dims), around, spread, groups)


def _read_product(node: Node, constants: Constants) -> Map | None:
    x, other = node.args
    if not isinstance(x, Node) or not isinstance(other, Node) or other not in constants or x in constants:
        return None
    weight = constants[other]
    if weight.dim() != 2 or weight.dtype != torch.float32 or not is_float(x):  # noqa: PLR2004  # a matrix
        return None
    return Map(node, x, weight.T, torch.zeros(weight.shape[1]))


def _all_constant(several: Sequence[Any], constants: Constants) -> bool:
    return all(one is None or (isinstance(one, Node) and one in constants) for one in several)


def _each(value: Sequence[int], dims: int) -> Sizes:
    return tuple(int(one) for one in value) * (1 if len(value) == dims else dims)


def _around(padding: Sequence[int] | str, kernel: Sequence[int], dilation: Sizes) -> Sizes | None:
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return None if any(one % 2 for one in total) else tuple(one // 2 for one in total)
    if isinstance(padding, str):
        return (0,) * len(dilation)
    return _each(padding, len(dilation))


# Joining.


def scaled_after(one: Map, factor: torch.Tensor, offset: torch.Tensor) -> Map:
    """The map, and then each channel times a factor, plus an offset."""
    weight = one.weight.double() * factor.double().reshape(-1, *[1] * (one.weight.dim() - 1))
    bias = one.bias.double() * factor.double() + offset.double()
    return replace(one, weight=weight.float(), bias=bias.float())


def scaled_before(one: Map, factor: torch.Tensor, offset: torch.Tensor) -> Map | None:
    """Each channel times a factor, plus an offset, and then the map; None where its zeros around would differ."""
    if any(one.padding) and bool(offset.any()):
        return None
    out, inside = one.weight.shape[:2]
    shape = (one.groups, out // one.groups, inside, -1)
    by_group = [part.double().reshape(one.groups, 1, inside, 1) for part in (factor, offset)]
    grouped = one.weight.double().reshape(shape)
    bias = one.bias.double() + (grouped * by_group[1]).sum((2, 3)).reshape(-1)
    weight = (grouped * by_group[0]).reshape(one.weight.shape)
    return replace(one, weight=weight.float(), bias=bias.float())


def chained(first: Map, second: Map) -> Map | None:
    """Both maps as one, exact to the borders; None where there is none, or it would take more work or weights."""
    if first.dims != second.dims or first.groups != 1 or second.groups != 1 or not (first.plain and second.plain):
        return None
    seen = any(second.padding)
    # Beyond the border the second reads zeros; the first by itself would give its bias there, or reach back inside.
    if seen and (any(k > 1 for k in first.kernel) or any(first.padding) or bool(first.bias.any())):
        return None
    weight = _chained_weight(first, second)
    through = second.weight.double().flatten(2).sum(2) if second.dims else second.weight.double()
    bias = second.bias.double() + through @ first.bias.double()
    steps = list(zip(first.stride, second.stride, strict=True))
    padding = [p + q * s for p, q, s in zip(first.padding, second.padding, first.stride, strict=True)]
    made = Map(
        second.node, first.x, weight, bias.float(), tuple(a * b for a, b in steps), tuple(padding), (1,) * first.dims
    )
    both = first.weight.numel() + second.weight.numel()
    work = first.multiplications() + second.multiplications()
    if weight.numel() > both or made.multiplications() > work or _given(made) != sizes(second.node):
        return None
    return made


def _chained_weight(first: Map, second: Map) -> torch.Tensor:
    convolve = _TRANSPOSED[first.dims]
    if convolve is None:
        return (second.weight.double() @ first.weight.double()).float()
    joined: torch.Tensor = convolve(second.weight.double(), first.weight.double(), stride=first.stride)
    return joined.float()


def summed(several: Sequence[Map]) -> Map | None:
    """The sum of maps of one value as one map; None where they step or group differently, or their sizes differ."""
    first = several[0]
    if any((one.stride, one.groups) != (first.stride, first.groups) or not one.plain for one in several):
        return None
    padding = [max(one.padding[at] for one in several) for at in range(first.dims)]
    kernel = [max(one.kernel[at] - one.padding[at] for one in several) + padding[at] for at in range(first.dims)]
    weight = torch.zeros(*first.weight.shape[:2], *kernel, dtype=torch.float64)
    for one in several:
        begins = [most - own for most, own in zip(padding, one.padding, strict=True)]
        place = tuple(slice(begin, begin + size) for begin, size in zip(begins, one.kernel, strict=True))
        weight[(slice(None), slice(None), *place)] += one.weight.double()
    bias = torch.stack([one.bias.double() for one in several]).sum(0).float()
    made = replace(first, weight=weight.float(), bias=bias, padding=tuple(padding), dilation=(1,) * first.dims)
    return made if _given(made) == sizes(first.node) else None


def scaled_identity(like: Map, factor: torch.Tensor, offset: torch.Tensor) -> Map | None:
    """What gives its input, each channel times a factor plus an offset, as a map like another one; None: no such."""
    out, inside = like.weight.shape[:2]
    if out != inside * like.groups or any(step > 1 for step in like.stride):
        return None
    weight = torch.zeros(out, inside, *[1] * like.dims)
    at = torch.arange(out)
    weight[at, at % inside] = factor.reshape(-1, *[1] * like.dims)
    none = (0,) * like.dims
    return replace(like, weight=weight, bias=offset, padding=none, dilation=(1,) * like.dims)


def _given(one: Map) -> Sizes:
    """Sizes of what a map gives of its input."""
    given = list(sizes(one.x))
    if not one.dims:
        return (*given[:-1], len(one.weight))
    moved = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(given[2:], one.padding, one.dilation, one.kernel, one.stride, strict=True)
    ]
    return (given[0], len(one.weight), *moved)


# Writing.


def put_map(module: GraphModule, one: Map, end: Node, plus: Sequence[Node] = ()) -> None:
    """Have a map, with other values added to it, give the value of a node."""
    graph = module.graph
    with graph.inserting_before(end):
        held = [_hold(module, one.weight)]
        held += [_hold(module, one.bias)] if bool(one.bias.any()) else []
        args: tuple[Any, ...] = (one.x, *held)
        target = _CALLS[one.dims].default
        if one.dims:
            bias = held[1] if len(held) > 1 else None
            args = (one.x, held[0], bias, *map(list, (one.stride, one.padding, one.dilation)), one.groups)
        made: Node = graph.call_function(target, args)
    made.meta = {key: one.node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in one.node.meta}
    made.meta["val"] = end.meta["val"]
    for other in plus:
        with graph.inserting_before(end):
            made = graph.call_function(aten.add.Tensor, (made, other))
        made.meta["val"] = end.meta["val"]
    end.replace_all_uses_with(made)
    graph.eliminate_dead_code()


def _hold(module: GraphModule, value: torch.Tensor) -> Node:
    name = f"merged_{sum(1 for _ in module.parameters())}"
    module.register_parameter(name, torch.nn.Parameter(value.detach().contiguous().clone()))
    node: Node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def name_of(one: Map) -> str:
    """The path of its module."""
    return path_of(one.node)
