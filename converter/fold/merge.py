"""`merge`: a network in, one of fewer layers out that computes the same, found in its graph whatever its classes are.

What becomes one: a layer and the batch norms, scales and offsets around it; two convolutions or two linear layers with
nothing between them (VanillaNet, Chen et al. 2023); branches of one value that are added up (RepVGG, Ding et al. 2021);
and what depends on no input is computed once. Weights that several layers share stay as they are. Two layers become one
only where that is exact up to the border, and takes no more multiplications and no more weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from ferryman.converter.capture import capture
from ferryman.converter.compress.binary_policy import Decision, Example
from ferryman.converter.compress.training import copy_model
from ferryman.converter.fold.blocks import run
from ferryman.converter.fold.linear_ops import read_map
from ferryman.converter.fold.merge_passes import PART_OF, PASSES, Graph, scale_after
from ferryman.converter.fold.rebuild import rebuild
from ferryman.converter.functional import functional_module
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError

_SAME = 1e-4
_OTHER = 3
"""Times the example's batch, to try another size with."""
_FEW, _MANY = 2, 1 << 31
"""A program is for any batch size where it takes sizes down to the one and up to the other."""
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  # the bases of all


@dataclass(frozen=True)
class Merged:
    """A network of fewer layers."""

    model: nn.Module
    """In eval mode. It takes what the example was like, and other batch sizes where that changes nothing."""
    decisions: tuple[Decision, ...]
    """Of each convolution, linear layer and batch norm, and of whatever else was merged."""
    layers: tuple[int, int]
    """Convolutions and linear layers before and after."""


def merge(model: nn.Module, example: Example) -> Merged:
    """Merge the layers of a network; it is not changed.

    Args:
        model: trained.
        example: positional inputs of one call.

    Raises:
        CallerError: the model fails with the example.
        ModelError: it cannot be captured, nothing of it can be merged, or what came out computes something else.
    """
    args = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    source = copy_model(model).eval()
    expected = run(source, copy.deepcopy(args))
    made: GraphModule | nn.Module | None = None
    for program, other in _programs(source, args):
        graph = Graph.of(functional_module(program))
        before = _count(graph)
        _simplify(graph)
        after = _count(graph)
        made = rebuild(graph.module).eval()
        if _same(expected, made, args) and (other is None or _same(run(source, copy.deepcopy(other)), made, other)):
            if other is None:
                made.register_forward_pre_hook(partial(_require_shapes, [_shape(one) for one in args]))
            break
        made = None
    if made is None:
        raise ModelError(
            "the merged network answers something else than the model: weights or intermediate values are too large or "
            "too small for float32, or the model keeps state; convert it as it is"
        )
    if not graph.merged:
        raise ModelError(f"nothing of the model can be merged: {before} convolutions and linear layers, none to join")
    return Merged(made, _decisions(model, graph.merged), (before, after))


def fold_norms(program: torch.export.ExportedProgram) -> nn.Module:
    """A program's module with batch norms, scales and offsets within the layers before them; in eval mode."""
    graph = Graph.of(functional_module(program))
    while scale_after(graph):
        pass
    graph.module.recompile()
    return rebuild(graph.module).eval()


def _programs(model: nn.Module, args: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...] | None]]:
    """The program for any batch size, where there is one, with an example of another; then for the example's."""
    auto = torch.export.Dim.AUTO
    twice = tuple(
        torch.cat([one, one]) if isinstance(one, torch.Tensor) and one.dim() and len(one) == 1 else one for one in args
    )
    try:
        shapes = tuple({0: auto} if isinstance(one, torch.Tensor) and one.dim() else None for one in twice)
        program = torch.export.export(model, twice, dynamic_shapes=shapes, strict=False)
        other = tuple(torch.cat([one] * _OTHER) if isinstance(one, torch.Tensor) and one.dim() else one for one in args)
        run(model, copy.deepcopy(other))
        if all(each.lower <= _FEW and each.upper > _MANY for each in program.range_constraints.values()):
            yield program, other
    except Exception:  # noqa: BLE001, S110  # torch raises many kinds; the example's size is next
        pass
    yield capture(make_source(model, args)).program, None


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _require_shapes(shapes: list[tuple[int, ...] | None], _: nn.Module, given: tuple[Any, ...]) -> None:
    """See that a network which may compute something else with other shapes is given the example's.

    Raises:
        CallerError: it is given others.
    """
    if (found := [_shape(one) for one in given]) != shapes:
        raise CallerError(
            f"this merged network is for inputs of shapes {shapes}, found {found}: what it was made of computes "
            "something else with another batch size; merge it with an example of that one"
        )


def _simplify(graph: Graph) -> None:
    for node in list(graph.module.graph.nodes):
        if "assert" in str(node.target) and not node.users and node.op == "call_function":
            graph.module.graph.erase_node(node)
    while any(one(graph) for one in PASSES):
        pass
    for node in graph.module.graph.nodes:
        if node.target == torch.ops.aten.view.default:  # copies that it needed may be gone
            node.target = torch.ops.aten.reshape.default
    graph.module.recompile()


def _count(graph: Graph) -> int:
    return sum(read_map(node, graph.constants) is not None for node in graph.module.graph.nodes)


def _same(expected: list[torch.Tensor], made: nn.Module, args: tuple[Any, ...]) -> bool:
    try:
        found = run(made, copy.deepcopy(args))
    except Exception:  # noqa: BLE001  # a program of another batch size
        return False
    return len(found) == len(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype and _close(a, b)
        for a, b in zip(found, expected, strict=True)
        if b.numel() or a.dtype != b.dtype or a.shape != b.shape
    )


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of one dtype, whichever it is: numbers, complex ones, or truths."""
    exact = torch.promote_types(b.dtype, torch.float64)
    a, b = a.to(exact), b.to(exact)
    return bool(((a - b).abs() <= _SAME * b.abs().max().clamp(min=1)).all())


def _decisions(model: nn.Module, merged: dict[str, str]) -> tuple[Decision, ...]:
    """In the order of registration."""
    found = []
    for path, part in model.named_modules():
        if path in merged and not list(part.children()):
            found.append(Decision(path, type(part).__name__, "merged", merged[path]))
        elif isinstance(part, _LAYERS):
            taken = [one for one, what in merged.items() if path in what.removeprefix(PART_OF).split(", ")]
            reason = f"takes in {', '.join(taken)}" if taken else "nothing beside it to merge with"
            found.append(Decision(path, type(part).__name__, "kept", reason))
    return tuple(found)
