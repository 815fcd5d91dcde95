"""Every codec makes its piece, or says that it cannot."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.pieces.codecs import CODECS, compress, make
from ferryman.runtime.pieces.edits import encode_edits
from ferryman.runtime.pieces.elements import KINDS, encode_elements
from ferryman.runtime.pieces.index import Piece

OLD = bytes(range(256)) * 4
NEW = bytes(value ^ (value % 20 == 0) for value in OLD)
STORED = {
    "raw": NEW,
    "zstd": compress(NEW),
    "patch": compress(NEW, OLD),
    "edits": encode_edits(NEW, OLD, []),
    "residual": encode_elements(KINDS[1], NEW, OLD),
    "entropy": encode_elements(KINDS[1], NEW, None),
}


def piece_of(codec, stored, made=NEW, base=OLD):
    based = CODECS[codec].based
    return Piece(
        size=len(made),
        sha256=hashlib.sha256(made).digest(),
        codec=codec,
        pack=0 if stored else -1,
        length=len(stored),
        base_size=len(base) if based else 0,
    )


def base_of(codec):
    return memoryview(OLD if CODECS[codec].based else b"")


def test_every_codec_is_tested():
    assert set(STORED) | {"copy", "sparse", "adapter"} == set(CODECS)  # the last two have test files of their own


@pytest.mark.parametrize("codec", STORED)
def test_a_piece_is_made(codec):
    assert make(piece_of(codec, STORED[codec]), STORED[codec], base_of(codec)) == NEW


def test_a_span_is_copied():
    assert make(piece_of("copy", b"", OLD), b"", memoryview(OLD)) == OLD


@pytest.mark.parametrize("codec", STORED)
@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused(codec, data):
    stored = bytearray(STORED[codec])
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    with suppress(PackageError):
        assert make(piece_of(codec, stored), bytes(stored), base_of(codec)) == NEW


@pytest.mark.parametrize("codec", STORED)
@settings(deadline=None)
@given(stored=st.binary(min_size=1, max_size=200))
def test_foreign_bytes_are_refused(codec, stored):
    with pytest.raises(PackageError):
        make(piece_of(codec, stored), stored, base_of(codec))


@pytest.mark.parametrize("codec", [name for name in STORED if CODECS[name].based])
def test_another_base_is_refused(codec):
    with pytest.raises(PackageError):
        make(piece_of(codec, STORED[codec]), STORED[codec], memoryview(OLD[::-1]))


@pytest.mark.parametrize("codec", STORED)
def test_a_base_or_stored_bytes_of_another_length_are_refused(codec):
    with pytest.raises(PackageError, match="a piece needs"):
        make(piece_of(codec, STORED[codec]), STORED[codec] + b"x", base_of(codec))
