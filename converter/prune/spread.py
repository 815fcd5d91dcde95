"""How a network's channels are spread, and how those of a damaged copy go together with them, without data.

Means and covariances of channels are sent through the exported program, of the dense network and its copy at once. What
is known fixes them on the way: batch norms tell mean and spread of every channel, layer norms the length of all, an
activation's are in closed form (see `moments`). Positions of an image are taken to be independent of each other, and so
are what an addition adds and what the network reads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ferryman.converter.prune.moments import covariance, expand

aten = torch.ops.aten
CONVS = (aten.conv2d.default, aten.conv1d.default, aten.conv2d.padding, aten.conv1d.padding)
LAYERS = (*CONVS, aten.linear.default)
_CURVES = {
    *(aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.gelu.default, aten.silu.default),
    *(aten.hardswish.default, aten.leaky_relu.default, aten.sigmoid.default, aten.tanh.default, aten.elu.default),
    *(aten.clamp.default, aten.hardsigmoid.default),
}
_IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.silu_.default: aten.silu.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.clamp_.default: aten.clamp.default,
}
_PASSES = {
    *(aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default, aten.alias.default),
    *(
        aten.flatten.using_ints,
        aten.view.default,
        aten.reshape.default,
        aten.max_pool2d.default,
        aten.max_pool1d.default,
    ),
    *(
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.mean.dim,
        aten.transpose.int,
        aten.permute.default,
    ),
    *(
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.select.int,
        aten.squeeze.dim,
        aten.unsqueeze.default,
    ),
    *(aten.slice.Tensor, aten.expand.default),
}
"""Leave channels apart; what they do to the spread they do to all alike."""
_LARGEST = 2**27
"""Numbers of a grouped convolution's weights once spread out; above, its channels are not followed."""


