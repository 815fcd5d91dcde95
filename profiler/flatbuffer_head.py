"""Puts another root before a FlatBuffer: what changes is written anew in front, what stays is pointed to.

References in a FlatBuffer only point forward, so whatever is changed goes before everything old, along with all tables
on the way to it from the root. Nothing old moves or is copied. A layout is a letter for each field of a table, in the
schema's order: that of `struct`, or O for a reference; a union is `BO`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ferryman.runtime import flatbuffer


class Old(NamedTuple):
    """Something that stays where it is."""

    position: int


class Numbers(NamedTuple):
    """A vector of numbers."""

    form: str
    values: Sequence[int]


class Tables(NamedTuple):
    """A vector of references."""

    items: Sequence[Node]


class Text(NamedTuple):
    """A string."""

    text: str


class Table:
    """A table: slot -> (form, number), or what a reference points to."""

    def __init__(self, fields: dict[int, tuple[str, float] | Node]) -> None:
        self.fields = fields


Node = Old | Numbers | Tables | Text | Table


def copy(table: flatbuffer.Table, layout: str, **changed: tuple[str, float] | Node) -> Table:
    """A table to be written anew; `changed` are its fields by `_` and their number.

    Raises:
        ValueError: the table has more fields than the layout: whoever wrote it knows more than we.
    """
    fields: dict[int, tuple[str, float] | Node] = {}
    for field, form in enumerate(layout):
        at, target = table.place(field), None
        if at is not None and form == "O":
            target = table.target(field)
            assert target is not None  # noqa: S101  # there is a place
            fields[field] = Old(target)
        elif at is not None:
            fields[field] = (form, struct.unpack_from(f"<{form}", table.data, at)[0])
    if any(table.place(field) is not None for field in range(len(layout), len(layout) + 8)):
        raise ValueError("a table has fields that are not known here")
    return Table(fields | {int(field[1:]): value for field, value in changed.items()})


def put_before(root: Table, identifier: bytes, *, room: int = 0, align: int = 64) -> bytearray:
    """The beginning of a buffer with a new root; the old buffer, which its `Old` parts lie in, is to follow whole.

    Args:
        root: the table.
        identifier: the buffer's 4 bytes.
        room: bytes to leave free behind the identifier.
        align: what the result's length is a multiple of.
    """
    placed: list[tuple[int, Node]] = []
    end = 8 + room
    waiting: list[Node] = [root]
    positions: dict[int, int] = {}
    while waiting:
        node = waiting.pop()
        if isinstance(node, Old) or id(node) in positions:
            continue
        position, end = _place(node, end)
        positions[id(node)] = position
        placed.append((position, node))
        waiting += _children(node)
    size = -(-end // align) * align
    data = bytearray(size)

    def refer(at: int, node: Node) -> None:
        target = size + node.position if isinstance(node, Old) else positions[id(node)]
        if target <= at:  # a node that two others point to has to lie behind both
            raise ValueError("a reference would point backward")
        struct.pack_into("<I", data, at, target - at)

    refer(0, root)
    data[4:8] = identifier
    for position, node in placed:
        _write(data, position, node, refer)
    return data


def _children(node: Node) -> list[Node]:
    if isinstance(node, Table):
        return [value for value in node.fields.values() if not _is_number(value)]  # type: ignore[misc]
    return list(node.items) if isinstance(node, Tables) else []


def _is_number(value: object) -> bool:
    return type(value) is tuple


def _offsets(table: Table) -> tuple[dict[int, int], int]:
    """Of each field from the table's start, and the table's size."""
    offsets, end = {}, 4
    for slot, value in table.fields.items():
        size = struct.calcsize(f"<{value[0]}") if _is_number(value) else 4  # type: ignore[index]
        offsets[slot] = -(-end // size) * size
        end = offsets[slot] + size
    return offsets, end


def _place(node: Node, end: int) -> tuple[int, int]:
    """Where a node begins behind `end`, a table's vtable before it, and where it ends."""
    if isinstance(node, Table):
        vtable = 4 + 2 * (max(node.fields, default=-1) + 1)
        position = -(-(end + vtable) // 8) * 8
        return position, position + _offsets(node)[1]
    position = -(-(end + 4) // 8) * 8 - 4  # the elements behind the length are aligned
    if isinstance(node, Tables):
        return position, position + 4 + 4 * len(node.items)
    if isinstance(node, Text):
        return position, position + 4 + len(node.text.encode()) + 1
    assert isinstance(node, Numbers)  # noqa: S101  # an Old is nowhere placed
    return position, position + 4 + struct.calcsize(f"<{node.form}") * len(node.values)


def _write(data: bytearray, position: int, node: Node, refer: Any) -> None:  # noqa: ANN401  # a function of the caller's
    if isinstance(node, Table):
        offsets, size = _offsets(node)
        slots = max(node.fields, default=-1) + 1
        vtable = position - 4 - 2 * slots
        struct.pack_into("<HH", data, vtable, 4 + 2 * slots, size)
        struct.pack_into("<i", data, position, position - vtable)
        for slot, value in node.fields.items():
            struct.pack_into("<H", data, vtable + 4 + 2 * slot, offsets[slot])
            if _is_number(value):
                form, number = value  # type: ignore[misc]
                struct.pack_into(f"<{form}", data, position + offsets[slot], number)
            else:
                refer(position + offsets[slot], value)
    elif isinstance(node, Tables):
        struct.pack_into("<I", data, position, len(node.items))
        for index, item in enumerate(node.items):
            refer(position + 4 + 4 * index, item)
    elif isinstance(node, Text):
        raw = node.text.encode()
        struct.pack_into("<I", data, position, len(raw))
        data[position + 4 : position + 4 + len(raw)] = raw
    elif isinstance(node, Numbers):
        struct.pack_into(f"<I{len(node.values)}{node.form}", data, position, len(node.values), *node.values)
