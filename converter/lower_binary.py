"""Binary layers of a captured program -> ferryman's operators; everything else is left as it was.

A layer is taken when its weights have one magnitude in each output channel. Its input counts as signs when it is the
sign of something (see `recognise`), else as real numbers. What follows and is a scale and an offset per channel (batch
norms too) is folded into the operator. Where nothing but other binary layers sees the sign of its output, that comes
out packed, by an integer threshold per channel that is found by computing what lies between for every possible dot
product.

The output channels of a convolution are computed each on its own, or along a spanning tree where that measures better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ferryman.converter import kernel_calls, operators
from ferryman.converter.affine import read_affine
from ferryman.converter.bits import pack_weights
from ferryman.converter.capture import Captured, recapture
from ferryman.converter.channel_order import Measured, choose_order
from ferryman.converter.functional import functional_module
from ferryman.converter.inputs import input_sets
from ferryman.converter.layer_calls import (
    LayerCall,
    is_layer,
    merge_padding,
    padded_beyond,
    path_of,
    read_call,
    read_pad,
)
from ferryman.converter.recognise import Recogniser
from ferryman.converter.two_values import split_two_valued
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.manifest import LayerForm

aten = torch.ops.aten
_IMAGE_RANK = 4
_ZERO_CHECK_SETS = 4
_DOTS_AT_ONCE = 512
_SAME = 1e-6
_NAMED = 5


@dataclass(eq=False)
class _Layer:
    """A convolution or linear layer that becomes an operator."""

    node: Node
    sources: tuple[Node, ...]
    """What the operator may be fed: floats whose signs count, all with the same signs, or real numbers."""
    sign: Node | None
    """The node that is the sign of the sources; None for real activations."""
    assumed: str
    """What must hold of the input, where the verification's inputs only did not contradict it; empty: nothing."""
    weight: torch.Tensor
    """float32[out, in / groups, kh, kw], -1 and 1."""
    scale: torch.Tensor
    bias: torch.Tensor
    """float32[out] each, of the dot products; what is folded in changes them."""
    window: operators.Window | None
    """None: a linear layer."""
    ends: tuple[Node, ...]
    """Whose value the operator gives: `node`, or the last node folded into it, or the signs of either."""
    threshold: torch.Tensor | None = None
    """int32[out]: the operator gives packed signs."""
    folded: tuple[Node, ...] = ()
    """Nodes that only the operator still has the values of."""
    packed_by: _Layer | None = None
    """Whose packed signs the operator is fed."""
    along: Measured | None = None
    """The tree along which its channels are computed; None: each on its own."""

    @property
    def out(self) -> int:
        return int(self.weight.shape[0])

    @property
    def axis(self) -> int:
        """Of the output's channels."""
        return 1 if self.window else int(self.node.meta["val"].dim()) - 1

    @property
    def depth(self) -> int:
        """Inputs of one output."""
        return int(self.weight[0].numel())


def lower_binary(captured: Captured) -> tuple[Captured, tuple[LayerForm, ...]]:
    """Rewrite a program; `eager` stays the original module.

    Returns:
        The program with operators in the place of its binary layers, and what became of each convolution and linear.

    Raises:
        ModelError: no layer of it is binary, or the result cannot be captured again.
    """
    module = functional_module(captured.program)
    split_two_valued(module)
    recogniser = Recogniser(module)
    zeros = _Zeros(captured, module)
    found = {
        node: _take(node, call, recogniser, zeros)
        if (call := read_call(node))
        else "only 2-D ones of a batch are taken"
        for node in module.graph.nodes
        if is_layer(node)
    }
    layers = [one for one in found.values() if isinstance(one, _Layer)]
    if not layers:
        why = "; ".join(f"{path_of(node)}: {note}" for node, note in list(found.items())[:_NAMED])
        raise ModelError(
            f"{captured.source.name} has no binary layer ({why or 'no convolution and no linear'}): the weights of one "
            "have one magnitude in each output channel, as those of ferryman's BinaryConv2d and BinaryLinear"
        )
    for layer in layers:
        _pack_output(layer, layers, recogniser)
    for layer in layers:
        if layer.threshold is None:
            _fold(layer, recogniser)
        layer.along = _choose_order(layer)
    forms = tuple(
        LayerForm(path=path_of(node), form="binary", note=_describe(one))
        if isinstance(one, _Layer)
        else LayerForm(path=path_of(node), form="fp32", note=one)
        for node, one in found.items()
    )
    made: dict[Node, Node] = {}
    folded = {node for layer in layers for node in layer.folded}
    for index, layer in enumerate(layers):
        feed = layer.packed_by.ends if layer.packed_by else [one for one in layer.sources if one not in folded]
        source = made.get(feed[-1], feed[-1])
        made |= dict.fromkeys(layer.ends, _insert(module, layer, index, source))
    return recapture(captured, module, "binary operators"), forms