@dataclass(frozen=True)
class Pair:
    """Channels of the dense network and of its copy, at one place."""

    mean: torch.Tensor
    """float64[channels]."""
    mean_copy: torch.Tensor
    own: torch.Tensor
    """float64[channels, channels]: covariance of the dense network's."""
    cross: torch.Tensor
    """Of the dense network's with the copy's."""
    copy: torch.Tensor
    """Of the copy's."""

    def each(self, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Pair:
        """The pair with all five changed; `change` is told how many channel dimensions each has."""
        return Pair(*(change(one, one.dim()) for one in (self.mean, self.mean_copy, self.own, self.cross, self.copy)))

    def scaled(self, factor: torch.Tensor) -> Pair:
        """Each channel times a number, in both."""
        return self.each(lambda one, dims: one * factor if dims == 1 else one * factor[:, None] * factor)

    @property
    def channels(self) -> int:
        """How many."""
        return len(self.mean)


def white(channels: int) -> Pair:
    """Channels of which nothing is known: alike, and independent."""
    zero, one = torch.zeros(channels, dtype=torch.float64), torch.eye(channels, dtype=torch.float64)
    return Pair(zero, zero, one, one, one)


Weights = tuple[torch.Tensor, torch.Tensor | None]
"""Of a layer, and its bias."""
Change = Callable[[str, Pair], Weights]
"""Told a layer's path and what it reads: the copy's weights there."""


class Spread:
    """Sends pairs through a program."""

    def __init__(self, program: torch.export.ExportedProgram, model: nn.Module, change: Change) -> None:
        """Take a program.

        Args:
            program: the model's.
            model: dense; its weights are read as each layer is reached.
            change: asked for the copy's weights, layer by layer in the order of calls.
        """
        self._graph = program.graph
        self._model = model
        self._change = change
        specs = program.graph_signature.input_specs
        self._names = {one.arg.name: str(one.target) for one in specs if one.target}
        self._pairs: dict[Node, Pair] = {}
        self._parts: dict[Node, Sequence[Pair]] = {}
        self._by_operator: dict[Any, Callable[[Node], Pair | None]] = {
            **dict.fromkeys(LAYERS, self._layer),
            **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor), self._join),
            **dict.fromkeys((aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default), self._split),
            aten.embedding.default: self._look_up,
            aten.cat.default: self._cat,
            operator.getitem: self._part,
        }

    @torch.no_grad()
    def run(self) -> None:
        """Go through all of it."""
        for node in self._graph.nodes:
            if node.op == "call_function":
                made = self._make(node)
                if made is not None:
                    self._pairs[node] = made

    def _value(self, node: object) -> torch.Tensor | None:
        """A parameter or buffer of the dense model."""
        name = self._names.get(node.name) if isinstance(node, Node) else None
        if name is None:
            return None
        owner, _, attribute = name.rpartition(".")
        value = getattr(self._model.get_submodule(owner), attribute)
        return value.detach().double() if isinstance(value, torch.Tensor) and value.is_floating_point() else None

    def _make(self, node: Node) -> Pair | None:
        """What an operator gives; None: it is not followed."""
        target: Any = node.target
        if target in self._by_operator:
            return self._by_operator[target](node)
        pair = self._pairs.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
        if pair is None or target in _PASSES:
            return pair
        if "batch_norm" in str(target):
            return self._batch_norm(node, pair)
        if target in _CURVES or target in _IN_PLACE:
            curve = _IN_PLACE.get(target, target)
            return _bend(pair, lambda x: curve(x, *node.args[1:], **node.kwargs))
        return self._layer_norm(node, pair) if target == aten.layer_norm.default else None

    def _look_up(self, node: Node) -> Pair | None:
        table = self._value(node.args[0])
        return None if table is None else _table(table)

    def _part(self, node: Node) -> Pair | None:
        parts = self._parts.get(node.args[0])  # type: ignore[arg-type]  # a Node
        return None if parts is None else parts[node.args[1]]  # type: ignore[index]  # a number

    def _layer(self, node: Node) -> Pair | None:
        weight = self._value(node.args[1])
        bias = self._value(node.args[2]) if len(node.args) > 2 else None  # noqa: PLR2004  # x, weight, bias
        if weight is None:
            return None
        path = self._names[node.args[1].name].rpartition(".")[0]  # type: ignore[union-attr]  # as just read
        layer = self._model.get_submodule(path)
        groups = getattr(layer, "groups", 1)
        pair = self._pairs.get(node.args[0]) if isinstance(node.args[0], Node) else None
        inputs = weight.shape[1] * groups
        if pair is None or inputs % pair.channels:
            shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]  # ditto
            pair = white(shape[1] if node.target in CONVS else shape[-1])
        changed, offset = self._change(path, pair)
        if groups > 1 and weight.numel() * groups > _LARGEST and groups != inputs:
            return None
        one, other = (_taps(value, groups, pair.channels) for value in (weight, changed.double()))
        return Pair(
            _through(one, pair.mean, bias),
            _through(other, pair.mean_copy, None if offset is None else offset.double()),
            _around(one, pair.own, one),
            _around(one, pair.cross, other),
            _around(other, pair.copy, other),
        )

    def _batch_norm(self, node: Node, pair: Pair) -> Pair | None:
        ones = torch.ones(pair.channels, dtype=torch.float64)
        scale, shift = (self._value(one) for one in node.args[1:3])
        scale, shift = ones if scale is None else scale, 0 * ones if shift is None else shift
        if len(scale) != pair.channels:
            return None
        # What the dense channels are is known; the copy's are as far from them as they were.
        spread = pair.own.diagonal().clamp(min=1e-24).sqrt()
        apart = pair.mean_copy - pair.mean
        moved = pair.scaled(scale / spread)
        return Pair(shift, shift + apart * scale / spread, moved.own, moved.cross, moved.copy)

    def _layer_norm(self, node: Node, pair: Pair) -> Pair | None:
        scale, shift = (self._value(one) for one in node.args[2:4])
        if scale is None or shift is None or len(scale) != pair.channels:
            return None
        power = pair.own.diagonal().mean() + pair.mean.var(correction=0)
        factor = scale / power.clamp(min=1e-24).sqrt()
        moved = pair.each(lambda one, dims: one - pair.mean.mean() if dims == 1 else one).scaled(factor)
        return Pair(moved.mean + shift, moved.mean_copy + shift, moved.own, moved.cross, moved.copy)

    def _join(self, node: Node) -> Pair | None:
        pairs = [self._pairs.get(one) if isinstance(one, Node) else None for one in node.args[:2]]
        known = [one for one in pairs if one is not None]
        if not known:
            return None
        first = known[0]
        added = node.target in (aten.add.Tensor, aten.add_.Tensor)
        if len(known) == 1:
            other = node.args[1] if pairs[0] is not None else node.args[0]
            if isinstance(other, int | float):
                return (
                    first.each(lambda one, dims: one + other if dims == 1 else one)
                    if added
                    else first.scaled(torch.full((first.channels,), float(other), dtype=torch.float64))
                )
            return first if added else None
        second = known[1]
        if first.channels != second.channels:
            return None
        if not added:  # a gate, by what it is on average
            return first.scaled(second.mean)
        return Pair(
            *(getattr(first, name) + getattr(second, name) for name in ("mean", "mean_copy", "own", "cross", "copy"))
        )

    def _cat(self, node: Node) -> Pair | None:
        several: Sequence[Any] = node.args[0]  # type: ignore[assignment]  # tensors
        pairs = [self._pairs.get(one) for one in several]
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        shape = node.meta["val"].shape
        whole = [one for one in pairs if one is not None]
        if len(whole) != len(pairs) or shape[dim] != sum(one.channels for one in whole):
            return whole[-1] if whole and len(shape) == 3 and dim == 1 else None  # noqa: PLR2004  # tokens, put in a row
        return Pair(
            torch.cat([one.mean for one in whole]),
            torch.cat([one.mean_copy for one in whole]),
            *(torch.block_diag(*(getattr(one, name) for one in whole)) for name in ("own", "cross", "copy")),  # type: ignore[no-untyped-call]  # torch
        )

    def _split(self, node: Node) -> None:
        pair = self._pairs.get(node.args[0])  # type: ignore[arg-type]  # a Node
        if pair is None:
            return
        sizes = [one.shape for one in node.meta["val"]]
        dim: Any = node.args[2] if len(node.args) > 2 else 0  # noqa: PLR2004  # x, sizes, dimension
        if sum(size[dim] for size in sizes) != pair.channels:
            return
        ends, parts = 0, []
        for size in sizes:
            part = slice(ends, ends + size[dim])
            parts.append(pair.each(lambda one, dims, part=part: one[part] if dims == 1 else one[part, part]))  # type: ignore[misc]  # bound now
            ends += size[dim]
        self._parts[node] = parts


