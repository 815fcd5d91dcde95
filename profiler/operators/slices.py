"""Each operator of a `.tflite` as a graph of its own, beside the whole, in one file.

A FlatBuffer points forward only, and counts from where it points. So a new head before the old bytes, a multiple of
their alignment long, is a new file: new subgraphs of one operator each, which point to the old tensors, options and
buffers. Of the old bytes none is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ferryman.profiler.operators.tflite_graph import (
    BUFFERS,
    CODES,
    IDENTIFIER,
    INPUTS,
    OPERANDS,
    OPERATORS,
    OUTPUTS,
    RESULTS,
    SUBGRAPHS,
    TENSORS,
    Graph,
    Operator,
)
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.flatbuffer import BrokenError, Data, Table

_ALIGNMENT = 64
_VERSION = 0
_MODEL_VERSION = 3
_OUTSIDE = 1
_INTERMEDIATES = 8
_OPERATOR_NUMBERS = {0: "I", 3: "B", 6: "b", 11: "B"}
"""Fields of an operator that hold a number, and as what."""
_OPERATOR_POINTERS = (4, 5, 7, 12)
"""Those that point to what is taken as it is: options."""


class _Old:
    """A place in the old bytes."""

    def __init__(self, at: int) -> None:
        self.at = at


class _Head:
    """Bytes before the old ones; what is pointed to is written after what points to it."""

    def __init__(self) -> None:
        self._bytes = bytearray(8)  # where the root is, and the identifier
        self._open: list[tuple[int, Any]] = []

    def pointer(self, to: Any) -> None:  # noqa: ANN401  # an _Old, or a function that writes it and says where
        """Four bytes that will point there."""
        self._open.append((len(self._bytes), to))
        self._bytes += bytes(4)

    def align(self, size: int) -> None:
        self._bytes += bytes(-len(self._bytes) % size)

    def table(self, fields: dict[int, tuple[str, Any]]) -> int:
        """A table of numbers, (form, value), and of pointers, ("", to); where it is."""
        self.align(4)
        slots = max(fields, default=-1) + 1
        places, size = [0] * slots, 4
        for field, (form, _) in sorted(fields.items(), key=lambda item: item[1][0] in ("b", "B")):  # words first
            places[field] = size
            size += struct.calcsize(f"<{form or 'I'}")
        vtable = len(self._bytes)
        self._bytes += struct.pack(f"<HH{slots}H", 4 + 2 * slots, size, *places)
        self.align(4)
        at = len(self._bytes)
        self._bytes += struct.pack("<i", at - vtable)
        for field, (form, value) in sorted(fields.items(), key=lambda item: places[item[0]]):
            assert len(self._bytes) == at + places[field]  # noqa: S101
            if form:
                self._bytes += struct.pack(f"<{form}", value)
            else:
                self.pointer(value)
        return at

    def pointers(self, to: Sequence[Any]) -> int:
        """A vector of pointers."""
        self.align(4)
        at = len(self._bytes)
        self._bytes += struct.pack("<I", len(to))
        for one in to:
            self.pointer(one)
        return at

    def integers(self, values: Sequence[int]) -> int:
        """A vector of whole numbers."""
        self.align(4)
        at = len(self._bytes)
        self._bytes += struct.pack(f"<I{len(values)}i", len(values), *values)
        return at

    def before(self, root: Any, old: Data) -> bytes:  # noqa: ANN401  # a function
        """The head, finished, to be put before the old bytes."""
        self._bytes[4:8] = IDENTIFIER
        self._open.append((0, root))
        fixed: list[tuple[int, int]] = []
        olds: list[tuple[int, int]] = []
        while self._open:
            at, to = self._open.pop()
            if isinstance(to, _Old):
                olds.append((at, to.at))
            else:
                fixed.append((at, to()))
        self.align(_ALIGNMENT)
        fixed += [(at, len(self._bytes) + to) for at, to in olds]
        if len(self._bytes) + len(old) >= 1 << 31:
            raise RuntimeFault("the .tflite file is too large to be cut into operators")
        for at, to in fixed:
            struct.pack_into("<I", self._bytes, at, to - at)
        return bytes(self._bytes)


def slice_head(data: Data, graph: Graph) -> bytes:
    """What to put before the file so that its subgraph 0 is the entry's, and the last ones are its operators, in order.

    Each of these takes its operator's inputs that are not constant, and gives its outputs.

    Raises:
        RuntimeFault: the file is damaged, too large, or keeps constants where they would not be found.
    """
    try:
        return _slice_head(data, graph)
    except BrokenError as error:
        raise RuntimeFault(f"the .tflite file is damaged: {error}") from error


def _slice_head(data: Data, graph: Graph) -> bytes:
    root = Table.root(data, IDENTIFIER)
    if any(buffer.integer(_OUTSIDE, "Q") > 1 for buffer in root.tables(BUFFERS)):
        raise RuntimeFault("the .tflite file keeps constants outside its FlatBuffer, and cannot be cut into operators")
    subgraphs = root.tables(SUBGRAPHS)
    places = [subgraphs.where(i) for i in range(len(subgraphs))]
    places[0], places[graph.subgraph] = places[graph.subgraph], places[0]  # entries are not called by others
    whole = subgraphs[graph.subgraph]
    head = _Head()
    slices = [_slice(head, whole, graph, index) for index in range(len(graph.operators))]

    def model() -> int:
        fields: dict[int, tuple[str, Any]] = {_VERSION: ("I", _MODEL_VERSION)}
        for field in (CODES, BUFFERS):
            if (at := root.target(field)) is not None:
                fields[field] = ("", _Old(at))
        fields[SUBGRAPHS] = ("", lambda: head.pointers([*map(_Old, places), *slices]))
        return head.table(fields)

    return head.before(model, data)


def _slice(head: _Head, whole: Table, graph: Graph, index: int) -> Any:  # noqa: ANN401  # a function
    """What writes the subgraph of one operator."""
    operator, old = graph.operators[index], whole.tables(OPERATORS)[index]
    held = whole.tables(TENSORS)
    more = old.integers(_INTERMEDIATES)
    number = numbers_in(operator)
    for tensor in more:
        number.setdefault(tensor, len(number))
    used = list(number)
    number[-1] = -1

    def renumbered(tensors: Sequence[int]) -> Any:  # noqa: ANN401
        return lambda: head.integers([number[i] for i in tensors])

    def write_operator() -> int:
        fields: dict[int, tuple[str, Any]] = {}
        for field, form in _OPERATOR_NUMBERS.items():
            if old.place(field) is not None:
                fields[field] = (form, old.integer(field, form))
        for field in _OPERATOR_POINTERS:
            if (at := old.target(field)) is not None:
                fields[field] = ("", _Old(at))
        fields[OPERANDS] = ("", renumbered(operator.inputs))
        fields[RESULTS] = ("", renumbered(operator.outputs))
        if more:
            fields[_INTERMEDIATES] = ("", renumbered(more))
        return head.table(fields)

    def write() -> int:
        return head.table(
            {
                TENSORS: ("", lambda: head.pointers([_Old(held.where(i)) for i in used])),
                INPUTS: ("", renumbered(given(graph, index))),
                OUTPUTS: ("", renumbered([i for i in operator.outputs if i >= 0])),
                OPERATORS: ("", lambda: head.pointers([write_operator])),
            }
        )

    return write


def numbers_in(operator: Operator) -> dict[int, int]:
    """Tensor -> its number in the operator's own graph."""
    used = dict.fromkeys(tensor for tensor in (*operator.inputs, *operator.outputs) if tensor >= 0)
    return {tensor: at for at, tensor in enumerate(used)}


def given(graph: Graph, index: int) -> list[int]:
    """The inputs of an operator that are not constant, by their numbers in the whole graph."""
    return list(dict.fromkeys(i for i in graph.operators[index].inputs if i >= 0 and i not in graph.constant))
