"""Each operator of a `.tflite` as a graph of its own, beside the whole, in one file.

A FlatBuffer points forward only, and counts from where it points. So a new head before the old bytes, a multiple of
their alignment long, is a new file: new subgraphs of one operator each, which point to the old tensors, options and
buffers. Of the old bytes none is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ferryman.profiler.flatbuffer_head import Numbers, Old, Tables, copy, put_before
from ferryman.profiler.flatbuffer_head import Table as New
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
from ferryman.runtime.flatbuffer import Data, Table

_VERSION = 0
_MODEL_VERSION = 3
_OUTSIDE = 1
_OPERATOR = "IOOBOObOOQQBOi"
_INTERMEDIATES, _OPTIONS_OUTSIDE = 8, 9
_SIZE_END = 1 << 31


def slice_head(data: Data, graph: Graph) -> bytes:
    """What to put before the file so that its subgraph 0 is the entry's, and the last ones are its operators, in order.

    Each of these takes its operator's inputs that are not constant, and gives its outputs.

    Raises:
        RuntimeFault: the file is damaged, too large, or keeps what it needs where it would not be found.
    """
    try:
        head = bytes(put_before(_model(data, graph), IDENTIFIER))
    except (ValueError, struct.error) as error:
        raise RuntimeFault(f"the .tflite file cannot be cut into operators: {error}") from error
    if len(head) + len(data) >= _SIZE_END:
        raise RuntimeFault("the .tflite file is too large to be cut into operators")
    return head


def _model(data: Data, graph: Graph) -> New:
    root = Table.root(data, IDENTIFIER)
    subgraphs = root.tables(SUBGRAPHS)
    whole = subgraphs[graph.subgraph]
    if any(buffer.integer(_OUTSIDE, "Q") > 1 for buffer in root.tables(BUFFERS)) or any(
        operator.integer(_OPTIONS_OUTSIDE, "Q") > 1 for operator in whole.tables(OPERATORS)
    ):
        raise ValueError("it keeps constants or options outside its FlatBuffer")
    places = [subgraphs.where(i) for i in range(len(subgraphs))]
    places[0], places[graph.subgraph] = places[graph.subgraph], places[0]  # entries are not called by others
    kept = {field: Old(at) for field in (CODES, BUFFERS) if (at := root.target(field)) is not None}
    slices = [_slice(whole, graph, index) for index in range(len(graph.operators))]
    return New({_VERSION: ("I", _MODEL_VERSION), **kept, SUBGRAPHS: Tables([*map(Old, places), *slices])})


def _slice(whole: Table, graph: Graph, index: int) -> New:
    """The subgraph of one operator."""
    operator, old = graph.operators[index], whole.tables(OPERATORS)[index]
    held = whole.tables(TENSORS)
    more = old.integers(_INTERMEDIATES)
    number = numbers_in(operator)
    for tensor in more:
        if tensor >= 0:
            number.setdefault(tensor, len(number))
    used = list(number)
    number[-1] = -1

    def renumbered(tensors: Sequence[int]) -> Numbers:
        return Numbers("i", [number[i] for i in tensors])

    changed = {OPERANDS: operator.inputs, RESULTS: operator.outputs} | ({_INTERMEDIATES: more} if more else {})
    alone = copy(old, _OPERATOR, **{f"_{field}": renumbered(tensors) for field, tensors in changed.items()})
    return New(
        {
            TENSORS: Tables([Old(held[i].at) for i in used]),
            INPUTS: renumbered(given(graph, index)),
            OUTPUTS: renumbered([i for i in operator.outputs if i >= 0]),
            OPERATORS: Tables([alone]),
        }
    )


def numbers_in(operator: Operator) -> dict[int, int]:
    """Tensor -> its number in the operator's own graph."""
    used = dict.fromkeys(tensor for tensor in (*operator.inputs, *operator.outputs) if tensor >= 0)
    return {tensor: at for at, tensor in enumerate(used)}


def given(graph: Graph, index: int) -> list[int]:
    """The inputs of an operator that are not constant, by their numbers in the whole graph."""
    return list(dict.fromkeys(i for i in graph.operators[index].inputs if i >= 0 and i not in graph.constant))
