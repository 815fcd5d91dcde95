"""A program's module without operators that change values in place: what is rewritten may move past a change."""

from __future__ import annotations

import operator
import warnings

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default  # noqa: SLF001  # an operator's name


def functional_module(program: torch.export.ExportedProgram) -> GraphModule:
    """The module of a program; operators stay whole, but those in place become others that are not."""
    if not any(_changes(node) for node in program.graph.nodes):
        plain: GraphModule = program.module(check_guards=False)
        return plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own
        module: GraphModule = program.run_decompositions({}).module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target == _BATCH_NORM:
            _restore(module, node)
        elif node.target == aten.clone.default and not node.kwargs:  # what became of a dropout
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    return module


def drop_unused(module: GraphModule) -> None:
    """Erase what no output depends on, and parameters and buffers that nothing reads."""
    module.graph.eliminate_dead_code()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in used]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
    module.recompile()


def _changes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001  # torch's own


def _restore(module: GraphModule, node: Node) -> None:
    """A batch norm by its own name, whose first result alone is used."""
    users = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
        return
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    with module.graph.inserting_before(node):
        args = (x, weight, bias, mean, variance, False, momentum, epsilon, False)
        whole = module.graph.call_function(aten.batch_norm.default, args)
    for user in users:
        whole.meta = dict(user.meta)
        user.replace_all_uses_with(whole)
        module.graph.erase_node(user)
    module.graph.erase_node(node)
