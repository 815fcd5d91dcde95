"""Where the float32 weights of an artifact are, in the order its graph names them.

Schemas: TFLite's schema.fbs; program.fbs and xnnpack's schema.fbs of ExecuTorch 1.5.1. Fields go by their number.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.flatbuffer import BrokenError, Table, number

_TFLITE, _SUBGRAPHS, _BUFFERS, _TENSORS, _OPERATORS, _OPERANDS = b"TFL3", 2, 4, 0, 3, 1
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _FLOAT32 = 0, 1, 2, 0
_CONTENTS, _OUTSIDE, _OUTSIDE_BYTES = 0, 1, 2
_PTE, _HEADER = b"ET12", b"eh00"
_PLANS, _BUFFERS_WITHIN, _INLINE, _SEGMENTS, _CONSTANTS, _NAMED = 1, 2, 3, 4, 5, 7
_VALUES, _DELEGATES, _TENSOR = 2, 7, 5
_SCALAR, _SIZES, _DATA, _EXTRA, _FLOAT = 0, 2, 5, 9, 6
_XNNPACK, _XNNPACK_MAGIC, _XNNPACK_VALUES, _XNNPACK_CONSTANTS, _XNNPACK_FLOAT = "XnnpackBackend", b"XH00", 2, 8, 1
_WITHIN = (1 << 64) - 1
"""Where a delegate's constant is no offset, but has a name."""
_KEY = re.compile(rb"[0-9a-f]{64}")
_ITEM = 4
_HELD_MAX = 1 << 20


@dataclass(frozen=True)
class Weight:
    """One constant of float32."""

    offset: int
    """In the file, in bytes."""
    shape: tuple[int, ...]
    """As the runtime lays it out."""

    @property
    def size_bytes(self) -> int:
        """Of its contents."""
        return _ITEM * math.prod(self.shape)

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.size_bytes


@dataclass(frozen=True)
class Weights:
    """Of an artifact."""

    uses: tuple[Weight, ...]
    """One for each use in the graph, in its order; where several share a constant, it is there several times."""
    names: tuple[tuple[int, int], ...] = ()
    """(file offset of a name of 64 hex digits, offset of the constant that it is of): ExecuTorch's runtime looks packed
    weights up by such names, so another constant needs another name."""

    def distinct(self) -> list[Weight]:
        """Each constant once, in order of the file."""
        return sorted(dict.fromkeys(self.uses), key=lambda one: one.offset)


def find_weights(data: bytes, runtime: RuntimeName) -> Weights:
    """Look an artifact through.

    Raises:
        PackageError: it is damaged, or two constants lie over each other.
    """
    try:
        found = _Pte(data).weights() if runtime == "executorch" else Weights(tuple(_tflite(data)))
    except (BrokenError, IndexError, ValueError, struct.error) as error:
        raise PackageError(f"an artifact for {runtime} is damaged: {error}") from error
    end = 0
    for one in found.distinct():
        if one.offset < end or one.end > len(data):
            raise PackageError(f"an artifact for {runtime} has constants that lie over each other or beyond its end")
        end = one.end
    return found


def _tflite(data: bytes) -> Iterator[Weight]:
    root = Table.root(data, _TFLITE)
    buffers = [_contents(one) for one in root.tables(_BUFFERS)]
    for graph in root.tables(_SUBGRAPHS):
        tensors = graph.tables(_TENSORS)
        # Tensors are listed in no order that two conversions share; operators are in that of their execution.
        operands = (index for operator in graph.tables(_OPERATORS) for index in operator.integers(_OPERANDS))
        for tensor in (tensors[index] for index in operands if index >= 0):
            start, size = buffers[tensor.integer(_TENSOR_BUFFER, "I")]
            shape = tensor.integers(_TENSOR_SHAPE)
            if tensor.integer(_TENSOR_TYPE, "b") == _FLOAT32 and size and size == _ITEM * math.prod(shape):
                yield Weight(start, shape)


def _contents(buffer: Table) -> tuple[int, int]:
    """Offset and bytes of what a buffer holds, in the FlatBuffer or behind it."""
    if (outside := buffer.integer(_OUTSIDE, "Q")) > 1:
        return outside, buffer.integer(_OUTSIDE_BYTES, "Q")
    at = buffer.target(_CONTENTS)
    return (0, 0) if at is None else (at + _ITEM, buffer.count(_CONTENTS))


