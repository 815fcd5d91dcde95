"""How a piece is stored. A codec is a pure function; what it makes is checked against the piece's hash.

Every one gives the same bytes on every machine, and takes memory in proportion to the piece, whatever it is fed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from backports import zstd

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.pieces.adapter import decode_adapter
from ferryman.runtime.pieces.edits import decode_edits
from ferryman.runtime.pieces.elements import decode_elements
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES, WHOLE_TENSOR_MAX_BYTES, Piece
from ferryman.runtime.pieces.sparse import decode_sparse

Decode = Callable[[bytes, memoryview, int], bytes]
"""(stored, base, size) -> the piece; raises ValueError or ZstdError where `stored` is not of this codec."""


@dataclass(frozen=True)
class Codec:
    """How to make a piece."""

    decode: Decode
    stored: bool = True
    """Whether bytes of a pack go into it."""
    based: bool = False
    """Whether a span of the base payload goes into it."""
    size_max: int = PIECE_MAX_BYTES


def _raw(stored: bytes, _base: memoryview, _size: int) -> bytes:
    return stored


def _zstd(stored: bytes, _base: memoryview, size: int) -> bytes:
    return unframe(stored, size, None)


def _patch(stored: bytes, base: memoryview, size: int) -> bytes:
    return unframe(stored, size, zstd.ZstdDict(base, is_raw=True))


def _copy(_stored: bytes, base: memoryview, _size: int) -> bytes:
    return bytes(base)


def _edits(stored: bytes, base: memoryview, size: int) -> bytes:
    return decode_edits(stored, base, size)


def _residual(stored: bytes, base: memoryview, size: int) -> bytes:
    return decode_elements(stored, base, size)


def _entropy(stored: bytes, _base: memoryview, size: int) -> bytes:
    return decode_elements(stored, None, size)


def unframe(stored: bytes, size: int, prefix: zstd.ZstdDict | None) -> bytes:
    """One zstd frame of `size` bytes; more are never made.

    Raises:
        ZstdError: it is none.
        ValueError: it ends early or goes on.
    """
    decompressor = zstd.ZstdDecompressor(
        zstd_dict=prefix.as_prefix if prefix is not None else None,
        options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG},
    )
    made = decompressor.decompress(stored, size + 1)
    if len(made) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"the frame does not hold {size} bytes")
    return made


_WINDOW_LOG = 24
"""Holds a piece and its base, twice."""

PREFIX_MIN_BYTES = 8
"""zstd takes no shorter prefix."""
CODECS: dict[str, Codec] = {
    "raw": Codec(_raw),
    "zstd": Codec(_zstd),
    "patch": Codec(_patch, based=True),
    "copy": Codec(_copy, stored=False, based=True, size_max=1 << 40),
    "edits": Codec(_edits, based=True),
    "residual": Codec(_residual, based=True),
    "entropy": Codec(_entropy),
    "sparse": Codec(decode_sparse, based=True),
    "adapter": Codec(decode_adapter, based=True, size_max=WHOLE_TENSOR_MAX_BYTES),
}
"""`copy` takes any size, and may be read and written in parts; of `residual` and `entropy` see `elements`."""


def make(piece: Piece, stored: bytes, base: memoryview) -> bytes:
    """Make a piece and check it.

    Args:
        piece: of an index that `read_index` passed.
        stored: its bytes of the pack, empty where there are none.
        base: its span of the base payload, empty where there is none.

    Raises:
        PackageError: what comes out is not the piece.
    """
    if len(stored) != piece.length or len(base) != piece.base_size:
        raise PackageError(f"a piece needs {piece.length} stored bytes and {piece.base_size} of the base")
    try:
        made = CODECS[piece.codec].decode(stored, base, piece.size)
    except (ValueError, zstd.ZstdError, IndexError, OverflowError) as error:
        raise PackageError(f"a piece is not of codec {piece.codec}: {error}") from error
    if len(made) != piece.size or hashlib.sha256(made).digest() != piece.sha256:
        raise PackageError("a piece does not have the hash it must have")
    return made


def compress(data: bytes, prefix: bytes | None = None, level: int = 19) -> bytes:
    """One zstd frame, for `zstd` or, behind a prefix of `PREFIX_MIN_BYTES` or more, `patch`."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.window_log: _WINDOW_LOG,
    }
    if prefix is None:
        return zstd.compress(data, options=options)
    options[zstd.CompressionParameter.enable_long_distance_matching] = 1
    return zstd.compress(data, options=options, zstd_dict=zstd.ZstdDict(prefix, is_raw=True).as_prefix)
