"""Indices of recipes: what is written is read, and what is absurd is refused before it takes memory."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import pytest
from backports import zstd

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.pieces.index import Index, Piece, read_index, write_index

PACK = "ab" * 32
DATA = b"ferry" * 20
PIECE = Piece(size=100, sha256=hashlib.sha256(DATA).digest(), codec="zstd", pack=0, offset=7, length=30)


def bomb(head: bytes, count: int, item: bytes) -> tuple[bytes, int]:
    plain = head + b"\xdd" + struct.pack(">I", count) + item * count
    return zstd.compress(plain), len(plain)


def test_what_is_written_is_read():
    index = Index(packs=(PACK,), pieces=(PIECE,))
    assert read_index(*write_index(index), 100) == index


@pytest.mark.parametrize(
    ("stored", "plain_bytes"),
    [
        bomb(b"\x81\xa5packs", 30_000_000, b"\xa0"),
        bomb(b"\x82\xa5packs\x90\xa6pieces", 30_000_000, b"\xc0"),
    ],
    ids=["packs", "pieces"],
)
@pytest.mark.parametrize("payload", [100, 1 << 30])
def test_a_small_index_of_many_entries_takes_no_memory(stored, plain_bytes, payload):
    tracemalloc.start()
    with pytest.raises(PackageError, match=r"is none|of length <="):
        read_index(stored, plain_bytes, payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * plain_bytes


def test_an_index_larger_than_its_payload_is_none():
    stored, _ = write_index(Index(packs=(PACK,), pieces=(PIECE,)))
    with pytest.raises(PackageError, match="is none"):
        read_index(stored, 2 << 20, 100)
