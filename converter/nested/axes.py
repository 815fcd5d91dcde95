"""Hidden axes of a captured program: where units can be cut off from the end, and nothing else changes.

An axis is what one layer reads (a transformer's second feed-forward layer, a block's last convolution) and others
write for it alone, with nothing between that mixes units. So it can be computed in parts, a part of the units each,
whose results add up: y = sum over j of W_j f(V_j x). The first parts alone are the sub-network of MatFormer (Devvrit
et al. 2024), and weights of a part are the same tensors in every sub-network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ferryman.converter.layer_calls import is_layer, read_call
from ferryman.converter.recognise import attribute

aten = torch.ops.aten
_UNARY = {
    *(aten.relu, aten.relu6, aten.gelu, aten.silu, aten.mish, aten.sigmoid, aten.tanh, aten.hardtanh, aten.hardswish),
    *(aten.hardsigmoid, aten.leaky_relu, aten.elu, aten.selu, aten.celu, aten.softplus, aten.clamp, aten.clamp_min),
    *(aten.clamp_max, aten.abs, aten.neg, aten.exp, aten.square, aten.pow, aten.dropout, aten.clone, aten.contiguous),
    *(aten.alias, aten.to, aten.detach),
}
"""Of one tensor, unit by unit; what else they are given is numbers."""
_SPATIAL = {
    *(aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.constant_pad_nd, aten.pad, aten.mean),
    *(aten.upsample_nearest2d, aten.upsample_bilinear2d),
}
"""Of images, channel by channel."""
_BINARY = {aten.add, aten.sub, aten.mul, aten.div, aten.maximum, aten.minimum}
_CHANNEL = 1
_IMAGE_RANK = 4


@dataclass(frozen=True)
class Axis:
    """Hidden units that one layer reads."""

    name: str
    """Path of the layer that reads them."""
    width: int
    reader: Node
    writers: tuple[Node, ...]
    between: tuple[Node, ...]
    """In the order they are computed."""

    @property
    def kind(self) -> object:
        """Axes of one kind cost the same."""
        shapes = (tuple(node.args[1].meta["val"].shape) for node in self.layers)  # type: ignore[union-attr]
        return self.width, tuple(self.reader.meta["val"].shape), tuple(shapes)

    @property
    def layers(self) -> tuple[Node, ...]:
        """Those whose weights are cut."""
        return (*self.writers, *(node for node in self.between if is_layer(node)), self.reader)


def find_axes(module: GraphModule) -> dict[str, Axis | str]:
    """Every convolution and linear layer: the axis that it reads, or why it reads none.

    Of two that share a layer the first in the program is an axis; the other stays whole.

    Args:
        module: of a captured program, in functional form.
    """
    found: dict[str, Axis | str] = {}
    taken: set[Node] = set()
    held = _Held(module)
    for node in module.graph.nodes:
        if not is_layer(node):
            continue
        axis = _find(node, held)
        if isinstance(axis, Axis):
            if taken & set(axis.layers):
                axis = "a layer before it belongs to another axis already"
            else:
                taken.update(axis.layers)
        found[name_of(node)] = axis
    return found


def name_of(node: Node) -> str:
    """The path of a layer, by its weight."""
    weight = node.args[1]
    name = str(weight.target) if isinstance(weight, Node) and weight.op == "get_attr" else node.name
    return name.removesuffix(".weight")


class _Held:
    """Parameters and buffers, by how often they are read, under whatever name."""

    def __init__(self, module: GraphModule) -> None:
        self._of = {
            node: attribute(module, str(node.target)).data_ptr()
            for node in module.graph.nodes
            if node.op == "get_attr" and isinstance(attribute(module, str(node.target)), torch.Tensor)
        }
        self._readers: Counter[int] = Counter()
        for node, place in self._of.items():
            self._readers[place] += len(node.users)

    def problem(self, *several: object) -> str:
        """Why these cannot be cut; empty where they can. None: not given."""
        for one in several:
            if one is None:
                continue
            if not isinstance(one, Node) or one not in self._of:
                return "its weights are computed"
            if self._readers[self._of[one]] > 1:
                return "its weights are read elsewhere as well"
        return ""


def _find(reader: Node, held: _Held) -> Axis | str:
    call = read_call(reader)
    if call is None:
        return "neither a linear layer nor a 2-D convolution"
    if call.window is not None and call.window[5] != 1:
        return "grouped"
    if reason := held.problem(call.weight, call.bias):
        return reason
    width = int(call.weight.meta["val"].shape[1])
    dim = _CHANNEL if call.window is not None else -1
    walk = _Walk(width, dim, held)
    try:
        walk.back(call.x)
    except _Mixed as mixed:
        return str(mixed)
    inside = {reader, *walk.between, *walk.writers}
    for node in (*walk.between, *walk.writers):
        if out := [user.name for user in node.users if user not in inside]:
            return f"{out[0]} reads its units as well"
    order = {node: at for at, node in enumerate(reader.graph.nodes)}
    return Axis(
        name_of(reader),
        width,
        reader,
        tuple(sorted(walk.writers, key=order.__getitem__)),
        tuple(sorted(walk.between, key=order.__getitem__)),
    )


class _Mixed(Exception):  # says why, and goes no further than `_find`
    """Units are mixed, or come from elsewhere."""


class _Walk:
    """From a layer's input back to the layers that write it."""

    def __init__(self, width: int, dim: int, held: _Held) -> None:
        self._width = width
        self._dim = dim
        self._held = held
        self.writers: set[Node] = set()
        self.between: set[Node] = set()

    def back(self, node: object) -> None:
        if not isinstance(node, Node):
            raise _Mixed("a constant")
        if node in self.writers or node in self.between:
            return
        shape = node.meta["val"].shape if isinstance(node.meta.get("val"), torch.Tensor) else ()
        if len(shape) < 2 or shape[self._dim] != self._width:  # noqa: PLR2004  # units and what they are computed for
            raise _Mixed(f"{node.name} mixes its units")
        if is_layer(node):
            self._layer(node)
            return
        packet = getattr(node.target, "overloadpacket", None)
        image = len(shape) == _IMAGE_RANK and self._dim == _CHANNEL
        alone = len(node.all_input_nodes) == 1
        if alone and (packet in _UNARY or (packet in _SPATIAL and image and _keeps_channels(node))):
            parents = [node.args[0]]
        elif packet is aten.batch_norm and image:
            if reason := self._held.problem(*node.args[1:5]):
                raise _Mixed(f"{node.name}: {reason}")
            parents = [node.args[0]]
        elif packet in _BINARY:
            parents = list(self._operands(node))
        else:
            raise _Mixed(f"{node.name} mixes its units" if node.op == "call_function" else "an input of the model")
        self.between.add(node)
        for parent in parents:
            self.back(parent)

    def _layer(self, node: Node) -> None:
        call = read_call(node)
        if call is None or (call.window is None) != (self._dim == -1):
            raise _Mixed(f"{node.name} is neither a linear layer nor a 2-D convolution")
        if reason := self._held.problem(call.weight, call.bias):
            raise _Mixed(f"{node.name}: {reason}")
        if call.window is None or call.window[5] == 1:
            self.writers.add(node)
        elif call.window[5] == self._width == call.weight.meta["val"].shape[0]:
            self.between.add(node)
            self.back(call.x)
        else:
            raise _Mixed(f"{node.name} is grouped")

    def _operands(self, node: Node) -> Iterator[Node]:
        """Those that have units; another must be the same for all of them."""
        for one in node.args[:2]:
            if not isinstance(one, Node):
                continue
            shape = one.meta["val"].shape
            rank = len(node.meta["val"].shape)
            at = self._dim % rank - (rank - len(shape))
            if at < 0 or shape[at] == 1:
                continue
            if one.op == "get_attr" and shape[at] == self._width:
                raise _Mixed(f"{node.name} has a parameter of each unit")
            yield one


