"""Layers of a captured graph that can be quantized, and what each takes in: scales, an addend, an activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ferryman.converter import operators
from ferryman.converter.affine import read_affine
from ferryman.converter.layer_calls import is_layer, merge_padding, padded_beyond, path_of, read_call, read_pad
from ferryman.converter.recognise import Constants
from ferryman.runtime.contracts.errors import ModelError

aten = torch.ops.aten
_SUM_MAX = 2**31
_LARGEST_PRODUCT = 255 * 128
_FIRST_BITS = 8
_SPARED_BITS = 4
Ends = tuple[float, float]
Held = tuple[int, int]
"""Address and number of weights."""
_NO_ENDS: Ends = (-float("inf"), float("inf"))


@dataclass(eq=False)
class Layer:
    """A convolution, linear layer or embedding that becomes an operator."""

    node: Node
    x: Node
    """What it computes from; before a padding that it takes in."""
    weight: torch.Tensor
    """float32[out, in / groups, kh, kw], [out, in], or [rows, channels]; what is folded in has changed it."""
    bias: torch.Tensor
    window: operators.Window | None
    """None: a linear layer or an embedding."""
    takes: tuple[Node, ...]
    """Nodes through which it sees `x`."""
    end: Node
    """Whose value the operator gives."""
    held: Held
    """Where its weights come from: layers of the same, as of shared or tied ones, are held once."""
    bits: int = 8
    static: bool = False
    """Its activations are int8 with scales known beforehand."""
    add: Node | None = None
    """What is added to its output, int8 by another layer."""
    ends: Ends = _NO_ENDS
    """An activation that clips its int8 output."""
    int8_out: bool = False

    @property
    def path(self) -> str:
        """Of the module."""
        return path_of(self.node)

    @property
    def embedding(self) -> bool:
        """Whether it looks rows up."""
        return self.node.target == aten.embedding.default

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has outputs of its own."""
        return self.window is not None and self.window[5] > 1 and self.weight.shape[1] == 1

    def inside(self) -> list[Node]:
        """The nodes that the operator stands for."""
        nodes = list(self.takes)
        while nodes[-1] is not self.end:
            (follower,) = nodes[-1].users
            nodes.append(follower)
        return nodes


@dataclass(frozen=True)
class _Tail:
    """What may follow a layer, each one's value used by the next alone."""

    affine: Node
    """The last scale or offset."""
    add: Node | None
    """An addition to another tensor."""
    other: Node | None
    """That tensor."""
    activation: Node | None
    """A clipping activation, of the last of the above."""
    ends: Ends


def find_layers(module: GraphModule, constants: Constants) -> dict[Node, Layer | str]:
    """Every convolution, linear layer and embedding, or why it stays in float; scales that follow are folded in."""
    return {
        node: _take_table(node, constants) if node.target == aten.embedding.default else _take(node, constants)
        for node in module.graph.nodes
        if is_layer(node)
        or node.target == aten.embedding.default
        or (node.target == aten.matmul.default and node.args[1] in constants)
    }


def _take_table(node: Node, constants: Constants) -> Layer | str:
    table, ids = node.args[0], node.args[1]
    if not isinstance(ids, Node) or not isinstance(table, Node) or table not in constants:
        return "its table depends on the input"
    weight = constants[table]
    if weight.dtype != torch.float32:
        return f"its numbers are {weight.dtype}"
    return Layer(node, ids, weight.detach(), torch.zeros(0), None, (node,), node, _held(weight))


