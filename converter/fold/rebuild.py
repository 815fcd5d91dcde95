"""A graph's module as one with convolutions and linear layers of their own, where other techniques look for such."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ferryman.converter.layer_calls import path_of
from ferryman.converter.recognise import attribute

aten = torch.ops.aten
_CONVS: dict[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
}


def rebuild(module: GraphModule) -> nn.Module:
    """The same graph, its layers being modules at the paths where they were; the same tensors are the same still."""
    root = nn.Module()
    held: dict[int, nn.Parameter | torch.Tensor] = {}
    made: dict[str, tuple[Any, ...]] = {}
    were = {name for name, _ in module.named_modules() if name}
    for node in list(module.graph.nodes):
        read = _read(module, node)
        path = path_of(node) if read is not None and node.meta.get("nn_module_stack") else ""
        if read is None or path not in were:
            continue
        layer, values = _layer(node, *read, held)
        key = (type(layer), *map(id, values), str(node.args[3:]))
        if made.get(path, key) != key or (path not in made and not _free(root, path)):
            continue
        if path not in made:
            _put(root, path, layer)
        made[path] = key
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.target = _hold(root, str(node.target), attribute(module, str(node.target)), held)
    return GraphModule(root, module.graph)


def _read(module: GraphModule, node: Node) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """A layer's weights and bias, held as they are."""
    if node.target not in (*_CONVS, aten.linear.default):
        return None
    given = [*node.args[1:3], None][:2]
    if any(isinstance(one, Node) and one.op != "get_attr" for one in given):
        return None
    found: list[Any] = [attribute(module, str(one.target)) if isinstance(one, Node) else None for one in given]
    return found[0], found[1]


def _layer(
    node: Node, weight: torch.Tensor, bias: torch.Tensor | None, held: dict[int, nn.Parameter | torch.Tensor]
) -> tuple[nn.Module, tuple[Any, ...]]:
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    layer: nn.Module
    if node.target == aten.linear.default:
        layer = nn.Linear(weight.shape[1], weight.shape[0], **options)
    else:
        rest: list[Any] = list(node.args[3:])
        defaults: list[Any] = [1, 0, 1, 1]
        stride, padding, dilation, groups = [*rest, *defaults[len(rest) :]]
        step, around, spread = (
            tuple(one) if isinstance(one, list | tuple) else one for one in (stride, padding, dilation)
        )
        channels, kernel = weight.shape[1] * groups, tuple(weight.shape[2:])
        layer = _CONVS[node.target](channels, len(weight), kernel, step, around, spread, groups, **options)
    values = tuple(None if one is None else _parameter(one, held) for one in (weight, bias))
    layer._parameters.update(weight=values[0], bias=values[1])  # noqa: SLF001  # shared ones stay shared
    return layer, values


def _parameter(value: torch.Tensor, held: dict[int, nn.Parameter | torch.Tensor]) -> nn.Parameter:
    found = held.get(value.data_ptr())
    if not isinstance(found, nn.Parameter) or found.shape != value.shape:
        trained = not isinstance(value, nn.Parameter) or value.requires_grad
        found = held[value.data_ptr()] = nn.Parameter(value.detach(), requires_grad=trained)
    return found


def _hold(root: nn.Module, path: str, value: Any, held: dict[int, nn.Parameter | torch.Tensor]) -> str:  # noqa: ANN401  # an attribute
    """Have a tensor there; its path, another one where that is taken."""
    path = path if _free(root, path) or _at(root, path) is not None else path.replace(".", "_") + "_held"
    if _at(root, path) is None:
        owner, name = _owner(root, path)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(name, _parameter(value, held))
        elif isinstance(value, torch.Tensor):
            owner.register_buffer(name, value)
        else:
            setattr(owner, name, value)
    return path


def _at(root: nn.Module, path: str) -> Any:  # noqa: ANN401  # an attribute
    try:
        return attribute(root, path)
    except AttributeError:
        return None


def _free(root: nn.Module, path: str) -> bool:
    """Whether a name is taken neither by anything, nor as a layer's on the way."""
    *way, name = path.split(".")
    at = root
    for one in way:
        if type(at) is not nn.Module:
            return False
        found = getattr(at, one, None)
        if found is None:
            return True
        at = found
    return type(at) is nn.Module and not hasattr(at, name)


def _put(root: nn.Module, path: str, layer: nn.Module) -> None:
    owner, name = _owner(root, path)
    owner.add_module(name, layer)


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *way, name = path.split(".")
    for one in way:
        if getattr(root, one, None) is None:
            root.add_module(one, nn.Module())
        root = getattr(root, one)
    return root, name
