"""What parts of a captured graph compute, found by evaluating them rather than by matching how they were written.

A sign activation may be `torch.sign(x)`, `where(x >= 0, 1, -1)`, `(x >= 0) * 2 - 1`, a straight-through estimator's
`(s - c).detach() + c`, a sign behind a clamp, and so on. All of them are elementwise, so the values they give on a few
probes tell what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
# fmt: off
_ELEMENTWISE = {
    aten._to_copy,  # noqa: SLF001  # an operator's name
    aten.abs, aten.add, aten.alias, aten.batch_norm, aten.bitwise_not, aten.clamp, aten.clamp_max,
    aten.clamp_min, aten.clone, aten.contiguous, aten.copysign, aten.detach, aten.detach_, aten.div, aten.dropout,
    aten.full_like, aten.ge, aten.gt, aten.hardtanh, aten.hardtanh_, aten.le, aten.leaky_relu,
    aten.lift_fresh_copy, aten.logical_not, aten.lt, aten.maximum, aten.minimum, aten.mul, aten.neg,
    aten.ones_like, aten.prelu, aten.relu, aten.relu_, aten.rsub, aten.sgn, aten.sign, aten.sub, aten.tanh,
    aten.to, aten.type_as, aten.where, aten.zeros_like,
}
# fmt: on
_REGION_MAX = 48
"""Nodes; what is longer than that is no activation."""
_CLOSE = 1e-6
_FAR = 1e4
"""Beyond what numbers in a network are; straight-through estimators lose the sign there."""
_PROBES = (
    0.0,
    -0.0,
    *(sign * 10.0**power for sign in (1, -1) for power in range(-30, 39)),
    0.3,
    -0.3,
    0.75,
    -0.75,
    2.0,
    -2.0,
)


class Constants:
    """Values of the nodes that do not depend on the inputs."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._values: dict[Node, Any] = {}
        self._changed = {
            str(node.args[0].target)
            for node in module.graph.nodes
            if node.op == "call_function"
            and _mutates(node.target)
            and node.args
            and isinstance(node.args[0], Node)
            and node.args[0].op == "get_attr"
        }

    def __contains__(self, node: Node) -> bool:
        return self._find(node) is not None

    def __getitem__(self, node: Node) -> torch.Tensor:
        value = self._find(node)
        if value is None:
            raise KeyError(node.name)
        return value

    def _find(self, node: Node) -> torch.Tensor | None:
        if node not in self._values:
            self._values[node] = self._evaluate(node)
        found: torch.Tensor | None = self._values[node]
        return found

    def _evaluate(self, node: Node) -> torch.Tensor | None:
        if node.op == "get_attr":
            if str(node.target) in self._changed:
                return None
            value = attribute(self._module, str(node.target))
            return value.detach() if isinstance(value, torch.Tensor) else None
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001  # torch has no public name
            return None
        if torch.Tag.nondeterministic_seeded in node.target.tags or any(n not in self for n in node.all_input_nodes):
            return None
        with torch.no_grad():
            value = call(node, {n: self[n] for n in node.all_input_nodes})
        return value if isinstance(value, torch.Tensor) else None


def attribute(module: torch.nn.Module, path: str) -> Any:  # noqa: ANN401  # a module's attributes are of any kind
    """What a get_attr node reads."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def call(node: Node, values: dict[Node, torch.Tensor]) -> Any:  # noqa: ANN401  # operators answer anything
    """Compute one node from its inputs' values."""
    target: Any = node.target
    args = torch.fx.node.map_arg(node.args, values.__getitem__)
    kwargs = torch.fx.node.map_arg(node.kwargs, values.__getitem__)
    return target(*args, **kwargs)


def _mutates(target: Any) -> bool:  # noqa: ANN401  # of an fx node
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable  # noqa: SLF001  # torch has no public name


@dataclass(frozen=True)
class Sign:
    """A node that is the sign of another."""

    sources: tuple[Node, ...]
    """All nodes that it is the sign of, the nearest first: a scale above 0, say, changes no sign."""
    node: Node
    at_zero: float
    """What it gives for 0, where ferryman's operators give 1; -1 where 0 and -0 differ."""

    @property
    def of(self) -> Node:
        """The farthest of its sources."""
        return self.sources[-1]