def _take(node: Node, constants: Constants) -> Layer | str:
    if node.target == aten.matmul.default:
        return _take_product(node, constants)
    call = read_call(node)
    if call is None or call.weight not in constants or (call.bias is not None and call.bias not in constants):
        return "its weights depend on the input" if call else "only 2-D convolutions of a batch are taken"
    weight = constants[call.weight].detach()
    if {weight.dtype, node.meta["val"].dtype, call.x.meta["val"].dtype} != {torch.float32}:
        return f"its numbers are {weight.dtype}"
    bias = torch.zeros(len(weight)) if call.bias is None else constants[call.bias].detach()
    source, window = call.x, call.window
    takes: tuple[Node, ...] = (node,)
    padded = read_pad(source) if window else None
    if window and padded and len(source.users) == 1 and padded[2] == 0:
        merged = merge_padding(window, *padded[1:])
        if merged is not None and not padded_beyond(merged):
            source, window, takes = padded[0], merged, (source, node)
    if window and padded_beyond(window):
        return "its padding is wider than its kernel reaches"
    if not weight.numel() or _LARGEST_PRODUCT * weight[0].numel() >= _SUM_MAX:
        return "its sums would not fit 32 bits" if weight.numel() else "it has no weights"
    layer = Layer(node, source, weight, bias, window, takes, node, _held(weight))
    _fold(layer, constants)
    return layer


def _take_product(node: Node, constants: Constants) -> Layer | str:
    x, other = node.args
    if not isinstance(x, Node) or not isinstance(other, Node):
        return "it is no product of tensors"
    weight = constants[other].detach()
    if weight.dim() != 2 or {weight.dtype, x.meta["val"].dtype} != {torch.float32}:  # noqa: PLR2004  # a matrix
        return "it is no product with a float32 matrix"
    bias = torch.zeros(weight.shape[1])
    layer = Layer(node, x, weight.T.contiguous(), bias, None, (node,), node, _held(weight))
    _fold(layer, constants)
    return layer


def _held(weight: torch.Tensor) -> Held:
    return weight.data_ptr(), weight.numel()


def _fold(layer: Layer, constants: Constants) -> None:
    axis = 1 if layer.window else layer.node.meta["val"].dim() - 1
    while len(layer.end.users) == 1:
        (user,) = layer.end.users
        found = read_affine(user, layer.end, len(layer.weight), axis, constants)
        if found is None or user.meta["val"].dtype != torch.float32:
            return
        factor, offset = found
        weight = layer.weight * factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
        bias = layer.bias * factor + offset
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            return
        layer.weight, layer.bias, layer.end = weight, bias, user


def check_paths(layers: Sequence[Layer], chosen: Iterable[str]) -> None:
    """See that all module paths are layers'.

    Raises:
        ModelError: one is none.
    """
    if unknown := set(chosen) - {layer.path for layer in layers}:
        there = ", ".join(layer.path for layer in layers)
        raise ModelError(f"no layer {', '.join(sorted(unknown))} can be quantized; there are: {there}")


def choose_bits(layers: Sequence[Layer], bits: int, chosen: Mapping[str, int]) -> dict[Layer, int]:
    """Bits of each layer's weights, 32 for one that stays in float.

    What reads the model's input directly has 8; at 2 bits depthwise convolutions, embeddings and the last layer have 4.
    Layers that share their weights have the most that any of them would.

    Raises:
        ModelError: `chosen` names a layer that is not there.
    """
    check_paths(layers, chosen)
    found = {}
    for layer in layers:
        first = layer.x.op == "placeholder" and not layer.embedding
        spared = layer.depthwise or layer.embedding or layer is layers[-1]
        own = _FIRST_BITS if first else max(bits, _SPARED_BITS) if spared else bits
        found[layer] = chosen.get(layer.path, own)
    most: dict[Held, int] = {}
    for layer, own in found.items():
        most[layer.held] = max(own, most.get(layer.held, 0))
    return {layer: most[layer.held] for layer in found}


def for_all_uses(layers: Sequence[Layer], chosen: Mapping[str, int]) -> dict[str, int]:
    """What is chosen for one path, for those as well that share its weights; of several the most."""
    most: dict[Held, int] = {}
    for layer in layers:
        most[layer.held] = max(chosen.get(layer.path, 0), most.get(layer.held, 0))
    return {layer.path: most[layer.held] for layer in layers if most[layer.held]}


