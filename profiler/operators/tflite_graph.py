"""Reads a `.tflite`: the operators of an entry, and what they compute.

Schema: TFLite's schema.fbs; fields go by their number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ferryman.profiler.operators.builtins import NAMES
from ferryman.profiler.operators.kinds import kind_of, of_channels
from ferryman.profiler.operators.node import Node, Tensor, bytes_of, counted, own_macs
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.flatbuffer import BrokenError, Data, Table
from ferryman.runtime.sessions.tflite import natural

IDENTIFIER = b"TFL3"
CODES, SUBGRAPHS, BUFFERS, SIGNATURES = 1, 2, 4, 7
TENSORS, INPUTS, OUTPUTS, OPERATORS = range(4)
CODE, OPERANDS, RESULTS = range(3)
_CUSTOM_OPTIONS = 5
_CODE_OLD, _CODE_NAME, _CODE_NEW = 0, 1, 3
_SHAPE, _TYPE, _BUFFER, _SIGNATURE_SHAPE = 0, 1, 2, 7
_CONTENTS, _CONTENTS_OUTSIDE = 0, 1
_KEY, _SUBGRAPH = 2, 4
_CUSTOM = 32
_ITEM_BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16}
_ITEM_BITS |= {17: 4, 18: 16, 19: 2, 20: 4, 21: 8, 22: 8}
_HELD_MAX = 1 << 20
_CONV_OPTIONS = 14
"""Of ferryman's convolutions, up to the groups."""


@dataclass(frozen=True)
class Operator:
    """One operator of a subgraph, tensors by their numbers there; -1: left out."""

    node: Node
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """An entry."""

    subgraph: int
    subgraphs: int
    """How many the file has."""
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    """In the order of the call."""
    shapes: tuple[tuple[int, ...], ...]
    """Theirs, by which operators are counted."""
    constant: frozenset[int]
    """Tensors with contents."""
    dynamic: bool
    """A dimension varies."""

    @property
    def own(self) -> bool:
        """Some operators are ferryman's."""
        return any(operator.node.delegate == "ferryman" for operator in self.operators)


def read_tflite(data: Data, entry: str | None, origins: Mapping[str, str]) -> Graph:
    """The graph of an entry.

    Args:
        data: the file.
        entry: key of a signature; None: the first, or without signatures the first subgraph.
        origins: `Variant.origins`.

    Raises:
        RuntimeFault: it is damaged, or has no such entry.
    """
    try:
        return _read(data, entry, origins)
    except (BrokenError, IndexError, ValueError, struct.error) as error:
        raise RuntimeFault(f"the .tflite file is damaged: {error}") from error


def _read(data: Data, entry: str | None, origins: Mapping[str, str]) -> Graph:
    root = Table.root(data, IDENTIFIER)
    at, inputs = _find(root, entry)
    graph = root.tables(SUBGRAPHS)[at]
    held, listed = graph.tables(TENSORS), graph.tables(OPERATORS)
    if max(len(held), len(listed), len(root.tables(CODES)), len(root.tables(BUFFERS))) > _HELD_MAX:
        raise BrokenError("too many tensors or operators")
    names = [name_of(code) for code in root.tables(CODES)]
    buffers = [0 if one.place(_CONTENTS_OUTSIDE) else one.count(_CONTENTS) for one in root.tables(BUFFERS)]
    tensors = [_tensor(one, buffers) for one in held]
    operators = [_operator(one, names, tensors, origins.get(str(i))) for i, one in enumerate(listed)]
    inputs = graph.integers(INPUTS) if inputs is None else inputs
    if any(not 0 <= tensor < len(tensors) for tensor in inputs):
        raise BrokenError("an input is a tensor that is not there")
    return Graph(
        subgraph=at,
        subgraphs=len(root.tables(SUBGRAPHS)),
        operators=tuple(operators),
        inputs=inputs,
        shapes=tuple(tensors[tensor].shape for tensor in inputs),
        constant=frozenset(i for i, one in enumerate(held) if buffers[one.integer(_BUFFER, "I")]),
        dynamic=any(-1 in one.integers(_SIGNATURE_SHAPE) for one in held),
    )


