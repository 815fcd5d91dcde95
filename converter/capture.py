"""nn.Module -> ExportedProgram, with the signature that people and devices see."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_leaves, tree_unflatten
from torch.utils._sympy.value_ranges import bound_sympy

from ferryman.converter.functional import drop_unused
from ferryman.converter.reason import reason
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

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Give the module its buffers back as they were, whatever becomes of the runs in between."""
        before = {name: buffer.clone() for name, buffer in self.source.module.named_buffers()}
        try:
            yield
        finally:
            for name, buffer in self.source.module.named_buffers():
                buffer.copy_(before[name])

    def eager(self, inputs: Sequence[torch.Tensor]) -> list[Array]:
        """What the module answers: the reference for every artifact.

        Raises:
            ModelError: it changes an input in place.
        """
        given = [tensor.clone() for tensor in inputs]
        args, kwargs = tree_unflatten(given, self.in_spec)
        with torch.no_grad():
            outputs = self.source.module(*args, **kwargs)
        for spec, tensor in zip(self.signature.inputs, given, strict=True):
            if tensor._version:  # noqa: SLF001  # counts changes in place, also those through views
                raise ModelError(
                    f"{self.source.name} changes its input {spec.name} in place, and no artifact changes its caller's "
                    "arrays: return a new tensor instead"
                )
        return [leaf.detach().clone().numpy() for leaf in tree_leaves(outputs)]  # a module may return its own buffer

    def input_shapes(self, pick: Callable[[int, int], int]) -> list[tuple[int, ...]]:
        """A shape for every input, dynamic dimensions as `pick(least, largest)` says, and all in agreement."""
        chosen = {
            symbol: pick(int(bounds.lower), int(bounds.upper))
            for symbol, bounds in self.program.range_constraints.items()
            if symbol.is_Symbol and isinstance(bounds.upper, sympy.Integer)
        }
        return [
            tuple(dim if isinstance(dim, int) else int(dim.node.expr.subs(chosen)) for dim in node.meta["val"].shape)
            for node in _input_nodes(self.program)
        ]


def capture(source: Source) -> Captured:
    """Export a program.

    Raises:
        ModelError: `torch.export` refuses, or an input or output is no tensor of a known dtype.
    """
    leaves, in_spec = tree_flatten((source.args, dict(source.kwargs)))
    # Copies: torch.export takes one tensor given for two inputs for one input, and would do so without a word.
    # In one memory order: artifacts take contiguous inputs whatever the example's layout was.
    example = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in leaves]
    program = source.program
    if program is None:
        args, kwargs = tree_unflatten(example, in_spec)
        try:
            program = torch.export.export(
                source.module, args, kwargs, dynamic_shapes=source.dynamic_shapes, strict=False
            )
        except Exception as error:  # torch.export raises many kinds; each carries its advice
            raise ModelError(f"torch.export cannot capture {source.name}: {reason(error)}") from error
    return Captured(
        source=source,
        program=program,
        signature=_signature(source, program),
        example=tuple(example),
        in_spec=in_spec,
    )


def recapture(captured: Captured, module: torch.fx.GraphModule, what: str) -> Captured:
    """The program of a rewritten module, without what nothing uses any more; `eager` stays the original.

    Args:
        captured: the original.
        module: what became of its program's module.
        what: was put into it, for the error's words.

    Raises:
        ModelError: it cannot be captured.
    """
    drop_unused(module)
    dynamic = captured.source.dynamic_shapes
    sizes = [size for spec in captured.signature.inputs for size in spec.shape]
    if dynamic is None and any(isinstance(size, DynamicDim) for size in sizes):
        raise ModelError(f"{captured.source.name} was saved with dynamic shapes; give the module itself instead")
    args, kwargs = tree_unflatten(list(captured.example), captured.in_spec)
    try:
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch.export raises many kinds
        raise ModelError(f"{captured.source.name} cannot be captured with {what}: {reason(error)}") from error
    return replace(captured, program=program)


def _input_nodes(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    nodes = {node.name: node for node in program.graph.nodes}
    return [nodes[str(name)] for name in program.graph_signature.user_inputs]


def _signature(source: Source, program: torch.export.ExportedProgram) -> Signature:
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = _input_nodes(program)
    outputs = [nodes.get(str(name)) for name in program.graph_signature.user_outputs]
    if not outputs:
        raise ModelError(f"{source.name} returns nothing; return a tensor, or several in a tuple, list or dict")
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
    parameters = inspect.signature(source.module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest_name = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    paths = tree_flatten_with_path((dict(enumerate(source.args)), dict(source.kwargs)))[0]
    found = []
    for (_, first, *rest), _ in paths:
        key: Any = getattr(first, "key", None)
        if isinstance(key, int):
            key = names[key] if key < len(names) else f"{rest_name}_{key - len(names)}"
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
    if expression.is_number:
        return int(expression)
    bounds = bound_sympy(expression, ranges)
    if not (isinstance(bounds.lower, sympy.Integer) and isinstance(bounds.upper, sympy.Integer)):
        raise ModelError(
            f"{name}: dimension {expression} has no upper bound, and devices plan memory ahead: "
            "give torch.export.Dim(..., max=...)"
        )
    return DynamicDim(symbol=str(expression), min=int(bounds.lower), max=int(bounds.upper))
