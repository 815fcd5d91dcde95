"""Payloads cut by content, so that equal bytes make equal pieces wherever they lie, and are stored once.

Pieces of 32 KiB on average: where one of ten layers changes, a device with another version fetches 5 % (float32
weights) to 40 % (int8) more than that layer; pieces half as long would cost every full download twice the index (0.5 %
instead of 0.24 %), and twice as long ones a layer half as much again. What a publisher knows the base of is a delta.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastcdc import fastcdc

from ferryman.devices.fleet.repository.packs import NewPack, Packs
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.pieces.codecs import compress
from ferryman.runtime.pieces.index import Index, Piece

MIN_BYTES = 8 << 10
AVERAGE_BYTES = 32 << 10
MAX_BYTES = 128 << 10


@dataclass(frozen=True)
class Placed:
    """A piece and the pack it is stored in; None: the one being written, or nothing is stored."""

    piece: Piece
    pack: str | None


Known = dict[bytes, Placed]
"""SHA-256 of a piece -> where it is stored; only pieces that need no base."""


def cut(data: memoryview) -> Iterator[memoryview]:
    """A payload in pieces, one after the other."""
    for chunk in fastcdc(data, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES):
        yield data[chunk.offset : chunk.offset + chunk.length]


def known_pieces(releases: Iterable[Release], packs: Packs) -> Known:
    """Every piece that is stored and needs no base.

    Raises:
        RepositoryError: an index is not what its release says.
    """
    known: Known = {}
    for release in releases:
        for payload in release.payloads:
            index = packs.index(payload.recipes[0], payload.size_bytes)
            for piece in index.pieces:
                known.setdefault(piece.sha256, Placed(piece, index.packs[piece.pack] if piece.pack >= 0 else None))
    return known


def place(data: memoryview, known: Known, pack: NewPack) -> list[Placed]:
    """Cut a payload, and store what is not stored yet."""
    placed = []
    for chunk in cut(data):
        sha256 = hashlib.sha256(chunk).digest()
        if sha256 not in known:
            known[sha256] = Placed(_store(bytes(chunk), sha256, pack), None)
        placed.append(known[sha256])
    return placed


def make_index(placed: Iterable[Placed], new_pack: str | None) -> Index:
    """The index of placed pieces, once the new pack has a name."""
    packs: dict[str, int] = {}
    pieces = []
    for one in placed:
        piece = one.piece
        if piece.length or piece.pack >= 0:
            name = one.pack or new_pack
            assert name is not None  # noqa: S101  # something is stored, so there is a pack
            number = packs.setdefault(name, len(packs))
            piece = Piece(**{field: getattr(piece, field) for field in Piece.__struct_fields__} | {"pack": number})
        pieces.append(piece)
    return Index(packs=tuple(packs), pieces=tuple(pieces))


def _store(data: bytes, sha256: bytes, pack: NewPack) -> Piece:
    stored, codec = compress(data), "zstd"
    if len(stored) >= len(data):
        stored, codec = data, "raw"
    return Piece(size=len(data), sha256=sha256, codec=codec, pack=0, offset=pack.add(stored), length=len(stored))