def _find(root: Table, entry: str | None) -> tuple[int, tuple[int, ...] | None]:
    """An entry's subgraph, and its inputs in the order of the call; None: the artifact has no signature."""
    signatures = {one.text(_KEY) or "": one for one in root.tables(SIGNATURES)}
    if entry is None and not signatures:
        return 0, None
    found = next(iter(signatures.values())) if entry is None else signatures.get(entry)
    if found is None:
        raise RuntimeFault(f"the .tflite file has no entry `{entry}`; there are: {', '.join(signatures)}")
    named = sorted(
        ((one.text(0) or "", one.integer(1, "I")) for one in found.tables(0)), key=lambda one: natural(one[0])
    )
    return found.integer(_SUBGRAPH, "I"), tuple(tensor for _, tensor in named)


def name_of(code: Table) -> str:
    """An operator's name, as TFLite or a custom operator has it."""
    number = max(code.integer(_CODE_OLD, "b"), code.integer(_CODE_NEW))
    if number == _CUSTOM:
        return code.text(_CODE_NAME) or "CUSTOM"
    return NAMES[number] if 0 <= number < len(NAMES) else f"BUILTIN {number}"


def _tensor(held: Table, buffers: Sequence[int]) -> Tensor:
    shape = held.integers(_SHAPE)
    bits = _ITEM_BITS.get(held.integer(_TYPE, "b"))
    if contents := buffers[held.integer(_BUFFER, "I")]:
        return Tensor(shape, contents)
    if bits is None or -1 in held.integers(_SIGNATURE_SHAPE):
        return Tensor(shape, None)
    return Tensor(shape, math.prod(shape) * bits // 8)


def _operator(held: Table, names: Sequence[str], tensors: Sequence[Tensor], module: str | None) -> Operator:
    name = names[held.integer(CODE, "I")]
    inputs, outputs = held.integers(OPERANDS), held.integers(RESULTS)
    if any(not -1 <= index < len(tensors) for index in (*inputs, *outputs)):
        raise BrokenError(f"an operator {name} names a tensor that is not there")
    own = name.startswith("ferryman.")
    kind = kind_of(name)
    read = [tensors[i] if i >= 0 else None for i in inputs]
    written = [tensors[i] for i in outputs if i >= 0]
    macs = None
    if written and read and read[0] is not None:
        kind = of_channels(kind, read[0].shape)
        macs = _own(kind, held, read[0], written[0]) if own else _macs(name, read, written[0])
    there = [tensors[i] for i in dict.fromkeys((*inputs, *outputs)) if i >= 0]
    node = Node(name, kind, "ferryman" if own else None, module, bytes_of(there), counted(kind, macs))
    return Operator(node, inputs, outputs)


def _own(kind: str, held: Table, x: Tensor, output: Tensor) -> int | None:
    """Options are those of native/tflite: version, input channels, output channels, then a convolution's window."""
    options = held.bytes_of(_CUSTOM_OPTIONS)
    numbers = struct.unpack_from(f"<{len(options) // 4}i", options)
    if "conv2d" in kind and len(numbers) >= _CONV_OPTIONS:
        _, channels, out, height, width, *_ = numbers
        return own_macs(kind, x, output, channels, out, (height, width, numbers[_CONV_OPTIONS - 1]))
    if len(numbers) > 2:  # noqa: PLR2004  # version and both channels
        return own_macs(kind, x, output, numbers[1], numbers[2], None)
    return None


def _macs(name: str, read: Sequence[Tensor | None], output: Tensor) -> int | None:
    x, weight, image = (*read, None, None)[:3]
    count = None
    if x is None or weight is None or x.bytes is None or output.bytes is None:
        pass
    elif name == "CONV_2D":
        count = output.size * math.prod(weight.shape[1:])
    elif name == "DEPTHWISE_CONV_2D":
        count = output.size * math.prod(weight.shape[1:3])
    elif name == "FULLY_CONNECTED" and weight.shape:
        count = output.size * weight.shape[-1]
    elif name == "BATCH_MATMUL" and len(x.shape) > 1 and len(output.shape) > 1:
        count = output.size * x.shape[-1] * x.shape[-2] // max(output.shape[-2], 1)
    elif name == "TRANSPOSE_CONV" and image is not None:  # its first input is a shape
        count = image.size * math.prod(weight.shape[:-1])
    return count
