"""What units are worth by how much of the right answer they are made responsible for.

Yeom et al. 2021, "Pruning by Explaining": layer-wise relevance propagation (LRP, Bach et al. 2015) hands the score of
the right class back through the network; a unit is worth what arrives at it. Convolutions share it by their positive
contributions (z+), other operators by all of theirs (epsilon); activations and batch norms, which are taken as part of
the layer before, hand it through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Interpreter, Node

from ferryman.converter.prune.criteria import Context, per_unit, readers
from ferryman.converter.quiet import quiet
from ferryman.converter.reason import reason
from ferryman.runtime.contracts.errors import CallerError, ModelError

aten = torch.ops.aten
_EPSILON = 1e-6
_CONVS = (aten.conv2d.default, aten.conv1d.default, aten.conv2d.padding, aten.conv1d.padding)
_HANDED = {
    *(aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default),
    *(aten.gelu.default, aten.silu.default, aten.silu_.default, aten.dropout.default, aten.relu6_.default),
    *(aten.leaky_relu.default, aten.leaky_relu_.default, aten.hardswish.default, aten.hardswish_.default),
    *(aten.layer_norm.default, aten.group_norm.default, aten.softmax.int, aten.sigmoid.default),
    *(aten.contiguous.default, aten.alias.default, aten.clone.default),
}
"""Hand what arrives to their first input as it is."""


class Relevance:
    """The relevance that arrives where a unit is read, over a few batches."""

    name, needs_data, comparable = "lrp", True, True

    def score(self, context: Context) -> list[torch.Tensor]:
        """As the protocol says; the loader's targets are class numbers.

        Raises:
            ModelError: the model cannot be followed.
        """
        totals = [torch.zeros(group.count) for group in context.groups]
        program: Any = None
        for inputs, targets in context.batches():
            if program is None:
                program, shape = _export(context.model, inputs), inputs.shape
            if inputs.shape != shape:
                continue  # a program is of one shape
            arrived = propagate(program, context.model, inputs, targets)
            for number, group in enumerate(context.groups):
                slots = [slot for slot, _ in readers(context.model, group) if slot.path in arrived]
                totals[number] += sum(per_unit(slot, arrived[slot.path]) for slot in slots)
        return totals


def _export(model: nn.Module, inputs: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        with quiet():
            return torch.export.export(model, (inputs,), strict=False)
    except Exception as error:
        raise ModelError(f"relevance cannot be propagated through the model: {reason(error)}") from error


class _Recorder(Interpreter):
    """Runs a program and keeps every value."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, torch.Tensor) else value
        return value


def propagate(
    program: torch.export.ExportedProgram, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Propagate the right classes' scores.

    Args:
        program: the model's, of these inputs' shape.
        model: in eval mode.
        inputs: a batch.
        targets: int[batch]: class numbers.

    Returns:
        Path of a convolution or linear layer -> float[inputs]: the relevance of what it reads, channel by channel, its
        absolute value summed over the rest.

    Raises:
        CallerError: outputs are no logits [N, classes], or targets no class numbers of them.
    """
    module: Any = program.module()
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(inputs)
    values = recorder.values
    output = next(node for node in module.graph.nodes if node.op == "output")
    last = output.all_input_nodes[0]
    logits = values[last]
    if len(output.all_input_nodes) != 1 or logits.dim() != 2 or targets.is_floating_point() or targets.dim() != 1:  # noqa: PLR2004  # [N, classes]
        raise CallerError("criterion lrp needs outputs that are logits [N, classes], and class numbers as targets")
    chosen = torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)
    relevance: dict[Node, torch.Tensor] = {last: chosen * logits}
    arrived: dict[str, torch.Tensor] = {}
    for node in reversed(list(module.graph.nodes)):
        if node.op != "call_function" or node not in relevance:
            continue
        for source, part in _share(node, values, relevance.pop(node)):
            relevance[source] = relevance[source] + part if source in relevance else part
            if source is node.args[0] and (path := _path(node, model)):
                axis = 1 if node.target in _CONVS else part.dim() - 1
                arrived[path] = part.detach().abs().movedim(axis, 0).flatten(1).sum(1)
    return arrived


def _path(node: Node, model: nn.Module) -> str | None:
    weight = node.args[1] if len(node.args) > 1 else None
    if node.target not in {*_CONVS, aten.linear.default} or not isinstance(weight, Node):
        return None
    path = str(weight.target).removesuffix(".weight")
    return path if any(name == path for name, _ in model.named_modules()) else None


def _share(node: Node, values: dict[Node, Any], relevance: torch.Tensor) -> list[tuple[Node, torch.Tensor]]:
    """How one operator's relevance is shared by what it computes from; constants get none."""
    first = node.args[0]
    if isinstance(first, Node) and (node.target in _HANDED or "batch_norm" in str(node.target)):
        return [(first, relevance.reshape(values[first].shape))]
    if isinstance(first, Node) and node.target in _CONVS:
        return [(first, _positive(node, values, relevance))]
    sources = [one for one in node.all_input_nodes if one.op == "call_function"]
    sources = [one for one in sources if isinstance(values[one], torch.Tensor) and values[one].is_floating_point()]
    if not sources or not isinstance(values[node], torch.Tensor):
        return []
    return list(zip(sources, _by_contribution(node, values, sources, relevance), strict=True))


def _by_contribution(
    node: Node, values: dict[Node, Any], sources: list[Node], relevance: torch.Tensor
) -> list[torch.Tensor]:
    """The epsilon rule, of any operator: x times what the operator's derivative brings back of R / z."""
    leaves = {one: values[one].detach().clone().requires_grad_(True) for one in sources}

    def read(one: Node) -> Any:  # noqa: ANN401  # a value of the program
        return leaves.get(one, values.get(one))

    with torch.enable_grad():
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), read)
        if node.target == aten.linear.default:
            args = (*args[:2], None)  # a bias gets no relevance
        out = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
        scale = relevance / (out + _EPSILON * torch.where(out >= 0, 1.0, -1.0)).detach()
        gradients = torch.autograd.grad(out, list(leaves.values()), scale, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else (leaf * gradient).detach()
        for leaf, gradient in zip(leaves.values(), gradients, strict=True)
    ]


def _positive(node: Node, values: dict[Node, Any], relevance: torch.Tensor) -> torch.Tensor:
    """The z+ rule of a convolution, with the sign of a batch norm behind it: shares by positive contributions."""
    x, weight = values[node.args[0]], values[node.args[1]]  # type: ignore[index]  # Nodes
    users = list(node.users)
    if len(users) == 1 and "batch_norm" in str(users[0].target) and isinstance(users[0].args[1], Node):
        weight = weight * values[users[0].args[1]].sign().reshape(-1, *[1] * (weight.dim() - 1))
    conv: Callable[..., torch.Tensor] = node.target  # type: ignore[assignment]  # an operator
    total = torch.zeros_like(x)
    with torch.enable_grad():
        parts = [(x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))]
        leaves = [part.detach().requires_grad_(True) for part, _ in parts]
        outs = [conv(leaf, kernel, None, *node.args[3:]) for leaf, (_, kernel) in zip(leaves, parts, strict=True)]
        scale = (relevance / (outs[0] + outs[1] + _EPSILON)).detach()
        for leaf, gradient in zip(leaves, torch.autograd.grad(outs, leaves, [scale, scale]), strict=True):
            total = total + (leaf * gradient).detach()
    return total
