"""Layers that read another's channels one by one: what stands between, and how the channels are spread, without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ferryman.converter.prune.moments import Series, expand
from ferryman.converter.quiet import quiet

aten = torch.ops.aten
_LAYERS = (aten.linear.default, aten.conv2d.default, aten.conv1d.default, aten.conv2d.padding, aten.conv1d.padding)
_CURVES = (
    *(aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default, aten.hardtanh.default),
    *(aten.hardtanh_.default, aten.gelu.default, aten.gelu_.default, aten.silu.default, aten.silu_.default),
    *(aten.hardswish.default, aten.hardswish_.default, aten.leaky_relu.default, aten.leaky_relu_.default),
    *(aten.sigmoid.default, aten.tanh.default, aten.elu.default, aten.clamp.default, aten.clamp_.default),
)
_IN_PLACE = {
    aten.relu_.default: aten.relu.default, aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default, aten.gelu_.default: aten.gelu.default,
    aten.silu_.default: aten.silu.default, aten.hardswish_.default: aten.hardswish.default,
    aten.leaky_relu_.default: aten.leaky_relu.default, aten.clamp_.default: aten.clamp.default,
}  # fmt: skip
_PASSES = (
    *(aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default, aten.alias.default),
    *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.max_pool2d.default),
    *(aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.max_pool1d.default),
)
"""Leave channels apart; pooling changes their spread, and all alike."""


@dataclass(frozen=True)
class Chain:
    """A layer, and one that reads its channels."""

    first: str
    second: str
    norm: str | None
    """The last batch norm between them."""
    depthwise: tuple[str, ...]
    """Depthwise convolutions between them."""
    curve: Callable[[torch.Tensor], torch.Tensor]
    """The last activations between them, of numbers."""
    before: Node
    """What the first reads."""


def find_chains(model: nn.Module, example: tuple[Any, ...]) -> list[Chain]:
    """Pairs of layers between which nothing mixes channels, or adds anything, in the order of the second.

    Args:
        model: in eval mode; not changed.
        example: positional inputs of one call.
    """
    try:
        with quiet():
            program = torch.export.export(model, example, strict=False)
    except Exception:  # noqa: BLE001  # torch.export raises many kinds; then no chain is known
        return []
    specs = program.graph_signature.input_specs
    owners = {one.arg.name: str(one.target).rpartition(".")[0] for one in specs if one.target}
    found = []
    for node in program.graph.nodes:
        if node.target in _LAYERS and (path := _path(node, owners)) and not _is_depthwise(model, path):
            chain = _walk(model, node.args[0], path, owners)
            if chain is not None:
                found.append(chain)
    return found


def _path(node: Node, owners: Mapping[str, str]) -> str | None:
    weight = node.args[1]
    return owners.get(weight.name) if isinstance(weight, Node) else None


def _is_depthwise(model: nn.Module, path: str) -> bool:
    layer = model.get_submodule(path)
    return getattr(layer, "groups", 1) > 1 and layer.groups == layer.in_channels == layer.out_channels


def _walk(model: nn.Module, node: Node, second: str, owners: Mapping[str, str]) -> Chain | None:
    curves: list[Node] = []
    norm: str | None = None
    depthwise: list[str] = []
    whole = False
    while isinstance(node, Node):
        if node.target in _LAYERS:
            path = _path(node, owners)
            if path is None:
                return None
            if not _is_depthwise(model, path):
                return Chain(path, second, norm, tuple(depthwise), _curve(curves), node.args[0])  # type: ignore[arg-type]  # a Node
            depthwise.append(path)
            whole = True
        elif node.target in _CURVES:
            if not whole and norm is None:
                curves.append(node)
        elif "batch_norm" in str(node.target):
            scale = node.args[1]
            if norm is None and not depthwise:
                norm = owners.get(scale.name) if isinstance(scale, Node) else None
                if norm is None:
                    return None
        elif node.target not in _PASSES:
            return None
        node = node.args[0]  # type: ignore[assignment]  # a Node, or the walk ends
    return None


def _curve(nodes: list[Node]) -> Callable[[torch.Tensor], torch.Tensor]:
    def curve(x: torch.Tensor) -> torch.Tensor:
        for node in reversed(nodes):
            x = _IN_PLACE.get(node.target, node.target)(x, *node.args[1:], **node.kwargs)
        return x

    return curve


def spread_before(model: nn.Module, chain: Chain) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and variance of each channel that a chain's first layer reads; None: not known.

    Known are those behind a layer norm, and behind a batch norm with or without activations.
    """
    curves: list[Node] = []
    node: Any = chain.before
    program_names = {name.replace(".", "_"): name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    while isinstance(node, Node):
        if node.target in _CURVES:
            curves.append(node)
        elif node.target == aten.layer_norm.default or "batch_norm" in str(node.target):
            at = (2, 3) if node.target == aten.layer_norm.default else (1, 2)
            if len(node.args) <= at[1] or not all(isinstance(node.args[one], Node) for one in at):
                return None
            held = [program_names.get(node.args[one].name.split("_", 1)[1]) for one in at]  # type: ignore[union-attr]  # Nodes
            if None in held:
                return None
            scale, shift = (model.get_parameter(str(one)).detach() for one in held)
            series = expand(shift, scale, _curve(curves))
            return series.mean, series.variance
        elif node.target not in _PASSES:
            return None
        node = node.args[0]
    return None


__all__ = ["Chain", "Series", "find_chains", "spread_before"]
