"""Keeps weights in `.pte` once that a delegate reads as well as an operator outside of it, as a tied embedding's.

The toolchain writes constants of operators into one segment, and those of XNNPACK each into one of its own, by name.
A segment is a range of the file: one whose bytes the first holds already may lie within it.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

from executorch.exir._serialize import _flatbuffer_program
from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program

_MAGIC = b"eh00"
_HEADER = struct.Struct("<4sIQQQ")
"""Magic, its own length, bytes of the program, where segments begin, their bytes."""
_HEADER_AT = 8
_OFFSET_SLOT = 4
"""Of DataSegment.offset in its table (program.fbs)."""
_ALIGNMENT = 128
"""Of segments, as the toolchain lays them."""
_LEAST = 1024
"""Bytes below which nothing is won."""


def share_constants(data: bytes) -> bytes:
    """Drop the segments of a program whose bytes its constants hold already, and have them lie there."""
    magic, length, size, base, _ = _HEADER.unpack_from(data, _HEADER_AT)
    _flatbuffer_program._patch_generated_flatbuffer_aliases()  # noqa: SLF001  # its readers fail without
    program: Any = Program.GetRootAs(data, 0)
    constants = program.ConstantSegment()
    if magic != _MAGIC or length < _HEADER.size or constants is None or not constants.OffsetsLength():
        return data
    tables = [program.Segments(index) for index in range(program.SegmentsLength())]
    places = [(table.Offset(), table.Size()) for table in tables]
    contents = [data[base + begin : base + begin + count] for begin, count in places]
    holder = constants.SegmentIndex()
    named = {program.NamedData(index).SegmentIndex() for index in range(program.NamedDataLength())} - {holder}
    starts = [constants.Offsets(index) for index in range(constants.OffsetsLength())]
    rooms = list(pairwise(sorted({*starts, places[holder][1]})))
    inside: dict[int, int] = {}
    """Segment -> where among the constants its bytes are."""
    for index in named:
        wanted = contents[index]
        if len(wanted) >= _LEAST:
            fits = (begin for begin, end in rooms if end - begin >= len(wanted))
            found = next((begin for begin in fits if contents[holder].startswith(wanted, begin)), None)
            if found is not None:
                inside[index] = found
    if not inside:
        return data
    body = bytearray()
    moved: dict[int, int] = {}
    for index in sorted(set(range(len(tables))) - inside.keys(), key=lambda one: places[one]):
        body += bytes(-len(body) % _ALIGNMENT)
        moved[index] = len(body)
        body += contents[index]
    moved |= {index: moved[holder] + begin for index, begin in inside.items()}
    head = bytearray(data[:base])
    for index, table in enumerate(tables):
        slot = table._tab.Offset(_OFFSET_SLOT)  # noqa: SLF001  # flatbuffers has no public way
        if not slot and moved[index]:
            return data
        if slot:
            struct.pack_into("<Q", head, table._tab.Pos + slot, moved[index])  # noqa: SLF001
    _HEADER.pack_into(head, _HEADER_AT, _MAGIC, _HEADER.size, size, base, len(body))
    return bytes(head + body)