class Recogniser:
    """Looks backwards from a node."""

    def __init__(self, module: GraphModule) -> None:
        self.constants = Constants(module)
        self._order = {node: index for index, node in enumerate(module.graph.nodes)}
        self._signs: dict[Node, Sign | None] = {}

    def sign(self, node: Node) -> Sign | None:
        """Whose sign `node` is; None when it is none."""
        if node not in self._signs:
            self._signs[node] = self._find_sign(node)
        return self._signs[node]

    def _find_sign(self, node: Node) -> Sign | None:
        if not self._elementwise(node):
            return None
        sources: list[Node] = []
        at_zero = 0.0
        for source in self._dominators(node):
            found = self._at_zero(source, node)
            if found is not None:
                sources.append(source)
                at_zero = found
            elif sources:
                break
        return Sign(sources=tuple(sources), node=node, at_zero=at_zero) if sources else None

    def _at_zero(self, source: Node, node: Node) -> float | None:
        for shape in _one_pixel(source):
            probes = torch.tensor(_PROBES).reshape(-1, *[1] * (_rank(source) - 1)).expand(-1, *shape)
            values = self.evaluate(source, node, probes)
            alone = self.evaluate(source, node, probes[:1])  # a constant may be as long as there are probes
            if values is None or alone is None or (values.shape, alone.shape) != (probes.shape, probes[:1].shape):
                continue
            if values.dtype != torch.float32 or not _is_sign(values[2:], probes[2:]):
                continue
            zeros = {float(value) for value in values[:2].reshape(-1)}
            if zeros <= {-1.0, 0.0, 1.0}:
                return zeros.pop() if len(zeros) == 1 else -1.0
        return None

    def evaluate(self, source: Node, node: Node, values: torch.Tensor) -> torch.Tensor | None:
        """`node` where `source` is `values`; None where it depends on anything else or does not take such a shape."""
        region = self.region(source, node)
        if region is None:
            return None
        known: dict[Node, torch.Tensor] = {source: values.clone()}  # an operator may work in place
        try:
            with torch.no_grad():
                for step in region:
                    for needed in step.all_input_nodes:
                        if needed not in known:
                            known[needed] = self.constants[needed]
                    known[step] = call(step, known)
        except (RuntimeError, TypeError, ValueError, KeyError):  # an operator that will not have the probes' shape
            return None
        return known[node]

    def region(self, source: Node, node: Node) -> list[Node] | None:
        """The elementwise nodes by which `node` depends on `source` alone, in order; None where it does not."""
        inside: set[Node] = set()
        open_nodes = [node]
        while open_nodes:
            at = open_nodes.pop()
            if at is source or at in inside or at in self.constants:
                continue
            if not self._elementwise(at) or len(inside) >= _REGION_MAX:
                return None
            inside.add(at)
            open_nodes += at.all_input_nodes
        return sorted(inside, key=self._order.__getitem__)

    def _dominators(self, node: Node) -> Iterator[Node]:
        """Nodes that `node` depends on through elementwise ones only, and on nothing beside them; nearest first."""
        seen: set[Node] = set()
        open_nodes = [node]
        while open_nodes and len(seen) < _REGION_MAX:
            at = open_nodes.pop()
            if at in seen or at in self.constants:
                continue
            seen.add(at)
            if self._elementwise(at):
                open_nodes += at.all_input_nodes
        for candidate in sorted(seen - {node}, key=self._order.__getitem__, reverse=True):
            if self.region(candidate, node) is not None:
                yield candidate

    def _elementwise(self, node: Node) -> bool:
        target = node.target
        return (
            node.op == "call_function"
            and isinstance(target, torch._ops.OpOverload)  # noqa: SLF001  # torch has no public name
            and target.overloadpacket in _ELEMENTWISE
            and isinstance(node.meta.get("val"), torch.Tensor)
            and not (target.overloadpacket == aten.batch_norm and node.args[5])  # by the batch's own statistics
        )


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 1


def _one_pixel(node: Node) -> Iterator[list[int]]:
    """Sizes after the first, with the channels second or last, and 1 for all else."""
    rank = _rank(node)
    for axis in dict.fromkeys((min(1, rank - 1), rank - 1)):
        yield [int(node.meta["val"].shape[axis]) if at == axis else 1 for at in range(1, rank)]


def _is_sign(values: torch.Tensor, probes: torch.Tensor) -> bool:
    """Whether `values` are the probes' signs, to within what (s - x) + x rounds to; far out that gives 0 or NaN."""
    size = probes.abs()
    near = (values - torch.sign(probes)).abs() <= _CLOSE * size.clamp(1, _FAR)
    lost = (size > _FAR) & ((values == 0) | values.isnan())
    return bool((near | lost).all())
