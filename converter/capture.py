"""nn.Module -> ExportedProgram, with the signature that people and devices see."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_leaves, tree_unflatten

from ferryman.converter.source import Source
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.tensor import DTYPES, Array, DynamicDim, Signature, TensorSpec


@dataclass(frozen=True)
class Captured:
    """A program, and the eager module that it must equal."""

    source: Source
    program: torch.export.ExportedProgram
    signature: Signature
    example: tuple[torch.Tensor, ...]
    """The example inputs, flat, in the signature's order."""
    in_spec: TreeSpec

    def eager(self, inputs: Sequence[torch.Tensor]) -> list[Array]:
        """What the module answers: the reference for every artifact."""
        args, kwargs = tree_unflatten([tensor.clone() for tensor in inputs], self.in_spec)
        with torch.no_grad():
            outputs = self.source.module(*args, **kwargs)
        return [leaf.detach().numpy() for leaf in tree_leaves(outputs)]


def capture(source: Source) -> Captured:
    """Export a program.

    Raises:
        ModelError: `torch.export` refuses, or an input or output is no tensor of a known dtype.
    """
    program = source.program
    if program is None:
        try:
            program = torch.export.export(
                source.module, source.args, dict(source.kwargs), dynamic_shapes=source.dynamic_shapes, strict=False
            )
        except Exception as error:  # torch.export raises many kinds; each carries its advice
            raise ModelError(f"torch.export cannot capture {source.name}: {error}") from error
    example, in_spec = tree_flatten((source.args, dict(source.kwargs)))
    return Captured(
        source=source,
        program=program,
        signature=_signature(source, program),
        example=tuple(example),
        in_spec=in_spec,
    )


def _signature(source: Source, program: torch.export.ExportedProgram) -> Signature:
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [nodes[str(name)] for name in program.graph_signature.user_inputs]
    outputs = [nodes.get(str(name)) for name in program.graph_signature.user_outputs]
    output_names = _output_names(program, len(outputs))
    for name, node in zip(output_names, outputs, strict=True):
        if node is None or not isinstance(node.meta.get("val"), torch.Tensor):
            raise ModelError(f"{source.name}: output {name!r} is not a tensor; return tensors only")
    ranges = program.range_constraints
    return Signature(
        inputs=tuple(_spec(name, node, ranges) for name, node in zip(_input_names(source), inputs, strict=True)),
        outputs=tuple(
            _spec(name, node, ranges) for name, node in zip(output_names, outputs, strict=True) if node is not None
        ),
    )


def _input_names(source: Source) -> list[str]:
    names = list(inspect.signature(source.module.forward).parameters)
    paths = tree_flatten_with_path((dict(enumerate(source.args)), dict(source.kwargs)))[0]
    found = []
    for (_, first, *rest), _ in paths:
        key: Any = getattr(first, "key", None)
        if isinstance(key, int):
            # A saved program's module takes *args; so do some modules.
            key = names[key] if key < len(names) and names[key] not in ("args", "kwargs") else f"input_{key}"
        found.append(_dotted([key, *rest]))
    return found


def _output_names(program: torch.export.ExportedProgram, count: int) -> list[str]:
    spec = program.call_spec.out_spec
    if spec is None:
        return [f"output_{index}" for index in range(count)]
    paths = tree_flatten_with_path(tree_unflatten(list(range(count)), spec))[0]
    return [_dotted(list(path)) if path else "output" for path, _ in paths]


def _dotted(path: list[Any]) -> str:
    parts = [key if isinstance(key, str) else keystr((key,)).strip(".[]'") for key in path]
    return ".".join(f"output_{part}" if part.isdigit() and index == 0 else part for index, part in enumerate(parts))


def _spec(name: str, node: torch.fx.Node, ranges: dict[sympy.Symbol, Any]) -> TensorSpec:
    value: torch.Tensor = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"{name} has dtype {dtype}; artifacts carry {', '.join(DTYPES)}")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(_dim(name, size, ranges) for size in value.shape))


def _dim(name: str, size: int | torch.SymInt, ranges: dict[sympy.Symbol, Any]) -> int | DynamicDim:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_integer and expression.is_number:
        return int(expression)
    bounds = [
        expression.subs({s: getattr(ranges[s], end) for s in expression.free_symbols}) for end in ("lower", "upper")
    ]
    if not all(bound.is_number and bound.is_finite for bound in map(sympy.sympify, bounds)):
        raise ModelError(
            f"{name}: dimension {expression} has no upper bound, and devices plan memory ahead: "
            "give torch.export.Dim(..., max=...)"
        )
    return DynamicDim(symbol=str(expression), min=int(min(bounds)), max=int(max(bounds)))