def _keeps_channels(node: Node) -> bool:
    target = getattr(node.target, "overloadpacket", None)
    if target is aten.mean:
        dims = node.args[1] if len(node.args) > 1 else None
        keeps = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim"))  # noqa: PLR2004
        return isinstance(dims, list | tuple) and keeps and {int(d) % _IMAGE_RANK for d in dims} <= {2, 3}
    if target in (aten.constant_pad_nd, aten.pad):
        pads = node.args[1]
        return isinstance(pads, list | tuple) and len(pads) <= _IMAGE_RANK
    return True


def parameters(axis: Axis) -> Mapping[Node, tuple[tuple[Node, int], ...]]:
    """Layer or norm -> the parameters that have units, and along which dimension."""
    found: dict[Node, tuple[tuple[Node, int], ...]] = {}
    for node in (*axis.writers, *axis.between):
        if is_layer(node):
            call = read_call(node)
            assert call is not None  # noqa: S101  # `find_axes` looked
            found[node] = ((call.weight, 0), *(((call.bias, 0),) if call.bias is not None else ()))
        elif getattr(node.target, "overloadpacket", None) is aten.batch_norm:
            found[node] = tuple((one, 0) for one in node.args[1:5] if isinstance(one, Node))
    weight = axis.reader.args[1]
    assert isinstance(weight, Node)  # noqa: S101  # `find_axes` looked
    found[axis.reader] = ((weight, 1),)
    return found
