"""A new root before a FlatBuffer, which points to what stays."""

from __future__ import annotations

import struct

import pytest

from ferryman.profiler.flatbuffer_head import Numbers, Old, Table, Tables, Text, copy, put_before
from ferryman.runtime.flatbuffer import Table as View


def test_what_is_written_anew_points_to_the_old():
    old = bytes(put_before(Table({0: Text("kept"), 1: ("I", 7), 3: Numbers("q", [1, -2])}), b"TEST"))
    table = View.root(old, b"TEST")
    assert (table.text(0), table.integer(1, "I"), table.integers(3, "q")) == ("kept", 7, (1, -2))
    changed = copy(table, "OIOO", _1=("I", 8), _2=Tables([Old(table.at), Table({5: ("d", 0.5)})]))
    new = bytes(put_before(changed, b"TEST", room=24)) + old
    table = View.root(new, b"TEST")
    assert (table.text(0), table.integer(1, "I"), table.integers(3, "q")) == ("kept", 8, (1, -2))
    assert table.tables(2)[0].integer(1, "I") == 7
    assert struct.unpack_from("<d", new, table.tables(2)[1].place(5)) == (0.5,)
    assert new[8:32] == bytes(24)
    assert (len(new) - len(old)) % 64 == 0
    assert (table.target(3) + 4) % 8 == 0


def test_a_table_of_a_later_schema_is_not_copied():
    table = View.root(put_before(Table({2: ("I", 1)}), b"TEST"))
    with pytest.raises(ValueError, match="not known"):
        copy(table, "OI")