class _Pte:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._root = Table.root(data, _PTE)
        self._base = number(data, "<Q", 24) if data[8:12] == _HEADER else 0
        self._named: dict[bytes, int] = {}
        self._names: list[tuple[int, int]] = []
        for one in self._root.tables(_NAMED):
            key = one.bytes_of(0)
            self._named[key] = self._segment(one.integer(1, "I"))[0]
            self._name(one, 0, key)

    def weights(self) -> Weights:
        uses = [weight for plan in self._root.tables(_PLANS) for weight in (*self._plain(plan), *self._inside(plan))]
        places = {one.offset for one in uses}
        return Weights(tuple(uses), tuple((at, of) for at, of in self._names if of in places))

    def _segment(self, index: int) -> tuple[int, int]:
        segment = self._root.tables(_SEGMENTS)[index]
        return self._base + segment.integer(0, "Q"), segment.integer(1, "Q")

    def _name(self, table: Table, field: int, key: bytes) -> None:
        if _KEY.fullmatch(key) and (at := table.target(field)) is not None:
            self._names.append((at + _ITEM, self._named[key]))

    def _plain(self, plan: Table) -> Iterator[Weight]:
        """Constants of operators outside of delegates."""
        segment = self._root.table(_CONSTANTS)
        within = self._root.tables(_BUFFERS_WITHIN)
        offsets = () if segment is None else segment.integers(1, "Q")
        for value in plan.tables(_VALUES):
            tensor = value.table(1)
            if value.integer(0, "B") != _TENSOR or tensor is None or tensor.integer(_SCALAR, "b") != _FLOAT:
                continue
            index = tensor.integer(_DATA, "I")
            if not index or tensor.table(_EXTRA) is not None:
                continue
            shape = tensor.integers(_SIZES)
            if segment is not None and offsets:
                yield Weight(self._segment(segment.integer(0, "I"))[0] + offsets[index], shape)
            elif (at := within[index].target(0)) is not None:
                yield Weight(at + _ITEM, shape)

    def _inside(self, plan: Table) -> Iterator[Weight]:
        """Constants of what XNNPACK runs."""
        for delegate in plan.tables(_DELEGATES):
            where = delegate.table(1)
            if delegate.text(0) != _XNNPACK or where is None:
                continue
            start, size = self._blob(where)
            if self._data[start + 4 : start + 8] != _XNNPACK_MAGIC or start + size > len(self._data):
                raise BrokenError("a delegate's data is none of XNNPACK's")
            graph_at, graph_bytes = number(self._data, "<I", start + 10), number(self._data, "<I", start + 14)
            graph_at += start
            # Names are patched where they lie, so a table's place must count from the beginning of the file.
            graph = _Shifted(self._data[graph_at : graph_at + graph_bytes], graph_at)
            constants_at = start + number(self._data, "<I", start + 18)
            yield from self._graph(graph, constants_at)

    def _graph(self, shifted: _Shifted, constants_at: int) -> Iterator[Weight]:
        graph = Table.root(shifted.data)
        constants = graph.tables(_XNNPACK_CONSTANTS)
        values = graph.tables(_XNNPACK_VALUES)
        if max(len(constants), len(values)) > _HELD_MAX:
            raise BrokenError("too many values")
        places: list[int | None] = []
        for one in constants:
            key = one.bytes_of(2)
            if key:
                if (at := one.target(2)) is not None and _KEY.fullmatch(key) and key in self._named:
                    self._names.append((shifted.at + at + _ITEM, self._named[key]))
                places.append(self._named.get(key))
            else:
                offset = one.integer(0, "Q", _WITHIN)
                places.append(None if offset == _WITHIN else constants_at + offset)
        for value in values:
            tensor = value.table(1)
            if value.integer(0, "B") != 1 or tensor is None or tensor.integer(0, "h") != _XNNPACK_FLOAT:
                continue
            place = places[index] if (index := tensor.integer(3, "I")) else None
            if place is not None:
                yield Weight(place, tensor.integers(2, "I"))

    def _blob(self, where: Table) -> tuple[int, int]:
        index = where.integer(1, "I")
        if where.integer(0, "b") == 0:
            inline = self._root.tables(_INLINE)[index]
            at = inline.target(0)
            if at is None:
                raise BrokenError("a delegate has no data")
            return at + _ITEM, inline.count(0)
        return self._segment(index)


@dataclass(frozen=True)
class _Shifted:
    """A FlatBuffer within the file."""

    data: bytes
    at: int
