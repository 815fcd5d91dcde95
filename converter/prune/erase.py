"""Residual branches that can go as a whole, and the model without some of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ferryman.converter.prune.heads import HeadAttention
from ferryman.converter.prune.units import CONVS, Group, width
from ferryman.converter.quiet import quiet

aten = torch.ops.aten
_ADDS = (aten.add.Tensor, aten.add_.Tensor)
_LAYERS = {
    *(aten.linear.default, aten.conv2d.default, aten.conv1d.default, aten.conv3d.default, aten.conv2d.padding),
    aten.conv1d.padding,
}
_THROUGH = {
    *(aten.batch_norm.default, aten.dropout.default, aten.dropout_.default, aten.mul.Tensor, aten.contiguous.default),
    *(aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default),
    aten._native_batch_norm_legit_no_training.default,  # noqa: SLF001  # as the operator is called
}
"""What may stand between a branch's last layer and the addition, and gives zeros for zeros and no offset."""
_ENOUGH = 1e-6


class Nothing(nn.Module):
    """Stands where a branch was: zeros of its output's shape, which need nothing of the input."""

    def __init__(self, shape: Sequence[int]) -> None:
        """Take the shape of one output.

        Args:
            shape: as it is with the example; the first dimension goes with the input's.
        """
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(x.shape[0], *self.shape[1:], dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Branch:
    """What ends a residual branch."""

    last: str
    """Path of its last layer."""
    norm: str | None
    """Of the batch norm behind that."""
    block: str | None
    """Of a module that gives back its input without the branch."""
    shape: tuple[int, ...]
    """Of the last layer's output."""
    part: str = ""
    """Of the outermost module that gives zeros where the last layer does; it may be that layer or norm."""


def find_branches(model: nn.Module, example: tuple[Any, ...]) -> list[Branch]:
    """Residual branches: what is added to something that it was computed from.

    Args:
        model: in eval mode; not changed.
        example: positional inputs of one call.
    """
    try:
        with quiet():
            program = torch.export.export(model, example, strict=False)
    except Exception:  # noqa: BLE001  # torch.export raises many kinds; then no branch is known
        return []
    specs = program.graph_signature.input_specs
    owners = {one.arg.name: str(one.target).rpartition(".")[0] for one in specs if one.target}
    found = {}
    for node in program.graph.nodes:
        if node.target not in _ADDS or len(node.all_input_nodes) != 2:  # noqa: PLR2004  # a branch and what it is added to
            continue
        for branch, other in (node.all_input_nodes, node.all_input_nodes[::-1]):
            end = _end(branch, owners)
            if end is not None and _above(end[0], other) and end[1] not in found:
                _, last, norm = end
                branch_end = Branch(last, norm, None, tuple(end[0].meta["val"].shape))
                found[last] = _around(model, example, node, branch_end)
    return list(found.values())


def _end(node: Node, owners: dict[str, str]) -> tuple[Node, str, str | None] | None:
    """The layer that a branch ends with, its path, and that of a batch norm behind it."""
    norm = None
    while True:
        if len(node.users) != 1 or not node.all_input_nodes:
            return None
        if node.target in _LAYERS:
            weight = node.all_input_nodes[1]
            return (node, owners[weight.name], norm) if weight.name in owners else None
        if node.target not in _THROUGH:
            return None
        if "batch_norm" in str(node.target):
            weights = [one.name for one in node.all_input_nodes[1:] if one.name in owners]
            norm = owners[weights[0]] if weights else None
        node = node.all_input_nodes[0]


def _above(node: Node, other: Node) -> bool:
    """Whether a node is computed from another."""
    seen, queue = {node}, [node]
    while queue:
        for one in queue.pop().all_input_nodes:
            if one is other:
                return True
            if one not in seen:
                seen.add(one)
                queue.append(one)
    return False


def _around(model: nn.Module, example: tuple[Any, ...], add: Node, branch: Branch) -> Branch:
    """The modules around a branch that do nothing without it: see what they give when it is silent."""
    stack = [str(path) for path, _ in add.meta.get("nn_module_stack", {}).values()]
    block = next((path for path in stack[::-1] if path and branch.last.startswith(f"{path}.")), None)
    work = copy.deepcopy(model).eval()
    _silence(work, branch)
    steps = branch.last.split(".")
    parts = [".".join(steps[: count + 1]) for count in range(len(steps) - 1)]
    same: dict[str, bool] = {}
    zero: dict[str, bool] = {}

    def watch(path: str) -> Any:  # noqa: ANN401  # a hook
        def look(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:  # noqa: ANN401  # ditto
            x, given = inputs[0] if inputs else None, out[0] if isinstance(module, HeadAttention) else out
            zero[path] = same[path] = False
            if isinstance(given, torch.Tensor) and isinstance(x, torch.Tensor) and given.shape[:1] == x.shape[:1]:
                zero[path] = given.shape == branch.shape and not bool(given.any())
                alike = len(inputs) == 1 and given.shape == x.shape
                same[path] = alike and bool((given - x).abs().max() <= _ENOUGH)

        return look

    for path in parts:
        work.get_submodule(path).register_forward_hook(watch(path))
    with torch.no_grad():
        work(*example)
    outer = next((path for path in parts if zero.get(path)), "")
    return replace(branch, block=block if block and same.get(block) else None, part=outer)


def _silence(model: nn.Module, branch: Branch) -> None:
    shape, layer = list(branch.shape), model.get_submodule(branch.last)
    shape[1 if isinstance(layer, CONVS) else -1] = width(model, branch.last, "out") or 0  # it may be narrower by now
    around = model.get_submodule(branch.part) if branch.part else None
    if isinstance(around, HeadAttention):
        around.forget()
        return
    _put(model, branch.last, Nothing(shape))
    if branch.norm is not None:
        _put(model, branch.norm, nn.Identity())
    if branch.part:
        _put(model, branch.part, model.get_submodule(branch.last))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


def erase(model: nn.Module, branches: Iterable[Branch]) -> None:
    """Take branches out of a model, in place: their blocks give back their input, or nothing is added."""
    for branch in branches:
        if branch.block is not None:
            _put(model, branch.block, nn.Identity())
        elif has(model, branch.last):  # else it has gone with a block around it
            _silence(model, branch)


def has(model: nn.Module, path: str) -> bool:
    """Whether a model has a module of that path."""
    return any(name == path for name, _ in model.named_modules())


def with_branches(model: nn.Module, groups: Sequence[Group], branches: Sequence[Branch]) -> tuple[Group, ...]:
    """Groups all of whose readers end branches, or lie inside the blocks that go with them, can go as a whole.

    A branch whose last layer reads several groups is none: it would go with the first.
    """
    made = []
    ends = {branch.last: branch for branch in branches}
    for group in groups:
        read = [
            slot.path
            for slot in group.slots
            if slot.side == "in" and isinstance(model.get_submodule(slot.path), (*CONVS, nn.Linear))
        ]
        whole = bool(read) and group.leader is None and all(path in ends for path in read)
        made.append(replace(group, branches=tuple(read), least=0) if whole else group)
    return tuple(made)
