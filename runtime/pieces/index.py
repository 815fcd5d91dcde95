"""The index of a recipe: its pieces in order, as MessagePack in a zstd frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from backports import zstd

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.release import pack_path
from ferryman.runtime.contracts.tensor import pack, unpack

PIECE_MAX_BYTES = 4 << 20
"""A piece is made in memory; so is what it is made from."""
WHOLE_TENSOR_MAX_BYTES = 256 << 20
"""Of a piece whose codec needs a whole tensor."""
PIECES_MAX = 1 << 20
PACKS_MAX = 1 << 16
_INDEX_MAX_BYTES = 256 << 20
_SPARE_BYTES = 1 << 20
"""What an index may have beside as many bytes as the payload: one that is larger would be of no use."""
_HASH_BYTES = 32


class Piece(Record, array_like=True):
    """The next bytes of a payload, and how to make them."""

    size: int
    sha256: bytes
    """Of the piece itself, 32 bytes."""
    codec: str
    """See `ferryman.runtime.pieces.codecs`."""
    pack: int = -1
    """Which of the index's packs; -1: nothing is stored."""
    offset: int = 0
    length: int = 0
    """Stored bytes."""
    base_offset: int = 0
    base_size: int = 0
    """The span of the base payload it is made from; 0: none."""


class Index(Record):
    """All pieces of a recipe."""

    packs: Annotated[tuple[str, ...], msgspec.Meta(max_length=PACKS_MAX)]
    """SHA-256 of each, in hex."""
    pieces: Annotated[tuple[Piece, ...], msgspec.Meta(max_length=PIECES_MAX)]


def write_index(index: Index) -> tuple[bytes, int]:
    """The index as stored, and its bytes once unpacked."""
    plain = pack(index)
    return zstd.compress(plain, level=19), len(plain)


def read_index(data: bytes, plain_bytes: int, size_bytes: int, base_bytes: int = 0) -> Index:
    """Unpack and check an index.

    Args:
        data: as stored; its hash was checked.
        plain_bytes: what it must unpack to.
        size_bytes: of the payload that the pieces must make.
        base_bytes: of the payload they are made from; 0: from nothing.

    Raises:
        PackageError: it is not an index, or not of such a payload.
    """
    if not 0 < plain_bytes <= min(_INDEX_MAX_BYTES, size_bytes + _SPARE_BYTES):
        raise PackageError(f"an index of {plain_bytes} bytes is none")
    try:
        decompressor = zstd.ZstdDecompressor()
        plain = decompressor.decompress(data, plain_bytes + 1)
        if len(plain) != plain_bytes or not decompressor.eof or decompressor.unused_data:
            raise PackageError(f"an index does not unpack to the {plain_bytes} bytes it should")
        index = unpack(plain, Index)
    except (zstd.ZstdError, ValueError, msgspec.MsgspecError) as error:
        raise PackageError(f"an index cannot be read: {error}") from error
    for one in index.packs:
        pack_path(one)
    for number, piece in enumerate(index.pieces):
        if problem := _problem(piece, len(index.packs), base_bytes):
            raise PackageError(f"piece {number} of an index: {problem}")
    if (made := sum(piece.size for piece in index.pieces)) != size_bytes:
        raise PackageError(f"the pieces make {made} bytes, and the payload has {size_bytes}")
    return index


def wire_bytes(pieces: Sequence[Piece]) -> int:
    """What pieces need of the wire."""
    return sum(piece.length for piece in pieces)


def _problem(piece: Piece, packs: int, base_bytes: int) -> str:
    from ferryman.runtime.pieces.codecs import CODECS

    if piece.codec not in CODECS:
        return f"codec {piece.codec[:40]!r} is not known here; there are: {', '.join(CODECS)}; update ferryman"
    codec = CODECS[piece.codec]
    stored_max = codec.size_max + 1024 if codec.stored else 0
    rules = {
        "its hash is none": len(piece.sha256) == _HASH_BYTES,
        f"{piece.size} bytes are not 1 to {codec.size_max}": 0 < piece.size <= codec.size_max,
        f"pack {piece.pack} is none of it": (0 <= piece.pack < packs) if codec.stored else piece.pack == -1,
        f"{piece.length} stored bytes at {piece.offset} cannot be": piece.offset >= 0
        and codec.stored <= piece.length <= stored_max,
        f"a base of {piece.base_size} bytes does not go with {piece.codec}": codec.based == (piece.base_size > 0)
        and 0 <= piece.base_size <= codec.size_max,
        f"its base lies outside the payload it is made from ({base_bytes} bytes)": 0
        <= piece.base_offset
        <= base_bytes - piece.base_size,
    }
    return next((problem for problem, holds in rules.items() if not holds), "")