def join_neighbours(layers: Sequence[Layer]) -> None:
    """Have static convolutions hand int8 to each other, with additions and activations between them taken in."""
    convs = [layer for layer in layers if layer.static]
    tails = {layer: _read_tail(layer) for layer in convs}
    # Two layers may both lead to one addition: the later one takes it in, and the other hands it its output.
    last = {tail.add: layer for layer, tail in tails.items()}
    adding = {layer: tail for layer, tail in tails.items() if tail.add is not None and last[tail.add] is layer}
    while True:
        given = {layer: _end(tails[layer], fused=layer in adding) for layer in convs}
        int8 = _int8(convs, given, adding)
        refused = [layer for layer, tail in adding.items() if tail.other not in {given[one] for one in int8}]
        if not refused:
            break
        for layer in refused:
            del adding[layer]
    for layer in convs:
        tail = tails[layer]
        layer.int8_out = layer in int8
        if layer in adding:
            layer.add = tail.other
        if layer.int8_out:
            layer.end = given[layer]
            layer.ends = tail.ends if given[layer] is tail.activation else _NO_ENDS
        else:
            layer.end = tail.add if layer in adding and tail.add is not None else tail.affine


def _read_tail(layer: Layer) -> _Tail:
    affine = end = layer.end
    add: Node | None = None
    other: Node | None = None
    user = only_user(end)
    if user is not None and user.target in (aten.add.Tensor, aten.add_.Tensor) and not user.kwargs:
        operands = [one for one in user.args if one is not end]
        if len(operands) == 1 and isinstance(operands[0], Node) and alike(operands[0], end):
            add, other, end = user, operands[0], user
    user = only_user(end)
    ends = read_ends(user) if user is not None else None
    if ends is None:
        # The activation may follow the layer itself, where the addition cannot be taken in.
        return _Tail(affine, add, other, None, _NO_ENDS)
    return _Tail(affine, add, other, user, ends)


def _end(tail: _Tail, *, fused: bool) -> Node:
    if tail.add is None or fused:
        return tail.activation or tail.add or tail.affine
    return tail.affine


def _int8(convs: Sequence[Layer], given: dict[Layer, Node], adding: dict[Layer, _Tail]) -> set[Layer]:
    """Those whose output nothing needs as floats."""
    readers: dict[Node, set[Node]] = {}
    for layer in convs:
        readers.setdefault(layer.x, set()).add(layer.takes[0])
    for tail in adding.values():
        if tail.other is not None and tail.add is not None:
            readers.setdefault(tail.other, set()).add(tail.add)
    return {
        layer for layer in convs if given[layer].users and set(given[layer].users) <= readers.get(given[layer], set())
    }


def only_user(node: Node) -> Node | None:
    """The one operation that uses a value; None where there are more, or it is an output."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def alike(a: Node, b: Node) -> bool:
    """Whether two values are tensors of one dtype and shape."""
    one, two = a.meta.get("val"), b.meta.get("val")
    return (
        isinstance(one, torch.Tensor)
        and isinstance(two, torch.Tensor)
        and one.dtype == two.dtype
        and tuple(one.shape) == tuple(two.shape)
    )


def read_ends(node: Node) -> Ends | None:
    """What a clipping activation clips to."""
    low, high = _NO_ENDS
    if node.target in (aten.relu.default, aten.relu_.default):
        return 0.0, high
    if node.target in (aten.relu6.default, aten.relu6_.default):
        return 0.0, 6.0
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default):
        given = [float(one) for one in node.args[1:] if isinstance(one, (int, float))]
        low, high = (*given, *(-1.0, 1.0)[len(given) :])
        return (low, high) if low <= 0 <= high else None
    if node.target in (aten.clamp.default, aten.clamp_.default, aten.clamp_min.default):
        given_ends = [*node.args[1:], None, None][:2]
        if any(one is not None and not isinstance(one, (int, float)) for one in given_ends):
            return None
        low = low if given_ends[0] is None else float(given_ends[0])  # type: ignore[arg-type]  # a number
        high = high if given_ends[1] is None else float(given_ends[1])  # type: ignore[arg-type]  # a number
        return (low, high) if low <= 0 <= high else None
    return None