def _describe(layer: _Layer) -> str:
    given = "reals" if layer.sign is None else "signs" if layer.packed_by is None else "packed signs"
    along = f", {layer.along.describe()}" if layer.along else ""
    assumed = f"; assumes that {layer.assumed}" if layer.assumed else ""
    return f"{given} in, {'floats' if layer.threshold is None else 'packed signs'} out{along}{assumed}"


# Finding layers.


class _Zeros:
    """Which nodes are zero somewhere, over the example and some random inputs."""

    def __init__(self, captured: Captured, module: GraphModule) -> None:
        self._captured = captured
        self._module = module
        self._seen: set[Node] | None = None

    def __contains__(self, node: Node) -> bool:
        if self._seen is None:
            self._seen = set()
            runner = _Watcher(self._module, self._seen)
            with torch.no_grad():
                for inputs in input_sets(self._captured, _ZERO_CHECK_SETS):
                    runner.run(*inputs, enable_io_processing=False)
        return node in self._seen


class _Watcher(torch.fx.Interpreter):
    def __init__(self, module: GraphModule, seen: set[Node]) -> None:
        super().__init__(module)
        self._seen_zero = seen

    def run_node(self, n: Node) -> Any:  # noqa: ANN401  # Interpreter's signature
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and bool((value == 0).any()):
            self._seen_zero.add(n)
        return value


def _take(node: Node, call: LayerCall, recogniser: Recogniser, zeros: _Zeros) -> _Layer | str:
    """A layer, or why it is none."""
    constants = recogniser.constants
    if call.weight not in constants or (call.bias is not None and call.bias not in constants):
        return "its weights depend on the input"
    weight = constants[call.weight]
    if {weight.dtype, node.meta["val"].dtype, call.x.meta["val"].dtype} != {torch.float32}:
        return f"its numbers are {weight.dtype}"
    magnitude = weight.abs().flatten(1)
    # A straight-through estimator, (s - c).detach() + c, rounds.
    if not bool(((magnitude - magnitude[:, :1]).abs() <= _SAME * magnitude[:, :1]).all()):
        return "its weights have more than one magnitude in a channel"
    source, window = call.x, call.window
    padded = read_pad(source) if window else None
    if window and padded and recogniser.sign(padded[0]):
        merged = merge_padding(window, *padded[1:])
        if merged is not None:
            source, window = padded[0], merged
    if window and padded_beyond(window):
        return "its padding is wider than its kernel reaches"
    sign = recogniser.sign(source)
    if sign is not None and sign.at_zero != 1 and (sign.of in zeros or sign.of.op == "placeholder"):
        where = "is 0 in places" if sign.of in zeros else "is the model's, and may be 0"
        return f"its input {where}, where its sign activation gives {sign.at_zero:g} and not 1"
    signs = torch.where(weight >= 0, 1.0, -1.0)
    out = weight.shape[0]
    return _Layer(
        node=node,
        sources=sign.sources if sign else (call.x,),
        sign=sign.node if sign else None,
        assumed="" if sign is None or sign.at_zero == 1 else "its input is never exactly 0",
        weight=signs.reshape(*weight.shape, *[1] * (_IMAGE_RANK - weight.dim())),
        scale=magnitude[:, 0].clone(),
        bias=torch.zeros(out) if call.bias is None else constants[call.bias].clone(),
        window=(window if sign else call.window),
        ends=(node,),
    )


# What follows a layer.


def _fold(layer: _Layer, recogniser: Recogniser) -> None:
    """Take in the scales and offsets that nothing else sees before."""
    while len(layer.ends[0].users) == 1:
        (user,) = layer.ends[0].users
        factor_offset = read_affine(user, layer.ends[0], layer.out, layer.axis, recogniser.constants)
        if factor_offset is None:
            return
        factor, offset = factor_offset
        scale, bias = layer.scale * factor, layer.bias * factor + offset
        if user.meta["val"].dtype != torch.float32 or not bool((scale.isfinite() & bias.isfinite()).all()):
            return
        layer.scale, layer.bias = scale, bias
        layer.folded += layer.ends
        layer.ends = (user,)


def _pack_output(layer: _Layer, layers: Sequence[_Layer], recogniser: Recogniser) -> None:
    """Have the operator give packed signs, where the signs of its output are all that anything sees of it."""
    if layer.sign is None:
        return
    signs = {other.sign: recogniser.region(layer.node, other.sign) for other in layers if other.sign is not None}
    regions = {sign: region for sign, region in signs.items() if region}
    readers = [other for other in layers if other.sign in regions]
    inside = {layer.node, *(node for region in regions.values() for node in region)}
    # A reader may pad the sign first.
    nodes = {other.node for other in readers}
    pads = {node for other in readers for node in other.node.all_input_nodes if read_pad(node)}
    seen = {user for node in inside for user in node.users} | {user for node in pads for user in node.users}
    if not readers or seen - inside - pads - nodes:
        return
    if any((other.window is None) != (layer.window is None) for other in readers):
        return
    found = [_find_threshold(layer, sign, recogniser) for sign in regions]
    turned, thresholds = found[0] or (None, None)
    if (
        turned is None
        or thresholds is None
        or any(one is None or not torch.equal(one[0], turned) or not torch.equal(one[1], thresholds) for one in found)
    ):
        return
    layer.threshold = thresholds
    layer.weight = torch.where(turned.reshape(-1, 1, 1, 1), -layer.weight, layer.weight)
    layer.ends = tuple(regions)
    for other in readers:
        other.packed_by = layer