def _taps(weight: torch.Tensor, groups: int, channels: int) -> torch.Tensor:
    """[out, channels, taps]; of a depthwise convolution [out, taps]."""
    if groups > 1 and weight.shape[1] == 1 and groups == len(weight):
        return weight.flatten(1)
    if groups > 1:
        parts = weight.flatten(2).unflatten(0, (groups, -1))  # type: ignore[no-untyped-call]
        spread = [torch.block_diag(*parts[..., tap]) for tap in range(parts.shape[-1])]  # type: ignore[no-untyped-call]  # torch
        return torch.stack(spread, -1)
    return weight.reshape(len(weight), channels, -1)


def _through(taps: torch.Tensor, mean: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    summed = taps.sum(-1)
    made = summed * mean if taps.dim() == 2 else summed @ mean  # noqa: PLR2004  # depthwise
    return made if bias is None else made + bias


def _around(left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The covariance of what two layers give, of that of what they read."""
    if left.dim() == 2:  # noqa: PLR2004  # depthwise
        return middle * (left @ right.T)
    made = torch.zeros(len(left), len(right), dtype=torch.float64)
    for tap in range(left.shape[-1]):
        made += left[..., tap] @ middle @ right[..., tap].T
    return made


def _table(table: torch.Tensor) -> Pair:
    mean, own = table.mean(0), torch.cov(table.T, correction=0)
    return Pair(mean, mean, own, own, own)


def _bend(pair: Pair, curve: Callable[[torch.Tensor], torch.Tensor]) -> Pair:
    """Both behind an activation."""
    spreads = [one.diagonal().clamp(min=0).sqrt() for one in (pair.own, pair.copy)]
    one, other = (
        expand(mean, spread, curve) for mean, spread in zip((pair.mean, pair.mean_copy), spreads, strict=True)
    )

    def alike(both: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (both / (a[:, None] * b).clamp(min=1e-24)).clamp(-1, 1)

    own = covariance(one, one, alike(pair.own, spreads[0], spreads[0]))
    own.diagonal().copy_(one.variance)
    copy = covariance(other, other, alike(pair.copy, spreads[1], spreads[1]))
    copy.diagonal().copy_(other.variance)
    cross = covariance(one, other, alike(pair.cross, spreads[0], spreads[1]))
    # The series is cut off: what it lacks of a channel with itself it lacks of the channel with its copy.
    lack = one.variance - covariance(one, one, torch.eye(len(own), dtype=torch.float64)).diagonal()
    same = alike(pair.cross, spreads[0], spreads[1]).diagonal().clamp(min=0).pow(12)
    cross.diagonal().add_(lack * same)
    return Pair(one.mean, other.mean, own, cross, copy)
