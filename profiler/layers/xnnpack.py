"""Makes what is inside a graph that XNNPACK gets outputs: xnnpack's schema.fbs of ExecuTorch 1.5.1."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from ferryman.profiler.flatbuffer_head import Node, Numbers, Old, Tables, copy, put_before
from ferryman.profiler.flatbuffer_head import Table as New
from ferryman.profiler.layers.exposed import Stored
from ferryman.profiler.operators.xnnpack import FORMS
from ferryman.runtime.flatbuffer import Table

_MAGIC, _IDENTIFIER = b"XH00", b"XN01"
_HEADER = struct.Struct("<4x4sHIIIQ")
_HEADER_ROOM = 32
_ALIGN = 64
_GRAPH, _NODES, _VALUES, _EXTERNS, _INPUTS, _OUTPUTS = "OOOIOOOOO", 1, 2, 3, 4, 5
_PLAIN, _DATATYPE, _DIMS, _CONSTANT, _EXTERNAL, _FLAGS, _ID = "hIOIIII", 0, 2, 3, 4, 5, 6
_QUANTIZED = "OBO"
_IS_QUANTIZED, _PER_TENSOR = 2, 2
_INTERNAL = 0xFFFFFFFF
_HANDLE = 2
"""Field of a node: the handle it has in the exported program."""
_IS_OUTPUT = 2
_DTYPES = {1: 6, 2: 5, 3: 1, 4: 0}
"""XNNPACK's number of a datatype -> ExecuTorch's: floats, halves, quantized signed and unsigned bytes."""
_ENDS = {3: (-128, 127), 4: (0, 255)}
_CHANNELS_LAST = frozenset(("linear", "conv2d", "depthwise_conv2d", "conv_transpose"))


class Inner(NamedTuple):
    """A value that a node writes."""

    kind: str
    module: str | None
    outer: bool
    """It is an output of the delegate already."""
    external: int
    """Its number among the delegate's arguments."""
    shape: tuple[int, ...]
    dtype: int
    """ExecuTorch's number."""
    channels: int | None
    stored: Stored | None


class Inside(NamedTuple):
    """What a delegate takes and writes."""

    inputs: tuple[int, ...]
    """Numbers among its arguments."""
    values: list[Inner]
    """In the order they are written; those that were no arguments become the next ones."""
    left_out: list[str]


def rebuild(blob: bytes, origins: Mapping[str, str]) -> tuple[bytes, Inside]:
    """The delegate's data with further outputs, and what they are.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    try:
        magic, _, start, size, constants, constant_bytes = _HEADER.unpack_from(blob)
    except struct.error as error:
        raise ValueError(f"a delegate's data is damaged: {error}") from error
    if magic != _MAGIC or start + size > len(blob) or constants + constant_bytes > len(blob):
        raise ValueError("a delegate's data is damaged")
    data = blob[start : start + size]
    graph = Table.root(data, _IDENTIFIER)
    values = {_plain(value).integer(_ID, "I"): value for value in graph.tables(_VALUES)}
    externs = graph.integer(_EXTERNS, "I")
    found, left_out = _written(graph, values, origins, externs)
    anew = {written: inner.external for written, inner in found.items() if not inner.outer}
    items: list[Node] = [
        _as_output(value, anew[written]) if (written := _plain(value).integer(_ID, "I")) in anew else Old(value.at)
        for value in graph.tables(_VALUES)
    ]
    root = copy(
        graph,
        _GRAPH,
        **{
            f"_{_VALUES}": Tables(items),
            f"_{_EXTERNS}": ("I", externs + len(anew)),
            f"_{_OUTPUTS}": Numbers("I", (*graph.integers(_OUTPUTS, "I"), *anew)),
        },
    )
    made = bytes(put_before(root, _IDENTIFIER)) + data
    padded = -(-(_HEADER_ROOM + len(made)) // _ALIGN) * _ALIGN
    header = _HEADER.pack(_MAGIC, _HEADER.size, _HEADER_ROOM, len(made), padded, constant_bytes)
    whole = (header.ljust(_HEADER_ROOM, b"\0") + made).ljust(padded, b"\0")
    inputs = tuple(_plain(values[given]).integer(_EXTERNAL, "I") for given in graph.integers(_INPUTS, "I"))
    inside = Inside(inputs, list(found.values()), left_out)
    return whole + blob[constants : constants + constant_bytes], inside


def _written(
    graph: Table, values: Mapping[int, Table], origins: Mapping[str, str], externs: int
) -> tuple[dict[int, Inner], list[str]]:
    """Value's id -> what it is, in the order they are written."""
    found: dict[int, Inner] = {}
    left_out: list[str] = []
    external = externs
    for node in graph.tables(_NODES):
        number, held = node.integer(0, "B"), node.table(1)
        if held is None or not 1 <= number <= len(FORMS):
            raise ValueError(f"a delegate holds a node of kind {number}")
        kind, written = FORMS[number - 1].kind, held.integer(FORMS[number - 1].output, "I")
        if written in found:
            continue
        plain = _plain(values[written])
        datatype = plain.integer(_DATATYPE, "h")
        outer = plain.integer(_EXTERNAL, "I") != _INTERNAL
        shape = plain.integers(_DIMS, "I")
        stored = _stored(values[written], datatype)
        if datatype not in _DTYPES or (datatype in _ENDS and stored is None) or not shape:
            left_out.append(f"{kind}: XNNPACK does not give values of datatype {datatype} out")
            continue
        found[written] = Inner(
            kind=kind,
            module=origins.get(str(node.integer(_HANDLE, "I"))),
            outer=outer,
            external=plain.integer(_EXTERNAL, "I") if outer else external,
            shape=shape,
            dtype=_DTYPES[datatype],
            channels=len(shape) - 1 if kind in _CHANNELS_LAST else None,
            stored=stored,
        )
        external += not outer
    return found, left_out


def _plain(value: Table) -> Table:
    held = value.table(1)
    if held is not None and value.integer(0, "B") == _IS_QUANTIZED:
        held = held.table(0)
    if held is None:
        raise ValueError("a value of a delegate is empty")
    return held


def _stored(value: Table, datatype: int) -> Stored | None:
    held = value.table(1)
    if held is None or datatype not in _ENDS or value.integer(0, "B") != _IS_QUANTIZED:
        return None
    how = held.table(2)
    if how is None or held.integer(1, "B") != _PER_TENSOR:
        return None
    at = how.place(0)
    scale = struct.unpack_from("<f", how.data, at)[0] if at is not None else 0.0
    return Stored(scale, how.integer(1), *_ENDS[datatype])


def _as_output(value: Table, external: int) -> New:
    changes: dict[str, tuple[str, float] | Node] = {f"_{_EXTERNAL}": ("I", external), f"_{_FLAGS}": ("I", _IS_OUTPUT)}
    made = copy(_plain(value), _PLAIN, **changes)
    kind = value.integer(0, "B")
    held = value.table(1)
    if kind == _IS_QUANTIZED and held is not None:
        made = copy(held, _QUANTIZED, _0=made)
    return New({0: ("B", kind), 1: made})
