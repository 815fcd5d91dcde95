"""Reads the graph that ExecuTorch hands to XNNPACK: xnnpack's schema.fbs of ExecuTorch 1.5.1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ferryman.profiler.operators.kinds import of_channels
from ferryman.profiler.operators.node import Node, Tensor, bytes_of, counted
from ferryman.runtime.flatbuffer import BrokenError, Table, number

_MAGIC = b"XH00"
_NODES, _VALUES, _CONSTANTS = 1, 2, 8
_HANDLE = 2
_QUANTIZED = 2
_ITEM_BITS = {1: 32, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8, 7: 32, 8: 4, 9: 8, 10: 4, 11: 8, 12: 32, 13: 32, 14: 16}
_HELD_MAX = 1 << 20


class Form(NamedTuple):
    """A node's kind, and in which of its fields are its inputs and its output."""

    kind: str
    inputs: tuple[int, ...]
    output: int


def _one(kind: str) -> Form:
    return Form(kind, (0,), 1)


def _two(kind: str) -> Form:
    return Form(kind, (0, 1), 2)


def _conv(kind: str) -> Form:
    return Form(kind, (15, 16, 17), 18)


def _cat(count: int) -> Form:
    return Form("concatenation", (1, 2, 3, 4, 7)[:count], 5)


FORMS: tuple[Form, ...] = (
    _two("add"),
    Form("linear", (0, 1, 2), 3),
    _one("softmax"),
    _one("sigmoid"),
    Form("transpose", (2,), 3),
    _one("clamp"),
    _conv("conv2d"),
    _two("div"),
    Form("resize", (2,), 3),
    Form("pad", (3,), 4),
    Form("avg_pool", (10,), 11),
    _two("minimum"),
    _conv("depthwise_conv2d"),
    Form("max_pool", (10,), 11),
    _two("mul"),
    _two("sub"),
    _one("floor"),
    _one("convert"),
    _one("mean"),
    Form("reshape", (2,), 3),
    Form("argmax_pool", (6,), 7),
    _one("sqrt"),
    _one("ceil"),
    _one("hardswish"),
    Form("leaky_relu", (1,), 2),
    _two("maximum"),
    _one("neg"),
    _one("square"),
    Form("elu", (1,), 2),
    _one("abs"),
    _two("prelu"),
    _cat(2),
    _cat(3),
    _cat(4),
    Form("slice", (3,), 4),
    Form("attention", (0, 1, 2, 3, 4), 5),
    _two("matmul"),
    _cat(5),
    _conv("conv_transpose"),
    _one("rsqrt"),
    _one("log"),
    _one("gelu"),
    _one("tanh"),
    _one("exp"),
    _one("sin"),
    _one("copy"),
    _one("cos"),
)
"""In the order of the schema's union, which counts from 1."""


def read_graph(blob: bytes, origins: Mapping[str, str]) -> list[Node]:
    """The operators of a delegate's graph, in order.

    Raises:
        BrokenError: the bytes are no such graph.
    """
    if blob[4:8] != _MAGIC:
        raise BrokenError(f"expected XNNPACK's {_MAGIC!r}, found {blob[4:8]!r}")
    start, size = number(blob, "<I", 10), number(blob, "<I", 14)
    graph = Table.root(blob[start : start + size])
    values = _values(graph)
    nodes = graph.tables(_NODES)
    if len(nodes) > _HELD_MAX:
        raise BrokenError(f"{len(nodes):,} nodes")
    return [_node(node, values, origins) for node in nodes]


def _values(graph: Table) -> dict[int, Tensor]:
    held = graph.tables(_VALUES)
    constants = graph.tables(_CONSTANTS)
    if len(held) > _HELD_MAX:
        raise BrokenError(f"{len(held):,} values")
    values = {}
    for one in held:
        value = one.table(1)
        if value is not None and one.integer(0, "B") == _QUANTIZED:
            value = value.table(0)
        if value is None:
            raise BrokenError("a value is empty")
        shape = value.integers(2, "I")
        bits = _ITEM_BITS.get(value.integer(0, "h"))
        size = None if bits is None else math.prod(shape) * bits // 8
        if constant := value.integer(3, "I"):
            size = constants[constant].integer(1, "Q") or size
        values[value.integer(6, "I")] = Tensor(shape, size)
    return values


def _node(held: Table, values: Mapping[int, Tensor], origins: Mapping[str, str]) -> Node:
    kind, node = held.integer(0, "B"), held.table(1)
    module = origins.get(str(held.integer(_HANDLE, "I")))
    if node is None or not 1 <= kind <= len(FORMS):
        return Node(f"node {kind}", f"node {kind}", "xnnpack", module)
    form = FORMS[kind - 1]
    inputs = [values[i] for field in form.inputs if (i := node.integer(field, "I")) in values]
    output = values.get(node.integer(form.output, "I"))
    macs = None
    if inputs and output is not None and form.kind in _MACS:
        macs = _MACS[form.kind](node, inputs, output)
    return Node(
        name=form.kind,
        kind=of_channels(form.kind, inputs[0].shape) if inputs else form.kind,
        delegate="xnnpack",
        module=module,
        bytes_moved=bytes_of([*inputs, output]),
        macs=counted(form.kind, macs),
    )


def _window(node: Table) -> int:
    return node.integer(4, "I") * node.integer(5, "I")


def _linear(_: Table, inputs: list[Tensor], output: Tensor) -> int | None:
    out = output.shape[-1] if output.shape else 0
    return output.size * inputs[1].size // out if out and len(inputs) > 1 else None


_MACS: dict[str, Callable[[Table, list[Tensor], Tensor], int | None]] = {
    "conv2d": lambda node, _, output: output.size * _window(node) * node.integer(10, "I"),
    "depthwise_conv2d": lambda node, _, output: output.size * _window(node),
    "conv_transpose": lambda node, inputs, _: inputs[0].size * _window(node) * node.integer(11, "I"),
    "linear": _linear,
    "matmul": lambda _, inputs, output: output.size * (inputs[0].shape[-1] if inputs[0].shape else 1),
    "attention": lambda _, inputs, __: 2 * inputs[0].size * (inputs[1].shape[-2] if len(inputs) > 1 else 0),
}
