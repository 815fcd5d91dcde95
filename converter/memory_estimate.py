"""How much memory a program's activations take at most, from its graph alone."""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch

from ferryman.converter.capture import Captured


def activations_peak_bytes(captured: Captured) -> int:
    """The largest sum of tensors alive at once when nodes run in graph order; dynamic dimensions at their largest."""
    graph = captured.program.graph
    sizes = {
        symbol: int(bounds.upper)
        for symbol, bounds in captured.program.range_constraints.items()
        if symbol.is_Symbol and isinstance(bounds.upper, sympy.Integer)
    }
    last_use = {source: index for index, node in enumerate(graph.nodes) for source in node.all_input_nodes}
    stored = {
        *captured.program.graph_signature.inputs_to_parameters,
        *captured.program.graph_signature.inputs_to_buffers,
        *captured.program.graph_signature.inputs_to_lifted_tensor_constants,
    }
    alive: dict[torch.fx.Node, int] = {}
    peak = 0
    for index, node in enumerate(graph.nodes):
        if node.name not in stored:
            alive[node] = _bytes(node.meta.get("val"), sizes)
        peak = max(peak, sum(alive.values()))
        for source in [n for n in alive if last_use.get(n, -1) <= index]:
            del alive[source]
    return peak


def _bytes(value: Any, sizes: dict[Any, int]) -> int:  # noqa: ANN401  # whatever a node holds
    if isinstance(value, (tuple, list)):
        return sum(_bytes(item, sizes) for item in value)
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(_size(dim, sizes) for dim in value.shape) * value.element_size()


def _size(dim: int | torch.SymInt, sizes: dict[Any, int]) -> int:
    if isinstance(dim, int):
        return dim
    found = dim.node.expr.subs(sizes)
    return int(found) if found.is_number else 0  # a size without a bound, which only the data tells