def _find_threshold(layer: _Layer, sign: Node, recogniser: Recogniser) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which channels' signs fall as the dot product rises, and the least dot product (there, negated) that gives +1.

    None where a sign is neither -1 nor 1, or changes more than once.
    """
    rank = layer.node.meta["val"].dim()
    shape = [1] * rank
    shape[layer.axis] = layer.out
    scale, bias = layer.scale.reshape(shape), layer.bias.reshape(shape)
    before: torch.Tensor | None = None
    rises, falls = torch.zeros(layer.out, dtype=torch.int32), torch.zeros(layer.out, dtype=torch.int32)
    # Beyond every dot product where there is no +1.
    first = torch.full((layer.out,), layer.depth + 1)
    last = torch.full((layer.out,), -layer.depth - 1)
    for some in torch.split(torch.arange(-layer.depth, layer.depth + 1), _DOTS_AT_ONCE):
        raw = some.reshape(-1, *[1] * (rank - 1)) * scale + bias
        found = recogniser.evaluate(layer.node, sign, raw)
        if found is None or found.shape != raw.shape or not bool((found.abs() == 1).all()):
            return None
        positive = found.reshape(-1, layer.out) > 0
        joined = positive if before is None else torch.cat((before, positive))
        steps = joined[1:].int() - joined[:-1].int()
        rises += (steps == 1).sum(0)
        falls += (steps == -1).sum(0)
        dots = torch.where(positive, some[:, None], layer.depth + 1)
        first = torch.minimum(first, dots.min(0).values)
        last = torch.maximum(last, torch.where(positive, some[:, None], -layer.depth - 1).max(0).values)
        before = positive[-1:]
    if bool((rises + falls > 1).any()):
        return None
    turned = falls == 1
    return turned, torch.where(turned, -last, first).int()


def _choose_order(layer: _Layer) -> Measured | None:
    if layer.window is None or layer.sign is None:
        return None
    channels, kernel, stride, padding, dilation, groups, pad_value, _ = layer.window
    batch, _, *spatial = layer.sources[0].meta["val"].shape
    if not all(isinstance(size, int) for size in spatial):
        return None  # no size to measure at
    kind = kernel_calls.SIGNS if layer.packed_by is None else kernel_calls.BITS
    numbers = (channels, layer.out, *kernel, *stride, *dilation, *padding, groups, pad_value, kind)
    images = batch if isinstance(batch, int) else 1
    bits_out = int(layer.threshold is not None)
    conv = kernel_calls.Conv(images, *spatial, *numbers, bits_out, kernel_calls.CHANNELS_FIRST)
    return choose_order(layer.weight.numpy(), conv)


# Rewriting.


def _insert(module: GraphModule, layer: _Layer, index: int, source: Node) -> Node:
    groups = layer.window[5] if layer.window else 1
    words = layer.along.tree.words if layer.along else pack_weights(layer.weight.numpy(), groups)
    tensors = {"weight": torch.from_numpy(words)}
    tensors |= {"scale": layer.scale, "bias": layer.bias} if layer.threshold is None else {"threshold": layer.threshold}
    graph = module.graph
    with graph.inserting_after(min(layer.ends)):
        constants = []
        for name, value in tensors.items():
            module.register_buffer(f"ferryman_{index}_{name}", value.contiguous())
            constants.append(graph.get_attr(f"ferryman_{index}_{name}"))
        numbers = layer.window or (layer.depth,)
        name = "binary_conv2d" if layer.window else "binary_linear"
        name += ("_tree" if layer.along else "") + ("" if layer.threshold is None else "_sign")
        real = () if layer.threshold is not None or layer.along else (layer.sign is None,)
        made = graph.call_function(
            getattr(torch.ops.ferryman, name).default, (source, *constants, *map(_listed, numbers), *real)
        )
    for constant in constants:  # the graph's order: constants before their user
        made.prepend(constant)
    made.meta = {key: layer.node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in layer.node.meta}
    for end in layer.ends:
        end.replace_all_uses_with(made)
    return made


def _listed(value: Any) -> Any:  # noqa: ANN401  # a number or several
    return list(value) if isinstance(value, Sequence) else value
