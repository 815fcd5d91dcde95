import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet.repository.chunks import AVERAGE_BYTES, MAX_BYTES, MIN_BYTES, cut, make_index, place
from ferryman.devices.fleet.repository.packs import NewPack, Packs
from ferryman.runtime.pieces.codecs import make
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES


def _pieces(data):
    return [bytes(one) for one in cut(memoryview(data))]


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3000))
def test_pieces_are_the_payload(data, times):
    whole = data * times
    pieces = _pieces(whole)
    assert b"".join(pieces) == whole
    assert all(0 < len(one) <= MAX_BYTES <= PIECE_MAX_BYTES for one in pieces)


def test_an_insertion_changes_the_pieces_around_it_alone():
    data = os.urandom(2 << 20)
    before, after = _pieces(data), _pieces(data[: 1 << 20] + b"inserted" + data[1 << 20 :])
    assert 1 <= len({*after} - {*before}) <= 3
    assert MIN_BYTES <= len(data) / len(before) <= 3 * AVERAGE_BYTES


def test_equal_pieces_are_stored_once_and_what_does_not_shrink_is_raw(tmp_path):
    noise, zeros = os.urandom(1 << 20), bytes(1 << 20)
    known = {}
    with NewPack(tmp_path, tmp_path, "pieces") as pack:
        first = place(memoryview(noise + zeros), known, pack)
        size = pack.size
        again = place(memoryview(noise), known, pack)
        assert pack.size - size <= 2 * MAX_BYTES  # at most where it was cut off
        name = pack.finish()
    codecs = {one.piece.codec for one in first}
    assert codecs == {"raw", "zstd"}
    index = make_index([*first, *again], name)
    assert index.packs == (name,)
    with Packs(tmp_path) as packs:
        made = b"".join(
            make(one, packs.read(index.packs[one.pack], one.offset, one.length), memoryview(b""))
            for one in index.pieces
        )
    assert made == noise + zeros + noise


@pytest.mark.parametrize("data", [b"", b"x"])
def test_the_smallest_payloads(data):
    assert b"".join(_pieces(data)) == data
